"""Where each row's exact pixels lie in the tars of a set, so that any row is one range away.

Tars have no table of contents: the members' headers are walked once, from one to the next, without
reading the pixels between them. A remote set's index is kept in `$MOEDD_HOME/cache/tar-index`, by
the tar's address and the hash that the manifest gives it, so it never gets stale.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import row_id
from moedd_loaders.ranges import ByteRanges
from moedd_loaders.resolve import home

__all__ = ["Shard", "check_sizes", "index_shards"]

Offsets = npt.NDArray[np.int64]

_BLOCK = 512
_FIELDS = ("cls", "json", "npy", "png")
# Rows below this size are walked in pieces of _PIECE: jumping over them would cost more requests.
_SMALL_ROW = 1 << 16
_PIECE = 1 << 20
_HEADS = 8 * _BLOCK
_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar of a set.

    Attributes:
        name: path inside the set. sha256, size: as the manifest has them.
        rows: which rows of the set it holds.
        expert: of all of them. labels, k: (rows,) int64 of each.
    """

    name: str
    sha256: str
    size: int
    rows: range
    expert: int
    labels: Offsets
    k: Offsets

    def ids(self) -> Iterator[str]:
        """The rows' ids, in order."""
        for label, k in zip(self.labels.tolist(), self.k.tolist(), strict=True):
            yield row_id(self.expert, label, k)


def check_sizes(files: ByteRanges, sizes: Mapping[str, int]) -> None:
    """Compare the tars' sizes with the manifest's, by name.

    Raises:
        InvalidSetError: one is missing or has another size.
    """

    def check(name: str) -> None:
        try:
            size = files.size(name)
        except FileNotFoundError:
            raise InvalidSetError(
                f"{files.where(name)} is missing: fetch or make the set again"
            ) from None
        if size not in (-1, sizes[name]):
            raise InvalidSetError(
                f"{files.where(name)} has {size} bytes, its manifest says {sizes[name]}: it "
                "was truncated or edited; fetch or make the set again"
            )

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(check, sizes))


def index_shards(files: ByteRanges, shards: Sequence[Shard], pixel_bytes: int) -> list[Offsets]:
    """For each tar, (rows,) int64: where the `.npy` member of each row begins.

    Args:
        pixel_bytes: size of every `.npy` member.

    Raises:
        InvalidSetError: a tar does not hold the rows that the manifest counts, as moedd
            writes them.
    """
    if not files.remote:
        return [_walk(files, shard, pixel_bytes) for shard in shards]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda shard: _cached(files, shard, pixel_bytes), shards))


def _cached(files: ByteRanges, shard: Shard, pixel_bytes: int) -> Offsets:
    # Both are part of the key: a set that claims another's hash cannot misplace that one's rows.
    told = f"{files.where(shard.name)}\n{shard.sha256}"
    path = home() / "cache" / "tar-index" / f"{sha256(told.encode()).hexdigest()}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if kept.dtype == np.int64 and kept.shape == (len(shard.rows),):
            return kept
    except (OSError, ValueError):
        pass
    offsets = _walk(files, shard, pixel_bytes)
    _keep(path, offsets)
    return offsets


def _keep(path: Path, offsets: Offsets) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.save(file, offsets, allow_pickle=False)
        os.replace(scratch, path)
    except OSError:  # a place to cache in is a convenience
        scratch.unlink(missing_ok=True)


def _walk(files: ByteRanges, shard: Shard, pixel_bytes: int) -> Offsets:
    window = _Window(files, shard)
    offsets = np.empty(len(shard.rows), dtype=np.int64)
    at = 0
    for row, key in enumerate(shard.ids()):
        start = at
        for field in _FIELDS:
            size = _member_size(window.get(at, _BLOCK), f"{key}.{field}")
            if size is None or (field == "npy" and size != pixel_bytes):
                raise InvalidSetError(
                    f"{files.where(shard.name)} has no {key}.{field} of the expected form at byte "
                    f"{at}: streaming needs the tars as moedd writes them; fetch the set again"
                )
            if field == "npy":
                offsets[row] = at + _BLOCK
            at += _BLOCK + -(-size // _BLOCK) * _BLOCK
        window.ahead = _PIECE if at - start < _SMALL_ROW else _HEADS
    return offsets


class _Window:
    """Small reads of one file, out of larger ones."""

    def __init__(self, files: ByteRanges, shard: Shard) -> None:
        self.files, self.name, self.end = files, shard.name, shard.size
        self.ahead = _HEADS
        self._start, self._data = 0, b""

    def get(self, start: int, length: int) -> bytes:
        if not self._start <= start <= self._start + len(self._data) - length:
            stop = max(min(start + self.ahead, self.end), start + length)
            self._data = self.files.read([(self.name, start, stop)])[0]
            self._start = start
        return self._data[start - self._start : start - self._start + length]


def _member_size(header: bytes, name: str) -> int | None:
    """Size of the member that this tar header describes; None unless it is a plain file `name`."""
    wanted = name.encode()
    if header[:100].rstrip(b"\0") != wanted or header[156:157] not in (b"0", b"\0"):
        return None
    digits = header[124:136].rstrip(b"\0 ")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None
