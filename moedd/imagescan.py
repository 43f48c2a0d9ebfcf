"""Reads and checks every image of a split, on a few threads, before anything is distilled.

Files that cannot be read never raise here: the scan goes through all of them and collects what is
amiss, with the reasons, so that the caller can list everything in one message.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moedd.imageread import (
    Pixels,
    UnreadableImageError,
    decode_image,
    fit_channels,
    fit_size,
)
from moedd.pixels import ImageWriter, in_batches
from moedd.pixels import Pixels as StoredPixels

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["BadImage", "FileSlice", "Item", "ScanProgress", "Scanned", "scan"]

CHUNK, CHUNK_BYTES = 128, 4 * 2**20
"""Images per task of the thread pool, and bytes of them, decoded or encoded: enough to hide the
cost of a task, little to hold."""


@dataclass(frozen=True)
class FileSlice:
    """`size` bytes of the file `path` from `offset` on: a member of an uncompressed tar."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Item:
    """One encoded image: `where` names it to people, `label` is its class index."""

    where: str
    label: int
    data: bytes | Path | FileSlice


class ScanProgress:
    """A progress bar on stderr that appears only when a scan takes longer than `after` seconds."""

    def __init__(self, total: int, text: str = "Reading images", after: float = 2.0) -> None:
        self._total, self._text, self._after = total, text, after
        self._done = 0
        self._start = time.monotonic()
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> ScanProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def shown(self) -> bool:
        """Whether the bar has appeared."""
        return self._bar is not None

    def advance(self, count: int) -> None:
        """Counts `count` more images as read."""
        self._done += count
        if self._bar is None:
            if time.monotonic() - self._start < self._after:
                return
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
            )
            self._task = self._bar.add_task(self._text, total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=self._done)


@dataclass(frozen=True)
class BadImage:
    """An item that could not be decoded, and why."""

    where: str
    reason: str


@dataclass
class Scanned:
    """What a scan found: pixels (N, C, H, W) uint8, labels (N,) int64, and everything amiss.

    `images` is empty (N = 0) where a fault forbids stacking. `mixed_size`: two items and their
    sizes, if sizes differ. `wrong_channels`: the first item without the declared channels, and
    how many there are.
    """

    images: StoredPixels
    labels: Tensor
    read: int = 0
    bad: list[BadImage] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    mixed_size: tuple[str, tuple[int, int], str, tuple[int, int]] | None = None
    wrong_channels: tuple[str, int] | None = None


@dataclass
class _Chunk:
    kept: list[tuple[str, int, Pixels]] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def _bytes_of(item: Item) -> bytes:
    try:
        if isinstance(item.data, Path):
            return item.data.read_bytes()
        if isinstance(item.data, FileSlice):
            with item.data.path.open("rb") as file:
                file.seek(item.data.offset)
                return file.read(item.data.size)
    except OSError as error:
        raise UnreadableImageError(error.strerror or type(error).__name__) from error
    return item.data


def _read_chunk(
    items: list[Item], channels: int | None, convert: bool, size: tuple[int, int] | None
) -> _Chunk:
    chunk = _Chunk()
    for item in items:
        try:
            decoded = decode_image(_bytes_of(item))
        except UnreadableImageError as error:
            chunk.bad.append(BadImage(item.where, str(error)))
            continue
        pixels, rules = decoded.pixels, list(decoded.rules)
        if channels is not None and pixels.shape[0] != channels:
            if not convert:
                chunk.wrong.append(item.where)
                continue
            pixels, rule = fit_channels(pixels, channels)
            rules += [rule] if rule else []
        if size is not None:
            pixels, rule = fit_size(pixels, size)
            rules += [rule] if rule else []
        chunk.rules.update(rules)
        chunk.kept.append((item.where, item.label, pixels))
    return chunk


def _chunks(items: Iterable[Item], most: Callable[[], int]) -> Iterator[list[Item]]:
    """Lists of at most `most()` items, and of not much more than `CHUNK_BYTES` encoded bytes."""
    part: list[Item] = []
    held = 0
    for item in items:
        part.append(item)
        held += len(item.data) if isinstance(item.data, bytes) else 0
        if len(part) >= most() or held >= CHUNK_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def scan(
    items: Iterable[Item],
    count: int,
    *,
    channels: int | None,
    convert: bool,
    size: tuple[int, int] | None,
    progress: ScanProgress,
    total: int | None = None,
) -> Scanned:
    """Reads all `items` (at most `count`), in order, on a few threads; see `Scanned`.

    `total`: how many images the data set has in all its splits, which decides whether it is kept
    in memory. Only a few tasks' images are in memory beside those.
    `channels` 1 or 3 is the declared number; an image of the other kind is converted if `convert`,
    else reported. None: grey if every image is grey, else RGB with grey images replicated.
    """
    result = Scanned(torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    store = _Store(count, total or count)
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Chunk]] = deque()

        def take() -> None:
            chunk = waiting.popleft().result()
            result.bad += chunk.bad
            result.rules.update(chunk.rules)
            if chunk.wrong:
                first, number = result.wrong_channels or (chunk.wrong[0], 0)
                result.wrong_channels = first, number + len(chunk.wrong)
            for where, label, pixels in chunk.kept:
                result.read += 1
                store.add(where, label, pixels)
            progress.advance(len(chunk.kept) + len(chunk.bad) + len(chunk.wrong))

        for part in _chunks(items, store.chunk):
            # A bounded window: encoded bytes of a large Parquet file are never all in memory.
            waiting.append(pool.submit(_read_chunk, part, channels, convert, size))
            while len(waiting) > (2 * workers if store.known else 0):
                take()
        while waiting:
            take()
    result.mixed_size = store.mixed
    _give_back()
    if store.mixed is None and result.wrong_channels is None:
        result.images, result.labels = store.tensors()
        if store.replicated:
            result.rules["grey_to_rgb"] += store.replicated
    return result


def _give_back() -> None:
    """Let Arrow return what a Parquet file's pages took: it would keep it for its next file."""
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()


class _Store:
    """Pixels one after the other; turns from grey to RGB when the first RGB image arrives."""

    def __init__(self, capacity: int, total: int) -> None:
        self._capacity, self._total = capacity, total
        self._writer: ImageWriter | None = None
        self._labels: list[int] = []
        self._first = ""
        self.replicated = 0
        self.mixed: tuple[str, tuple[int, int], str, tuple[int, int]] | None = None

    @property
    def known(self) -> bool:
        """Whether an image has told the size of all."""
        return self._writer is not None or self.mixed is not None

    def chunk(self) -> int:
        """Images to decode in one task: one, until it is known how large they are."""
        if self._writer is None:
            return CHUNK if self.mixed is not None else 1
        return max(1, min(CHUNK, CHUNK_BYTES // math.prod(self._writer.shape)))

    def add(self, where: str, label: int, pixels: Pixels) -> None:
        if self.mixed is not None:
            return
        channels, height, width = pixels.shape
        if self._writer is None:
            self._first = where
            self._writer = self._begun((channels, height, width))
        have = self._writer.shape
        if have[1:] != (height, width):
            self.mixed = self._first, (have[1], have[2]), where, (height, width)
            self._writer = None  # the scan goes on for its list of bad files, without pixels
            return
        if channels > have[0]:
            self._replicate()
        elif channels < have[0]:
            self.replicated += 1
            pixels = np.repeat(pixels, 3, axis=0)
        self._writer.add(pixels)
        self._labels.append(label)

    def _begun(self, shape: tuple[int, int, int]) -> ImageWriter:
        return ImageWriter.fitting(self._capacity, shape, self._total)

    def _replicate(self) -> None:
        """All images so far were grey, and this is no grey data set."""
        assert self._writer is not None
        _, height, width = self._writer.shape
        grey, self._writer = self._writer.finish(), self._begun((3, height, width))
        for batch in in_batches(grey):
            for pixels in batch.numpy():
                self._writer.add(np.repeat(pixels, 3, axis=0))
        self.replicated = len(grey)

    def tensors(self) -> tuple[StoredPixels, Tensor]:
        labels = torch.tensor(self._labels, dtype=torch.int64)
        if self._writer is None:
            return torch.empty((0, 1, 0, 0), dtype=torch.uint8), labels
        return self._writer.finish(), labels
