"""Rows of a set's WebDataset shards, read with suspicion: nothing is believed before it is checked.

A tar may name members outside of any folder, claim more bytes than it has, or hold links; a JSON
may be nested without end. Each becomes one sentence.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from moedd_loaders.errors import InvalidSetError

__all__ = ["INFO", "check_info", "tar_rows"]

INFO = "webdataset/_info.json"
_FIELDS = ["cls", "json", "npy", "png"]
_KEYS = {"id": str, "label": int, "class": str, "expert": int, "method": str, "k": int}


def tar_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows in order: what the `.json` says, and `png` and `npy` as bytes.

    Raises:
        InvalidSetError: not a whole tar; a member that leaves the folder, is no plain file or
            comes twice; parts of a row that are missing or disagree.
    """
    size = path.stat().st_size
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for first in members:
                group = [first, *islice(members, len(_FIELDS) - 1)]
                row = _row(path, tar, group, size)
                if row["id"] in seen:
                    raise InvalidSetError(f"{path} holds the key {row['id']!r} twice")
                seen.add(row["id"])
                yield row
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, InvalidSetError):
            raise
        raise InvalidSetError(f"{path} is not a whole tar file: {error}") from None


def _row(
    path: Path, tar: tarfile.TarFile, group: Sequence[tarfile.TarInfo], size: int
) -> dict[str, Any]:
    key = group[0].name.partition(".")[0]
    parts: dict[str, bytes] = {}
    for member in group:
        _check_member(path, member, size)
        stem, _, field = member.name.partition(".")
        file = tar.extractfile(member) if member.isfile() else None
        if stem != key or file is None:
            raise InvalidSetError(f"{path}: unexpected member {member.name!r} in row {key!r}")
        if field in parts:
            raise InvalidSetError(f"{path} holds the member {member.name!r} twice")
        parts[field] = file.read()
    if sorted(parts) != _FIELDS:
        raise InvalidSetError(f"{path}, row {key}: holds {sorted(parts)}, expected {_FIELDS}")
    try:
        row = json.loads(parts["json"])
        label = int(parts["cls"])
        if not isinstance(row, dict) or {name: type(row[name]) for name in row} != _KEYS:
            raise ValueError(f"expected an object with the keys {', '.join(_KEYS)}")
        if row["id"] != key or row["label"] != label:
            raise ValueError("the parts disagree")
    except (ValueError, RecursionError) as error:
        raise InvalidSetError(f"{path}, row {key}: bad .json or .cls: {error}") from None
    return {**row, "png": parts["png"], "npy": parts["npy"]}


def _check_member(path: Path, member: tarfile.TarInfo, size: int) -> None:
    name = member.name
    if "/" in name or "\\" in name or ".." in name or "\x00" in name:
        raise InvalidSetError(f"{path} holds the member {name!r}, which leaves the folder")
    if member.issym() or member.islnk():
        raise InvalidSetError(f"{path} holds the link {name!r}, which a set must not hold")
    if member.issparse() or member.size > size:
        raise InvalidSetError(
            f"{path}: the member {name!r} claims {member.size} bytes in a file of {size}"
        )


def check_info(path: Path, tars: Sequence[str], lengths: Sequence[int]) -> None:
    """Check `_info.json`, from which timm knows how many samples there are, against the rows.

    Args:
        path: the file. tars, lengths: names of the shards and how many rows each holds.

    Raises:
        InvalidSetError: not JSON, or it counts otherwise.
    """
    try:
        split = json.loads(path.read_bytes())["splits"]["train"]
        found = (list(split["filenames"]), list(split["shard_lengths"]), split["num_samples"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidSetError(f"{path} does not count the samples of the tars: {error!r}") from None
    wanted = (list(tars), list(lengths), sum(lengths))
    if found != wanted:
        raise InvalidSetError(f"{path} counts {found}, the tars hold {wanted}")
