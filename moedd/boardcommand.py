"""What `moedd leaderboard` does: gather, show, write, publish."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moedd.tables import counted
from moedd_loaders.errors import UsageError, from_oserror
from moedd_loaders.files import put
from moedd_publish.boardfiles import boards_csv, boards_rows
from moedd_publish.boardpage import boards_page
from moedd_publish.hubspace import push_space
from moedd_publish.leaderboard import Board, Line, boards, gather_hub, gather_local


def run_leaderboard(
    *,
    hub: bool,
    local: Path | None,
    data: str | None,
    budget: int | None,
    sort: str | None,
    as_csv: bool,
    as_json: bool,
    html: Path | None,
    space: str | None,
    title: str,
    endpoint: str | None,
) -> None:
    """`moedd leaderboard`."""
    if hub and local is not None:
        raise UsageError(f"--hub and --local {local} are both given: give one of them")
    if as_csv and as_json:
        raise UsageError("--csv and --json are both given: give one of them")
    entries = gather_hub(endpoint, _say) if hub else gather_local(local)
    made = boards(entries, data=data, budget=budget, sort=sort)
    if as_csv:
        print(boards_csv(made), end="")
    elif as_json:
        print(json.dumps(list(boards_rows(made)), indent=1))
    elif html is None and space is None:
        _show(made, len(entries))
    if html is not None or space is not None:
        page = boards_page(made, entries, title)
        if html is not None:
            _write(html, page)
        if space is not None:
            pushed = push_space(space, page, title=title, endpoint=endpoint, say=_say)
            what = "published" if pushed.changed else "published already, nothing was changed"
            _say(f"{pushed.url}: {what} (commit {pushed.sha})")


def _write(path: Path, page: str) -> None:
    try:
        put(path, page.encode())
    except OSError as error:
        raise from_oserror(error, f"writing {path}") from error
    _say(f"page: {path}")


def _show(made: Sequence[Board], sets: int) -> None:
    if not made:
        print(f"{counted(sets, 'set')} and no benchmark records: moedd evaluate makes them")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for board in made:
        console.print(_table(board))


def _table(board: Board) -> Table:
    recipe = board.recipe
    title = f"{recipe.data}: {recipe.title} (real data {recipe.fingerprint[:19]})"
    table = Table(title=_plain(title), title_justify="left")
    for name in ("set", "fuse"):
        table.add_column(name, overflow="fold")
    for name in ("img/class", *board.networks):
        table.add_column(_plain(name), justify="right")
    for line in board.lines:
        budget = f"{line.entry.per_class:g}" if line.entry else "all"
        fuse = line.fuse if line.variant == "distilled" else ""
        cells = (line.title, fuse, budget, *(_cell(line, name) for name in board.networks))
        table.add_row(*map(_plain, cells))
    return table


def _plain(text: str) -> Text:
    """What strangers wrote, as it is: no markup of rich's, nothing that a terminal would obey."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _cell(line: Line, network: str) -> str:
    score = line.scores.get(network)
    return f"{score.text} ({score.n})" if score else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr)
