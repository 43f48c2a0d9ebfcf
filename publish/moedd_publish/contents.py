"""What of a set is published, byte for byte, wherever it goes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1, sha256
from pathlib import Path

from moedd_loaders.errors import ConflictError, UsageError, unknown
from moedd_loaders.hashes import file_sha256
from moedd_loaders.manifest import (
    CHECKSUMS,
    MANIFEST,
    PREVIEW,
    RESULTS,
    Manifest,
    manifest_bytes,
)
from moedd_loaders.records import Record
from moedd_publish.card import FORMATS
from moedd_publish.results import RESULTS_TABLE, records_bytes, records_table

__all__ = [
    "CARD",
    "MUTABLE",
    "PAYLOAD",
    "Item",
    "check_replacement",
    "chosen_formats",
    "for_publication",
    "formats_there",
    "items",
    "known_licence",
    "left_over",
    "same_images",
    "version_key",
]

CARD = "README.md"
PAYLOAD = ("data/", "webdataset/", "tensors/", "recipe/")
"""Folders of a published set that hold nothing but what its manifest lists."""
MUTABLE = (CARD, PREVIEW, RESULTS, RESULTS_TABLE)
_FOLDER_OF = {"parquet": "data/", "webdataset": "webdataset/", "safetensors": "tensors/"}
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


@dataclass(frozen=True)
class Item:
    """One file to publish: its path there and where its bytes are."""

    path: str
    source: Path | bytes

    @property
    def data(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.source, bytes):
            return sha256(self.source).hexdigest()
        return file_sha256(self.source)

    @cached_property
    def git_oid(self) -> str:
        """The hash that git gives a file of these bytes."""
        return sha1(b"blob %d\0" % self.size + self.data).hexdigest()


def chosen_formats(text: str) -> tuple[str, ...]:
    """`parquet,safetensors` as formats in order; safetensors always is one."""
    given = [part.strip() for part in text.split(",") if part.strip()]
    for name in given:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    return tuple(name for name in FORMATS if name in given or name == "safetensors")


def formats_there(manifest: Manifest, paths: Collection[str]) -> tuple[str, ...]:
    """The formats of which every file that a manifest lists is among `paths`."""
    found = []
    for name in FORMATS:
        at = _FOLDER_OF[name]
        if all(path in paths for path in manifest.files if path.startswith(at)):
            found.append(name)
    return tuple(found)


def left_over(
    there: Collection[str], wanted: Collection[str], *, replacing: bool, foreign_records: bool
) -> list[str]:
    """Files to delete: payload that the set does not have, and what tells of other images.

    Args:
        there: paths that are there. wanted: paths that go out.
        replacing: the images that are there are others.
        foreign_records: the records that are there are all of other images.
    """
    ours: tuple[str, ...] = (PREVIEW,) if replacing else ()
    if replacing or foreign_records:
        ours += (RESULTS, RESULTS_TABLE)
    return [
        path
        for path in sorted(there)
        if path not in wanted and (path.startswith(PAYLOAD) or path in ours)
    ]


def for_publication(
    manifest: Manifest, published: Manifest | None, version: str | None, licence: str | None
) -> Manifest:
    """The manifest as it goes out.

    Where the published images are the very same, their version, date and provenance stay: a set
    that was made a second time, byte for byte, is not another one.

    Args:
        published: the manifest that is there already.
        version, licence: said by the person who publishes; else as in `manifest`.

    Raises:
        UsageError: the licence of the source is unknown and not said; a version that is none.
    """
    changes: dict[str, object] = {}
    if published is not None and same_images(manifest, published):
        changes = {
            "version": published.version,
            "created": published.created,
            "provenance": published.provenance,
        }
    if version is not None:
        changes["version"] = version
    stated = known_licence(manifest, licence)
    changes["source"] = manifest.source.model_copy(update={"license": stated})
    made = manifest.model_copy(update=changes)
    version_key(made.version)
    return made


def known_licence(manifest: Manifest, given: str | None) -> str:
    """The licence of the source. It is never guessed.

    Raises UsageError: nobody says it.
    """
    stated = given or manifest.source.license
    if given is None and stated.strip().lower() in ("", "unknown"):
        raise UsageError(
            f"the licence of {manifest.source.data}, the source of {manifest.name}, is not known: "
            "say it with --license, an identifier such as cc-by-4.0 or the address of the terms "
            "(or --license unknown, to state that nobody knows)"
        )
    return stated.strip()


def version_key(version: str) -> tuple[int, ...]:
    """Versions compare by number. Raises UsageError for what is not X.Y.Z."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise UsageError(f"'{version}' is no version of a set, expected X.Y.Z such as 1.1.0")
    return tuple(map(int, match.groups()))


def same_images(one: Manifest, other: Manifest) -> bool:
    """Whether two sets are the same in every payload file."""
    return one.files == other.files and one.training_sha256 == other.training_sha256


def check_replacement(
    where: str, local: Manifest, made: Manifest, published: Manifest, overwrite: bool
) -> None:
    """Whether a set may take the place of the one that is published at `where`.

    Args:
        local: the set on disk. made: its manifest as it would go out. published: what is there.

    Raises:
        ConflictError: other images are there, and `overwrite` or a higher version is missing.
    """
    old, new = published.version, made.version
    before = _key(old)
    if same_images(local, published):
        if version_key(new) < before:
            raise ConflictError(f"{where} is at version {old} already, above {new}")
        return
    bump = f"--set-version {before[0]}.{before[1] + 1}.0"
    if not overwrite:
        raise ConflictError(
            f"{where} holds other images as version {old}: give --overwrite {bump} to publish "
            "these instead, or choose another name"
        )
    if version_key(new) <= before:
        raise ConflictError(
            f"{where} holds other images as version {old} and these are {new}, expected a higher "
            f"version: give {bump}"
        )


def _key(published: str) -> tuple[int, ...]:
    """Of a version that somebody else wrote."""
    try:
        return version_key(published)
    except UsageError:
        return (0, 0, 0)


def items(
    folder: Path,
    manifest: Manifest,
    card: str,
    records: Sequence[Record],
    formats: Sequence[str] = FORMATS,
) -> list[Item]:
    """Every file to publish, the manifest last.

    Args:
        folder: the set on disk.
        manifest: as it goes out (its `files` list all formats whatever is published).
        card: the whole README.md.
        records: benchmark records to go with it.
        formats: the containers to publish.
    """
    published = {*formats, "safetensors"}
    left_out = tuple(at for name, at in _FOLDER_OF.items() if name not in published)
    payload = [name for name in manifest.files if not name.startswith(left_out or ("\0",))]
    described = manifest_bytes(manifest)
    sums = {name: manifest.files[name].sha256 for name in payload}
    sums[MANIFEST] = sha256(described).hexdigest()
    found = [Item(name, folder / name) for name in sorted(payload)]
    found.append(Item(CARD, card.encode()))
    if (folder / PREVIEW).is_file():
        found.append(Item(PREVIEW, folder / PREVIEW))
    if records:
        found.append(Item(RESULTS, records_bytes(records)))
        found.append(Item(RESULTS_TABLE, records_table(records)))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    found.append(Item(CHECKSUMS, lines.encode()))
    found.append(Item(MANIFEST, described))
    return found
