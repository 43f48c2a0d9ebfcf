"""Plots of a board: accuracy over the budget, one panel per network, as SVG text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from moedd_publish.leaderboard import Board, Line

__all__ = ["board_plot"]

_COLUMNS = 4  # panels side by side
_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#4b5563")


def board_plot(board: Board) -> str:
    """An `<svg>` of all networks of a board, the most used first; equal text for equal boards.

    Each method has a colour; of a set's ways of fusing the best one is drawn. Random real images
    are grey, all real images a dashed line.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    networks = board.networks
    columns = min(_COLUMNS, len(networks))
    rows = math.ceil(len(networks) / columns)
    methods = sorted({line.entry.methods for line in board.lines if line.entry})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(methods)}
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "moedd",
        "font.family": "sans-serif",
        "text.parse_math": False,
    }
    with rc_context(settings):
        size = (max(5.0, 3.4 * columns + 0.6), 3.0 * rows + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for row in grid:
            row[0].set_ylabel("accuracy %")
        for spare in grid.flat[len(networks) :]:
            spare.remove()
        axes = list(grid.flat[: len(networks)])
        for axis, network in zip(axes, networks, strict=True):
            _panel(axis, board, network, colours)
        handles, names = axes[0].get_legend_handles_labels()
        for axis in axes[1:]:
            more = zip(*axis.get_legend_handles_labels(), strict=True)
            for handle, name in more:
                if name not in names:
                    handles.append(handle)
                    names.append(name)
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = out.getvalue()
    return text[text.index("<svg") :]


def _panel(axis: Any, board: Board, network: str, colours: dict[str, str]) -> None:
    axis.set_title(_literal(network), fontsize=10)
    axis.set_xlabel("images per class")
    budgets = sorted({line.entry.per_class for line in board.lines if line.entry})
    if budgets:
        axis.set_xscale("log", base=2)
        axis.set_xlim(budgets[0] / 1.5, budgets[-1] * 1.5)
        axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    seen: set[str] = set()
    for line in _best(board.lines, network):
        score = line.scores[network]
        spread = score.std or 0.0
        if line.entry is None:
            axis.axhline(score.mean, color="#6b7280", linestyle="--", label="all real images")
            continue
        random = line.variant == "random"
        name = "random real images" if random else line.entry.methods
        axis.errorbar(
            line.entry.per_class,
            score.mean,
            yerr=spread,
            marker="x" if random else "o",
            capsize=3,
            color="#9ca3af" if random else colours[line.entry.methods],
            label=None if name in seen else _literal(name),
        )
        seen.add(name)


def _best(lines: Sequence[Line], network: str) -> list[Line]:
    """Lines with a score on the network; of a set's ways of fusing the best."""
    found: dict[tuple[int, str], Line] = {}
    for line in lines:
        if network not in line.scores:
            continue
        key = (id(line.entry), line.variant)
        before = found.get(key)
        if before is None or line.scores[network].mean > before.scores[network].mean:
            found[key] = line
    return list(found.values())


def _literal(text: str) -> str:
    """A label that is shown as it is: matplotlib hides those that begin with an underscore."""
    return re.sub(r"^_", " _", text)
