"""Which files a set may hold: inside of its folder, no links, none unlisted, none edited."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import file_sha256
from moedd_loaders.manifest import CHECKSUMS, MANIFEST, Manifest
from moedd_loaders.read import check_file
from moedd_loaders.sums import parse_checksums

__all__ = ["check_files", "check_json"]

# Folders of payload: a file in them that the manifest does not list would still be read by
# whoever globs (`data/train-*.parquet`).
_PAYLOAD = ("data", "webdataset", "tensors", "recipe")
_LARGEST = 64_000_000
"""Bytes of the largest manifest that is read at all."""


def check_json(folder: Path) -> None:
    """Check what every reader of `moedd.json` must agree on, before its content is looked at.

    Raises:
        InvalidSetError: it is too large, no JSON, or one of its objects has a key twice: whichever
            value one reader takes, another takes the other.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return  # `read_manifest` says what is missing
    if (size := path.stat().st_size) > _LARGEST:
        raise InvalidSetError(f"{path} has {size:,} bytes, expected at most {_LARGEST:,}")
    try:
        json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_once)
    except _TwiceError as error:
        raise InvalidSetError(f"{path} holds the key {error} twice in one object") from None
    except UnicodeDecodeError as error:
        raise InvalidSetError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise InvalidSetError(f"{path} is not JSON: {error}") from None


class _TwiceError(Exception):
    """A key that comes twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(repr(key))
        found[key] = value
    return found


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the files of `folder` with the manifest and with `checksums.sha256`.

    Raises:
        InvalidSetError: names the file: a path that leaves the folder, a link, a file that is
            missing, changed or listed nowhere, a checksum that differs.
    """
    _check_paths(folder, manifest)
    _check_links(folder)
    for name in manifest.files:
        check_file(folder, name, manifest)
    _check_unlisted(folder, manifest)
    _check_checksums(folder, manifest)


def _check_paths(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        inside = name == "/".join(parts) and parts and ".." not in parts and parts[0] != "/"
        if not inside or re.search(r"[\\:\x00-\x1f]", name):
            raise InvalidSetError(f"{folder / MANIFEST} lists {name!r}, which leaves the folder")
        if parts[0] not in _PAYLOAD:
            raise InvalidSetError(
                f"{folder / MANIFEST} lists {name!r}, expected files in {', '.join(_PAYLOAD)} only"
            )


def _check_links(folder: Path) -> None:
    for path in _walk(folder):
        if path.is_symlink():
            raise InvalidSetError(f"{path} is a symbolic link, which a set must not hold")


def _check_unlisted(folder: Path, manifest: Manifest) -> None:
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in _PAYLOAD and not path.is_dir() and name not in manifest.files:
            raise InvalidSetError(f"{path} is not listed in {MANIFEST}: remove it")


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below `folder`, links not followed; hidden folders (.git, .cache) left out."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(files)]:
            yield Path(at) / name


def _check_checksums(folder: Path, manifest: Manifest) -> None:
    path = folder / CHECKSUMS
    sums = _read_checksums(path)
    wanted = {name: entry.sha256 for name, entry in manifest.files.items()}
    wanted[MANIFEST] = file_sha256(folder / MANIFEST)
    for name in sorted({*sums, *wanted}):
        if name not in sums or name not in wanted:
            where = MANIFEST if name in sums else CHECKSUMS
            raise InvalidSetError(f"{folder / where} does not list {name}")
        if sums[name] != wanted[name]:
            raise InvalidSetError(
                f"{folder / name} was edited: its sha256 is not that of {CHECKSUMS}"
            )


def _read_checksums(path: Path) -> dict[str, str]:
    try:
        return parse_checksums(path.read_bytes(), path)
    except FileNotFoundError:
        raise InvalidSetError(f"{path} is missing") from None
    except IsADirectoryError:
        raise InvalidSetError(f"{path} is a folder, expected a file") from None
