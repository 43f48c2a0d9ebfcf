"""Where the pixels of real data lie: in memory, in a scratch file, or on the device.

A few images are a tensor. Many are written, while they are read and decoded, into a scratch file of
rows of C*H*W bytes, and batches are read from it by row number. It is read, not mapped: the kernel
caches it as it caches a mapping, but its pages are never counted as this process's memory, and a
failing disk is an error instead of the end of the process. The file has no name (it is unlinked
when it is made), so on a local disk it is gone when the process ends, however it ends.

`limits.py` says how many are many; MOEDD_SCRATCH names the scratch file's folder (default:
$MOEDD_HOME/scratch). The results are the same bytes wherever the pixels lie.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moedd.limits import device_limit, memory_limit
from moedd.ondevice import upload
from moedd_loaders.errors import DiskFullError, MoeddError, from_oserror
from moedd_loaders.resolve import home

__all__ = [
    "HostImages",
    "ImageFile",
    "ImageWriter",
    "Pixels",
    "in_batches",
    "on_device",
    "on_disk",
    "rows_of",
    "scratch_folder",
    "size_in_bytes",
    "subset",
]

BATCH_BYTES = 8 * 2**20
"""What goes through memory at once where all images are gone through."""

_CPU = torch.device("cpu")


class ImageFile:
    """Rows of uint8 (C, H, W) in an open file without a name."""

    def __init__(self, file: IO[bytes], shape: tuple[int, int, int]) -> None:
        self._file, self.shape = file, shape

    def read(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """uint8 (n, C, H, W) of the rows, each 0 or above. Neighbours are read in one go."""
        out = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        if not out.numel():
            return out
        size = out[0].numel()
        view = out.numpy().reshape(-1).data
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, end in pairwise(edges):
            self._fill(view[first * size : end * size], int(rows[first]) * size)
        return out

    def _fill(self, view: memoryview, offset: int) -> None:
        while len(view):
            # A position of its own for each read: threads and forked processes share the file.
            try:
                count = os.preadv(self._file.fileno(), [view], offset)
            except OSError as error:
                raise MoeddError(f"decoded real images cannot be read again ({error})") from error
            if not count:
                raise MoeddError(
                    "the scratch file of decoded real images is shorter than it was written: the "
                    "disk lost data; start the command again"
                )
            view, offset = view[count:], offset + count


@dataclass(frozen=True, eq=False)
class HostImages:
    """Images (n, C, H, W) uint8 that stay on the host; batches are handed out on `device`.

    `base` holds the pixels, `rows` (n,) int64 says which of them, in which order: subsets share
    them. `images[rows]` is a tensor, whatever `rows` is: int64 (host or device), a list, a slice.
    """

    base: Tensor | ImageFile
    rows: npt.NDArray[np.int64]
    device: torch.device = _CPU
    dtype = torch.uint8

    @property
    def shape(self) -> torch.Size:
        """(n, C, H, W)."""
        own = self.base.shape[1:] if isinstance(self.base, Tensor) else self.base.shape
        return torch.Size((len(self.rows), *own))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        if isinstance(index, int):
            return self[[index]][0]
        rows = self.rows[_plain(index)]
        if isinstance(self.base, Tensor):
            taken = self.base[torch.from_numpy(rows)]
        else:
            taken = self.base.read(rows)
        return upload(taken, self.device)

    def subset(self, rows: Tensor) -> HostImages:
        """The images `rows`, in that order; no pixel is copied."""
        return replace(self, rows=self.rows[_plain(rows)])

    def to(self, device: torch.device | str) -> HostImages:
        """The same images, handed out on `device`."""
        return replace(self, device=torch.device(device))


def _plain(index: slice | Sequence[int] | Tensor) -> slice | npt.NDArray[np.int64]:
    if isinstance(index, slice):
        return index
    return torch.as_tensor(index, dtype=torch.int64).cpu().numpy()


Pixels: TypeAlias = Tensor | HostImages
"""uint8 images (n, C, H, W): a tensor, or images that stay on the host."""


def size_in_bytes(images: Pixels) -> int:
    """Bytes of all images."""
    return images.shape.numel() * images.dtype.itemsize


def subset(images: Pixels, rows: Tensor) -> Pixels:
    """The images `rows` in that order: a copy of a tensor, a view of images on the host."""
    return images.subset(rows) if isinstance(images, HostImages) else images[rows]


def rows_of(images: Pixels, rows: Tensor) -> Tensor:
    """The images `rows` (host or device) as a tensor on the device where images are handed out."""
    if isinstance(images, HostImages):
        return images[rows]
    return images[upload(rows, images.device)]


def on_disk(images: Pixels) -> int:
    """Bytes of them that lie in a scratch file."""
    filed = isinstance(images, HostImages) and isinstance(images.base, ImageFile)
    return size_in_bytes(images) if filed else 0


def in_batches(images: Pixels) -> Iterator[Tensor]:
    """All images in order, some megabytes at a time."""
    each = max(1, images.shape[1:].numel())
    step = max(1, BATCH_BYTES // each)
    for start in range(0, len(images), step):
        yield images[start : start + step]


def on_device(images: Pixels, device: str, copies: int = 1) -> Pixels:
    """The images for work on `device`: there where `copies` of them take no more than
    `device_limit`, else left on the host. On the CPU they stay as they are."""
    if images.device.type == device:
        return images
    if copies * size_in_bytes(images) > device_limit(device):
        if isinstance(images, Tensor):
            images = HostImages(images, np.arange(len(images)))
        return images.to(device)
    if isinstance(images, Tensor):
        return upload(images, device)
    there = torch.empty(images.shape, dtype=images.dtype, device=device)
    done = 0
    for batch in in_batches(images):
        there[done : done + len(batch)] = upload(batch, device)
        done += len(batch)
    return there


def scratch_folder() -> Path:
    """Where scratch files are made."""
    return Path(os.environ.get("MOEDD_SCRATCH") or home() / "scratch").expanduser()


class ImageWriter:
    """Takes uint8 images (C, H, W) one after the other, in memory or into a scratch file.

    `capacity`: how many there will be at most. Raises DiskFullError, AuthError, UsageError (the
    scratch folder cannot be written to).
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], in_memory: bool) -> None:
        self.shape, self.count, self.in_memory = shape, 0, in_memory
        self._block: npt.NDArray[np.uint8] | None = None
        self._file: IO[bytes] | None = None
        if in_memory:
            self._block = np.empty((capacity, *shape), np.uint8)
        else:
            self._file = _scratch_file(capacity * int(np.prod(shape)))

    @classmethod
    def fitting(
        cls, capacity: int, shape: tuple[int, int, int], total: int | None = None
    ) -> ImageWriter:
        """One that keeps images in memory if `total` of them (`capacity` where a data set has no
        other split) may be there."""
        size = (total or capacity) * math.prod(shape)
        return cls(capacity, shape, in_memory=size <= memory_limit())

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        """The next image, of the writer's shape."""
        if self._block is not None:
            self._block[self.count] = pixels
        else:
            assert self._file is not None
            try:
                self._file.write(np.ascontiguousarray(pixels).data)
            except OSError as error:
                raise _unwritten(error) from error
        self.count += 1

    def finish(self) -> Pixels:
        """All images that were added; the writer takes no more."""
        if self._block is not None:
            block = self._block[: self.count]
            # Let go of the rows that were left unused.
            return torch.from_numpy(block.copy() if self.count < len(self._block) else block)
        assert self._file is not None
        try:
            self._file.flush()
        except OSError as error:
            raise _unwritten(error) from error
        return HostImages(ImageFile(self._file, self.shape), np.arange(self.count))


def _scratch_file(size: int) -> IO[bytes]:
    folder = scratch_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            # Said now, not after minutes of decoding.
            raise DiskFullError(
                f"decoded real images take {size / 1e9:.1f} GB in {folder} and {free / 1e9:.1f} GB "
                "are free there: free some space or name another folder in MOEDD_SCRATCH"
            )
        return tempfile.TemporaryFile(dir=folder, buffering=2**20)
    except DiskFullError:
        raise
    except OSError as error:
        raise _unwritten(error) from error


def _unwritten(error: OSError) -> Exception:
    where = f"{scratch_folder()} (MOEDD_SCRATCH names another folder)"
    return from_oserror(error, f"keeping decoded real images in {where}")
