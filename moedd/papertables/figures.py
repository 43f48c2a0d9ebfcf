"""Figures of a section, as SVG files: gaps with intervals, mixup, the diversity step.

Filled marks are means over several sets, with their 95 % interval or standard deviation; hollow
ones are of one set, which says nothing about the method. Grey diamonds are the paper's numbers.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moedd.checkpoint import write_atomically
from moedd.papertables.compare import Answer
from moedd.papertables.lines import Line, Section
from moedd.papertables.markdown import title_of
from moedd.papertables.paper import Printed, printed
from moedd.papertables.rows import NO_DIVERSITY, Identity, table_rows
from moedd.papertables.stats import Gap

_COLUMNS = 3
_TITLE = 32  # letters in a line of a panel's title
OURS, PAPER, ZERO = "#1d4ed8", "#8b8f98", "#c7cbd1"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moedd",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def gap_figure(answers: Sequence[Answer], path: Path) -> bool:
    """One panel per claim about two experts and one, and per comparison of them at equal
    arithmetic: points per network. False without a claim."""
    against_one = [a for a in answers if a.question.b.experts == 1]
    chosen = [a for a in against_one if a.question.claim or a.question.equal == "operations"]
    if not any(a.question.claim for a in chosen):
        return False

    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    reach = _reach(chosen)
    cut = any(_cut_at(gap, reach) for answer in chosen for gap in answer.gaps.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for axis, answer in zip(axes, chosen, strict=False):
            _gap_panel(axis, answer, reach)
        for axis in axes[len(chosen) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(chosen) - columns) : len(chosen)]:
            axis.set_xlabel("accuracy, points")
            axis.tick_params(labelbottom=True)
        _legend(figure, "several sets, 95 % interval" + (" (arrow: goes on)" if cut else ""))

    height = 0.6 + rows * (1.1 + 0.34 * max(len(answer.gaps) for answer in chosen))
    _save(path, (max(4.4, 2.9 * columns + 0.6), height), draw)
    return True


def _reach(answers: Sequence[Answer]) -> float:
    """How far the panels go to both sides, in points: all means and a good deal of the intervals.
    That of two sets can be tens of points wide, which would press everything else into a line."""
    means = [abs(gap.difference) for answer in answers for gap in answer.gaps.values()]
    theirs = [abs(value) for answer in answers for value in answer.paper.values()]
    return 5 + 1.25 * max(means + theirs)


def _cut_at(gap: Gap, reach: float) -> list[tuple[float, str]]:
    """Ends of the interval that lie outside, as place and marker of an arrow."""
    if gap.low is None or gap.high is None:
        return []
    ends = [(-reach, "<", gap.low < -reach), (reach, ">", gap.high > reach)]
    return [(place, marker) for place, marker, outside in ends if outside]


def _gap_panel(axis: Any, answer: Answer, reach: float) -> None:
    networks = list(answer.gaps)[::-1]
    axis.axvline(0, color=ZERO, linewidth=1, zorder=0)
    for place, network in enumerate(networks):
        gap = answer.gaps[network]
        if gap.low is not None and gap.high is not None:
            axis.plot([gap.low, gap.high], [place] * 2, color=OURS, linewidth=2, zorder=2)
        for edge, marker in _cut_at(gap, reach):
            axis.plot(edge, place, marker, color=OURS, markersize=5, clip_on=False, zorder=3)
        fill = OURS if gap.low is not None else "white"
        axis.plot(gap.difference, place, "o", color=OURS, markerfacecolor=fill, zorder=3)
        if network in answer.paper:
            axis.plot(answer.paper[network], place + 0.22, "D", color=PAPER, markersize=4, zorder=2)
    axis.set_yticks(range(len(networks)), [title_of(network) for network in networks])
    axis.set_ylim(-0.6, len(networks) - 0.4)
    axis.set_xlim(-reach, reach)
    axis.set_title(textwrap.fill(answer.question.title, _TITLE), fontsize=9, loc="left")
    axis.grid(axis="x", alpha=0.2)


def mixup_figure(section: Section, path: Path) -> bool:
    """Table 3: none, vanilla, cross-expert, per network. False where it was not run."""
    groups = _fused(section)
    if not groups:
        return False
    networks = section.networks

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(groups), len(networks), squeeze=False)
        for row, lines in zip(axes, groups, strict=True):
            for axis, network in zip(row, networks, strict=True):
                _steps_panel(axis, section, lines, network, _printed_in(3))
                axis.set_title(title_of(network), fontsize=9)
            own = lines[0][1].identity
            row[0].set_ylabel(f"{own.methods} {own.ipc}x{own.experts}\naccuracy %")
        _legend(figure, "several sets, ± standard deviation")

    _save(path, (2.3 * len(networks) + 0.8, 2.3 * len(groups) + 0.6), draw)
    return True


def diversity_figure(section: Section, path: Path) -> bool:
    """Table 4: baseline, diversity, both, on the ConvNet. False where it was not run."""
    groups = _ablated(section)
    networks = [n for n in section.networks if n.startswith("convnet")]
    if not groups or not networks:
        return False

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(groups), squeeze=False)[0]
        for axis, lines in zip(axes, groups, strict=True):
            _steps_panel(axis, section, lines, networks[0], _printed_in(4))
            own = lines[0][1].identity
            axis.set_title(f"{own.methods} {own.ipc}x{own.experts}", fontsize=9)
        axes[0].set_ylabel(f"{title_of(networks[0])}, accuracy %")
        _legend(figure, "several sets, ± standard deviation")

    _save(path, (max(4.4, 2.3 * len(groups) + 0.8), 2.9), draw)
    return True


Steps = list[tuple[str, Line]]


def _pairs(section: Section) -> list[tuple[Identity, float]]:
    """Two experts of one method, by fraction, once each."""
    found = {
        (key.identity._replace(fuse="", overrides=()), key.fraction): None
        for key in section.lines
        if key.identity.variant == "distilled" and key.identity.experts > 1
    }
    return sorted(found)


def _fused(section: Section) -> list[Steps]:
    names = {"none": "none", "vanilla": "vanilla", "mixup": "cross"}
    groups = []
    for identity, fraction in _pairs(section):
        lines = {
            names[fuse]: _line(section, identity._replace(fuse=fuse), fraction) for fuse in names
        }
        found = [(name, line) for name, line in lines.items() if line is not None]
        if len(found) == len(names):
            groups.append(found)
    return groups


def _ablated(section: Section) -> list[Steps]:
    groups = []
    for identity, fraction in _pairs(section):
        steps = {
            "baseline": identity._replace(fuse="none", overrides=NO_DIVERSITY),
            "+ div.": identity._replace(fuse="none"),
            "+ mixup": identity._replace(fuse="mixup"),
        }
        lines = {name: _line(section, own, fraction) for name, own in steps.items()}
        found = [(name, line) for name, line in lines.items() if line is not None]
        if len(found) == len(steps):
            groups.append(found)
    return groups


def _line(section: Section, identity: Identity, fraction: float) -> Line | None:
    found = (line for line in section.of(identity) if line.key.fraction == fraction)
    return next(found, None)


PaperLine = Callable[[Identity], Printed | None]


def _printed_in(table: int) -> PaperLine:
    def find(identity: Identity) -> Printed | None:
        rows = table_rows(table, identity.budget)
        return next((row.paper for row in rows if row.identity == identity), None)

    return find


def _steps_panel(
    axis: Any, section: Section, lines: Steps, network: str, paper_line: PaperLine
) -> None:
    names = [name for name, _ in lines]
    theirs: list[tuple[int, float]] = []
    ours: list[tuple[int, float]] = []
    for place, (_, line) in enumerate(lines):
        found = line.summary(network)
        if found is None:
            continue
        ours.append((place, found.mean))
        if found.over == "sets" and found.spread is not None:
            ends = [found.mean - found.spread, found.mean + found.spread]
            axis.plot([place] * 2, ends, color=OURS, linewidth=2, zorder=2)
        fill = OURS if found.over == "sets" else "white"
        axis.plot(place, found.mean, "o", color=OURS, markerfacecolor=fill, zorder=3)
        value = printed(paper_line(line.identity), section.setting.data, network)
        if value is not None:
            theirs.append((place, value))
    for points, colour in ((ours, OURS), (theirs, PAPER)):
        axis.plot([x for x, _ in points], [y for _, y in points], color=colour, alpha=0.4, zorder=1)
    for place, value in theirs:
        axis.plot(place, value, "D", color=PAPER, markersize=4, zorder=2)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.grid(axis="y", alpha=0.2)


def _legend(figure: Any, several: str) -> None:
    from matplotlib.lines import Line2D

    ours: Any = {"color": OURS, "linewidth": 0, "marker": "o"}
    handles = [
        Line2D([], [], label=several, **ours),
        Line2D([], [], label="one set", markerfacecolor="white", **ours),
        Line2D([], [], label="paper", color=PAPER, linewidth=0, marker="D", markersize=4),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _save(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Draw and write; equal data give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        still = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=150, metadata=still)
    write_atomically(path, out.getvalue())
