"""Benchmark records of many sets side by side: only what one recipe on one real data set gave.

Sets come from this machine or from the Hub, where they are found by the tag and the library
`moedd`. A record counts for the set whose training hash it carries, and for no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moedd_loaders.errors import InvalidSetError, MoeddError, UsageError, unknown
from moedd_loaders.hubclient import endpoint_url
from moedd_loaders.manifest import MANIFEST, PREVIEW, RESULTS, Manifest, read_manifest
from moedd_loaders.records import Record, read_records
from moedd_loaders.resolve import bundled_folders, home
from moedd_publish.comparable import Recipe, Score, scores, variant_title
from moedd_publish.hubrepo import HubRepo, quiet_client

__all__ = ["Board", "Entry", "Line", "boards", "gather_hub", "gather_local"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """A set with its records: `where` loads it, `link` shows it, `preview` is its picture."""

    name: str
    where: str
    manifest: Manifest
    records: Sequence[Record]
    link: str | None = None
    preview: bytes | None = None

    @property
    def per_class(self) -> float:
        """The budget: stored images per class, over all experts."""
        return self.manifest.budget.images / len(self.manifest.classes)

    @property
    def methods(self) -> str:
        return "+".join(dict.fromkeys(expert.method for expert in self.manifest.experts))


@dataclass(frozen=True)
class Line:
    """One row of a board: a set (None for all real images) trained on in one way.

    `scores` by network, as `Recipe` and `Score` have them.
    """

    entry: Entry | None
    variant: str
    fuse: str
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def title(self) -> str:
        if self.entry is None or self.variant == "full":
            return variant_title(self.variant, self.fuse)
        if self.variant == "random":
            return f"{variant_title(self.variant, self.fuse)}, budget of {self.entry.name}"
        return self.entry.name

    @property
    def best(self) -> float:
        return max(score.mean for score in self.scores.values())


@dataclass(frozen=True)
class Board:
    """The lines of one recipe, best first, and its networks, the most used one first."""

    recipe: Recipe
    networks: list[str]
    lines: list[Line]


def gather_local(folder: Path | None = None) -> list[Entry]:
    """Sets of this machine: those in `folder`, or those of $MOEDD_HOME and the bundled ones.

    Raises:
        UsageError: no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: give one that holds sets")
    if folder is None:
        places = [*_sets_in(home() / "sets"), *bundled_folders()]
    else:
        places = _sets_in(folder)
    entries = []
    for place in places:
        try:
            manifest = read_manifest(place)
            records = read_records(manifest, place)
        except InvalidSetError:
            if folder is not None:
                raise
            continue  # one broken set of many shall not hide the others
        picture = place / PREVIEW
        where = manifest.name if folder is None else str(place)
        preview = picture.read_bytes() if picture.is_file() else None
        entries.append(Entry(manifest.name, where, manifest, records, None, preview))
    return _once(entries)


def gather_hub(endpoint: str | None = None, say: Say = print) -> list[Entry]:
    """Sets on the Hub that carry the tag or the library `moedd`; what cannot be read is told.

    Private and gated ones are left out, also where the token opens them: boards are for everybody.

    Raises:
        NetworkError: the Hub cannot be searched.
    """
    with quiet_client(False):
        ids = _search(endpoint, say)
        entries = []
        for repo_id, sha in sorted(ids.items()):
            try:
                found = _entry(HubRepo(repo_id, endpoint, say), sha)
            except MoeddError as error:
                say(f"left out: {error}")
                continue
            if found is not None:
                entries.append(found)
    return entries


def boards(
    entries: Iterable[Entry],
    *,
    data: str | None = None,
    budget: int | None = None,
    sort: str | None = None,
) -> list[Board]:
    """Lines by recipe; recipes of most sets first.

    Args:
        data: only sets of this data. budget: only sets of so many stored images per class.
        sort: a network, "name" or "budget"; by default each board's most used network.

    Raises:
        UsageError: a `sort` that no board has, or `data` of which there is nothing.
    """
    kept = list(entries)
    if data is not None:
        known = {entry.manifest.source.data for entry in kept}
        if data not in known:
            raise unknown("data", data, known)
        kept = [entry for entry in kept if entry.manifest.source.data == data]
    if budget is not None:
        kept = [entry for entry in kept if entry.per_class == budget]
    made = [_board(recipe, lines) for recipe, lines in _lines(kept).items()]
    networks = {network for board in made for network in board.networks}
    if sort is not None and made and sort not in {"name", "budget", *networks}:
        raise unknown("column", sort, {"name", "budget", *networks})
    for board in made:
        board.lines.sort(key=_order(sort or board.networks[0]))
    return sorted(made, key=lambda board: (-len(board.lines), board.recipe))


def _search(endpoint: str | None, say: Say) -> dict[str, str]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint_url(endpoint))
    found: dict[str, str] = {}
    with HubRepo("search", endpoint, say).asking("searching the Hub"):
        for wanted in ("moedd", "library:moedd"):
            for info in api.list_datasets(filter=wanted, full=True):
                if info.private or info.gated:
                    closed = "private" if info.private else "gated"
                    say(f"left out: {info.id} is {closed}")
                    continue
                found[info.id] = info.sha or "main"
    return found


def _entry(repo: HubRepo, sha: str) -> Entry | None:
    with repo.asking(f"reading {repo.repo_id}"):
        files = repo.files(sha)
        manifest = repo.manifest(sha) if MANIFEST in files else None
        if manifest is None:
            return None
        records = repo.records(sha) if RESULTS in files else []
        preview = repo.fetch(PREVIEW, sha).read_bytes() if PREVIEW in files else None
    own = [record for record in records if record.set_hash == manifest.training_sha256]
    return Entry(manifest.name, repo.repo_id, manifest, own, repo.url, preview)


def _sets_in(folder: Path) -> list[Path]:
    places = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    return [folder, *places] if (folder / MANIFEST).is_file() else places


def _once(entries: Iterable[Entry]) -> list[Entry]:
    """Of two copies of one set the first."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        found.setdefault((entry.name, entry.manifest.training_sha256), entry)
    return list(found.values())


def _lines(entries: Sequence[Entry]) -> dict[Recipe, list[Line]]:
    """All real images are the same whatever set they were trained beside: one line for them.

    What several sets carry of one network counts once if they agree on it. Where they do not,
    each counts: nobody's record takes the place of another's.
    """
    found: dict[Recipe, list[Line]] = {}
    full: dict[tuple[Any, ...], Record] = {}
    for entry in entries:
        own = [record for record in entry.records if record.variant != "full"]
        for record in entry.records:
            if record.variant == "full":
                full.setdefault(
                    (record.identity, record.data, record.epochs, record.accuracy), record
                )
        for score in scores(own):
            _add(found.setdefault(score.recipe, []), entry, score)
    for score in scores(full.values()):
        if score.recipe in found:
            _add(found[score.recipe], None, score)
    return found


def _add(lines: list[Line], entry: Entry | None, score: Score) -> None:
    for line in lines:
        if line.entry is entry and (line.variant, line.fuse) == (score.variant, score.fuse):
            line.scores[score.network] = score
            return
    lines.append(Line(entry, score.variant, score.fuse, {score.network: score}))


def _board(recipe: Recipe, lines: list[Line]) -> Board:
    used: dict[str, int] = {}
    for line in lines:
        for network in line.scores:
            used[network] = used.get(network, 0) + 1
    return Board(recipe, sorted(used, key=lambda name: (-used[name], name)), lines)


def _order(sort: str) -> Callable[[Line], tuple[Any, ...]]:
    def key(line: Line) -> tuple[Any, ...]:
        name = line.entry.name if line.entry else ""
        if sort == "name":
            return (name, -line.best)
        if sort == "budget":
            return (line.entry.per_class if line.entry else float("inf"), -line.best)
        score = line.scores.get(sort)
        return (score is None, -round(score.mean, 6) if score else 0.0, name)

    return key
