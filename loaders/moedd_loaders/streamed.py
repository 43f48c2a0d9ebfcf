"""Images read from tars when they are needed, decoded like those of a set in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moedd_loaders.adapt import Form
from moedd_loaders.decode import decode_cells
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import DecodeRule
from moedd_loaders.partners import Ints
from moedd_loaders.ranges import ByteRanges, Part

__all__ = ["CACHE_BYTES", "Place", "StreamedImages", "npy_prefix"]

CACHE_BYTES = 64 << 20
"""Stored pixels that each reading process keeps, in bytes."""


class Place:
    """Where each of n stored rows lies: in which file, from which byte on."""

    def __init__(self, n: int) -> None:
        self.names: list[str] = []
        self._file = np.full(n, -1, dtype=np.int32)
        self._start = np.full(n, -1, dtype=np.int64)

    def add(self, name: str, rows: range, starts: Ints) -> None:
        """Rows that lie in file `name`, from these bytes on."""
        self._file[rows.start : rows.stop] = len(self.names)
        self._start[rows.start : rows.stop] = starts
        self.names.append(name)

    def part(self, row: int, length: int) -> Part:
        """The range of one row."""
        start = int(self._start[row])
        return self.names[self._file[row]], start, start + length


class StreamedImages:
    """An `ImageSource` over the tars of a set; survives fork and pickling.

    Args:
        files: of the set.
        place: where each stored row's `.npy` member lies.
        rows: (N,) stored row of each training image.
        cells: (N,) which of its tiles.
        experts: (stored rows,) int64.
        rules: decode rule of each expert.
        fill: per channel, as in `decode`.
        form: what images are brought into.
        cache_bytes: most stored pixels to keep, the least recently used go first.
    """

    dtype = torch.float32

    def __init__(
        self,
        files: ByteRanges,
        place: Place,
        *,
        rows: Ints,
        cells: Ints,
        experts: Ints,
        rules: Mapping[int, DecodeRule],
        fill: Sequence[float],
        form: Form,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.files, self.place = files, place
        self._rows, self._cells = rows, cells.astype(np.int16)
        self._experts, self._rules, self._fill = experts.astype(np.int32), dict(rules), list(fill)
        self.form, self.cache_bytes = form, cache_bytes
        self.shape: tuple[int, ...] = (len(rows), form.channels, *form.size)
        self._prefix = npy_prefix(form.shape)
        self._length = len(self._prefix) + 4 * int(np.prod(form.shape))
        self._forget()

    def take(self, rows: Ints) -> Tensor:
        """(n, C, H, W) float32 of n training images, in unit space.

        Raises:
            InvalidSetError: a row is damaged. NetworkError: it cannot be fetched.
        """
        stored = self._rows[rows]
        pixels = self._stored(stored)
        taken = torch.empty(len(rows), *self.shape[1:])
        for expert, rule in self._rules.items():
            own = np.flatnonzero(self._experts[stored] == expert)
            if len(own):
                images = torch.stack([pixels[row] for row in stored[own].tolist()])
                cells = self._cells[rows[own]].tolist()
                taken[torch.from_numpy(own)] = self.form(
                    decode_cells(images, cells, rule, self._fill)
                )
        return taken

    def _stored(self, rows: Ints) -> dict[int, Tensor]:
        """Stored images by row, from the cache where they are in it."""
        wanted = dict.fromkeys(rows.tolist())
        with self._lock:
            found = {row: self._cache[row] for row in wanted if row in self._cache}
            for row in found:
                self._cache.move_to_end(row)
        missing = [row for row in wanted if row not in found]
        if not missing:
            return found
        parts = [self.place.part(row, self._length) for row in missing]
        try:
            fetched = self.files.read(parts)
        except FileNotFoundError as error:
            raise InvalidSetError(f"a tar of the set is missing: {error}") from None
        for row, part, data in zip(missing, parts, fetched, strict=True):
            found[row] = self._pixels(part, data)
        with self._lock:
            for row in missing:
                self._cache[row] = found[row]
            size = 4 * int(np.prod(self.form.shape))
            while len(self._cache) * size > self.cache_bytes:
                self._cache.popitem(last=False)
        return found

    def _pixels(self, part: Part, data: bytes) -> Tensor:
        """(C, H, W) float32 of an `.npy` member."""
        wrong = None
        if data.startswith(self._prefix):
            values = np.frombuffer(data, "<f4", offset=len(self._prefix))
            image = torch.from_numpy(values.astype(np.float32)).view(self.form.shape)
            if not bool(torch.isfinite(image).all()):
                wrong = "holds NaN or infinity"
        else:
            wrong = f"is not float32 {self.form.shape}"
        if wrong:
            name, start, _ = part
            raise InvalidSetError(
                f"{self.files.where(name)}: the .npy at byte {start} {wrong}: it was damaged or "
                "edited; fetch or make the set again"
            )
        return image

    def _forget(self) -> None:
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_cache"], state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def npy_prefix(shape: tuple[int, int, int]) -> bytes:
    """What an `.npy` file of float32 pixels of this shape begins with, up to the pixels."""
    buffer = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
