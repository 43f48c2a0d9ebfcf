"""Publishing a set at any address that fsspec writes to: `s3://`, `gs://`, `file://`...

Such a shelf has no commits, so the order does what a commit does on the Hub: the manifest, whose
presence means that the set is whole, goes away first and comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from moedd_loaders.errors import ConflictError, InvalidSetError, NetworkError, UsageError
from moedd_loaders.files import put
from moedd_loaders.manifest import MANIFEST, RESULTS, Manifest, parse_manifest
from moedd_loaders.records import Record
from moedd_loaders.shelf import explain_shelf, open_shelf, plain_url
from moedd_loaders.validate import validate_set
from moedd_publish.card import OWNED_KEYS, render_card
from moedd_publish.cardmerge import merge_cards
from moedd_publish.contents import (
    CARD,
    PAYLOAD,
    Item,
    check_replacement,
    for_publication,
    items,
    left_over,
    same_images,
)
from moedd_publish.results import merged, publishable, readable_records

__all__ = ["Shelved", "push_to_url"]


@dataclass(frozen=True)
class Shelved:
    """What came of a push: files written, deleted and left as they were; the version there."""

    url: str
    version: str
    changed: bool
    written: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: tuple[str, ...]


def push_to_url(
    folder: Path,
    url: str,
    *,
    version: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    results: Path | None = None,
    on_file: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Shelved:
    """Publish the set in `folder` at `url`; `load_distilled(url)` reads it again.

    A second push of the same set writes nothing. A push that broke off is completed by the same
    call; until then there is no set at the address.

    Args:
        version, licence, overwrite, results: as for `push_to_hub`.
        on_file: called with the name of each file, its number and the number of all.

    Raises:
        InvalidSetError: the set is not valid. UsageError: an address that cannot be written.
        ConflictError: other images, or files of something else, are there. AuthError, NetworkError.
    """
    if url.startswith("hf://"):
        raise UsageError(f"{plain_url(url)} is the Hub: use moedd push-to-hub")
    manifest = validate_set(folder)
    records = publishable(manifest, folder, results)
    shelf = _Shelf(url)
    url = shelf.shown
    there = shelf.names()
    published = shelf.manifest() if MANIFEST in there else None
    made = for_publication(manifest, published, version, licence)
    if published is not None:
        check_replacement(url, manifest, made, published, overwrite)
    before = shelf.records() if RESULTS in there else []
    current = [record for record in before if record.set_hash == made.training_sha256]
    records = merged(current, records)
    wanted = items(folder, made, shelf.card(folder, made, records, there), records)
    same = published is not None and same_images(made, published)
    stale = left_over(
        there,
        {item.path for item in wanted},
        replacing=overwrite and not same,
        foreign_records=bool(before) and not current,
    )
    if published is None and not overwrite:
        _check_foreign(url, there, stale)
    changed = [item for item in wanted if item.path not in there or shelf.differs(item)]
    if stale or any(item.path.startswith(PAYLOAD) for item in changed):
        changed = [item for item in changed if item.path != MANIFEST] + wanted[-1:]
    if changed or stale:
        shelf.write(changed, stale, on_file)
    return Shelved(
        url=url,
        version=made.version,
        changed=bool(changed or stale),
        written=tuple(item.path for item in changed),
        deleted=tuple(stale),
        unchanged=tuple(item.path for item in wanted if item not in changed),
    )


def _check_foreign(url: str, there: set[str], stale: list[str]) -> None:
    foreign = [name for name in stale if name.startswith(PAYLOAD)]
    if foreign or MANIFEST in there:
        raise ConflictError(
            f"{url} holds {foreign[0] if foreign else MANIFEST}, which is not of a set that can be "
            "read: choose another address, or give --overwrite to put the set in its place"
        )


class _Shelf:
    """One address of a file system; `shown` is the address without a password."""

    def __init__(self, url: str) -> None:
        self.url, self.shown = url, plain_url(url)
        self.system, self.path = open_shelf(url)
        self.local = "file" in _protocols(self.system)

    def names(self) -> set[str]:
        """Every file there, relative to the address."""
        try:
            self.system.invalidate_cache()
            found = self.system.find(self.path)
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise explain_shelf(error, self.url, f"reading {self.shown}") from None
        root = self.path.rstrip("/") + "/"
        return {name[name.index(root) + len(root) :] for name in found if root in name}

    def read(self, name: str) -> bytes:
        try:
            data: bytes = self.system.cat_file(f"{self.path}/{name}")
        except Exception as error:
            raise explain_shelf(error, self.url, f"reading {self.shown}/{name}") from None
        return data

    def manifest(self) -> Manifest | None:
        try:
            return parse_manifest(self.read(MANIFEST), f"{self.shown}/{MANIFEST}")
        except InvalidSetError:
            return None

    def records(self) -> list[Record]:
        return readable_records(self.read(RESULTS).decode("utf-8", "replace"))

    def card(self, folder: Path, made: Manifest, records: Sequence[Record], there: set[str]) -> str:
        """The card to publish, with what people wrote here or there."""
        local = folder / CARD
        return merge_cards(
            render_card(made, records=records, place=self.shown),
            local.read_text("utf-8", errors="replace") if local.is_file() else None,
            self.read(CARD).decode("utf-8", "replace") if CARD in there else None,
            OWNED_KEYS,
            self.shown,
        )

    def differs(self, item: Item) -> bool:
        return sha256(self.read(item.path)).hexdigest() != item.sha256

    def write(
        self, changed: list[Item], stale: list[str], on_file: Callable[[str, int, int], None]
    ) -> None:
        """Only card, records and preview may change under a manifest that stays."""
        payload = [item for item in changed if item.path.startswith(PAYLOAD)]
        assert not (payload or stale) or changed[-1].path == MANIFEST
        try:
            if payload or stale:
                self._remove(MANIFEST)
            for name in stale:
                self._remove(name)
            for number, item in enumerate(changed, 1):  # the manifest is the last item
                self._put(item)
                on_file(item.path, number, len(changed))
        except Exception as error:
            raise explain_shelf(error, self.url, f"writing to {self.shown}") from None

    def _put(self, item: Item) -> None:
        target = f"{self.path}/{item.path}"
        if self.local:
            put(Path(target), item.data)
        else:
            self.system.pipe_file(target, item.data)
        if sha256(self.system.cat_file(target)).hexdigest() != item.sha256:
            raise NetworkError(f"{item.path} arrived damaged at {self.shown}: run it again")

    def _remove(self, name: str) -> None:
        try:
            self.system.rm_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return
        finally:
            self.system.invalidate_cache()


def _protocols(system: Any) -> tuple[str, ...]:
    found = system.protocol
    return (found,) if isinstance(found, str) else tuple(found)
