"""Boards as one page that needs nothing else: tables to sort, plots, a gallery of previews.

Everything on it may come from strangers' sets: all text is escaped, pictures are decoded and
encoded anew, and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from moedd_publish.boardplots import board_plot
from moedd_publish.leaderboard import Board, Entry, Line

__all__ = ["boards_page"]

_WIDTH = 640  # pixels of a picture in the gallery
_LARGEST = 40_000_000  # pixels of a picture that is decoded at all


def boards_page(
    boards: Sequence[Board], entries: Sequence[Entry], title: str = "Distilled data sets"
) -> str:
    """The whole HTML; equal text for equal boards."""
    shown = [entry for entry in entries if _on(entry, boards)] or list(entries)
    words = {
        "title": escape(title),
        "summary": escape(_summary(boards, shown)),
        "data_options": _options(sorted({entry.manifest.source.data for entry in shown})),
        "budget_options": _options(
            f"{budget:g}" for budget in sorted({entry.per_class for entry in shown})
        ),
        "boards": "\n".join(map(_board, boards))
        or '<p class="soft">No benchmark records yet: <code>moedd evaluate</code> makes them.</p>',
        "gallery": "\n".join(map(_card, shown)),
    }
    text = (resources.files("moedd_publish") / "templates" / "leaderboard.html").read_text("utf-8")
    return Template(text).substitute(words)


def _on(entry: Entry, boards: Sequence[Board]) -> bool:
    return any(line.entry is entry for board in boards for line in board.lines)


def _summary(boards: Sequence[Board], entries: Sequence[Entry]) -> str:
    networks = sum(len(entry.records) for entry in entries)
    newest = max((r.created for entry in entries for r in entry.records), default="")[:10]
    until = f", the newest of {newest}" if newest else ""
    return (
        f"{len(entries)} sets, {networks} trained networks in {len(boards)} recipes{until}. "
        "Made by moedd."
    )


def _options(values: Iterable[str]) -> str:
    return "".join(f"<option>{escape(value)}</option>" for value in values)


def _board(board: Board) -> str:
    best = {
        network: max(
            (
                line.scores[network].mean
                for line in board.lines
                if line.variant == "distilled" and network in line.scores
            ),
            default=None,
        )
        for network in board.networks
    }
    heads = ["set", "fuse", "method", "images per class"]
    numbers = {"images per class", *board.networks}
    head = "".join(
        f'<th scope="col"{" class=number" if name in numbers else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name in [*heads, *board.networks]
    )
    rows = "\n".join(_row(line, board, best) for line in board.lines)
    recipe = board.recipe
    return (
        f'<section data-data="{escape(recipe.data)}">\n'
        f"<h2>{escape(recipe.data)}: {escape(recipe.title)}</h2>\n"
        f'<p class="soft">Real data {escape(recipe.fingerprint[:23]) or "not recorded"}</p>\n'
        '<div class="scroll"><table class="board">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n"
        f'<figure role="img" aria-label="accuracy over the budget">{board_plot(board)}</figure>\n'
        "</section>"
    )


def _row(line: Line, board: Board, best: dict[str, float | None]) -> str:
    entry = line.entry
    real = line.variant != "distilled"
    title = escape(line.title)
    if entry and entry.link and not real:
        title = f'<a href="{escape(entry.link)}" rel="noopener">{title}</a>'
    budget = entry.per_class if entry else None
    cells = [
        f"<td>{title}</td>",
        f"<td>{'' if real else escape(line.fuse)}</td>",
        f"<td>{escape(entry.methods) if entry and not real else ''}</td>",
        f'<td class="number" data-value="{"NaN" if budget is None else budget}">'
        f"{'' if budget is None else f'{budget:g}'}</td>",
    ]
    for network in board.networks:
        score = line.scores.get(network)
        if score is None:
            cells.append('<td class="number" data-value="NaN"></td>')
            continue
        top = not real and score.mean == best[network]
        cells.append(
            f'<td class="number{" best" if top else ""}" data-value="{score.mean:.6f}" '
            f'title="{score.n} networks, {score.n_train} training images, '
            f'{score.test_images} test images">{score.text}</td>'
        )
    kind = "real" if real else "best" if any(" best" in cell for cell in cells) else ""
    marks = _marks(entry) if entry else f'data-set="" data-data="{escape(board.recipe.data)}"'
    return f'<tr class="{kind}" {marks}>{"".join(cells)}</tr>'


def _marks(entry: Entry) -> str:
    """What the page filters by."""
    words = f"{entry.name} {entry.where} {entry.methods}".lower()
    return (
        f'data-set="{escape(entry.where)}" data-data="{escape(entry.manifest.source.data)}" '
        f'data-budget="{entry.per_class:g}" data-words="{escape(words)}"'
    )


def _card(entry: Entry) -> str:
    budget = entry.manifest.budget
    picture = _picture(entry.preview)
    image = f'<img alt="images of {escape(entry.name)}" src="{picture}">' if picture else ""
    name = escape(entry.where)
    if entry.link:
        name = f'<a href="{escape(entry.link)}" rel="noopener">{name}</a>'
    fuse = ', fuse="mixup"' if len(entry.manifest.experts) > 1 else ""
    return (
        f'<div class="card" {_marks(entry)}>{image}<h3>{name}</h3>'
        f'<p class="soft">{escape(entry.methods)}, {len(entry.manifest.experts)} experts, '
        f"{entry.per_class:g} images per class, {budget.image_bytes:,} bytes, version "
        f"{escape(entry.manifest.version)}, licence of the source "
        f"{escape(entry.manifest.source.license)}</p>"
        f"<code>load_distilled(&quot;{escape(entry.where)}&quot;{escape(fuse)})</code></div>"
    )


def _picture(data: bytes | None) -> str | None:
    """A preview as a data address, made smaller; None if it is no picture."""
    from PIL import Image

    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > _LARGEST:
                return None
            small = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((_WIDTH, 2 * _WIDTH))
    out = io.BytesIO()
    small.save(out, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
