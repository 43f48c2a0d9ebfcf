"""Reads and checks every image of a split, on a few threads, before anything is distilled.

Files that cannot be read never raise here: the scan goes through all of them and collects what is
amiss, with the reasons, so that the caller can list everything in one message.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
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

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["BadImage", "FileSlice", "Item", "ScanProgress", "Scanned", "scan"]

CHUNK = 128
"""Images per task of the thread pool: enough to hide the cost of a task, little to hold."""


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

    images: Tensor
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


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while part := list(islice(iterator, CHUNK)):
        yield part


def scan(
    items: Iterable[Item],
    count: int,
    *,
    channels: int | None,
    convert: bool,
    size: tuple[int, int] | None,
    progress: ScanProgress,
) -> Scanned:
    """Reads all `items` (at most `count`), in order, on a few threads; see `Scanned`.

    `channels` 1 or 3 is the declared number; an image of the other kind is converted if `convert`,
    else reported. None: grey if every image is grey, else RGB with grey images replicated.
    """
    result = Scanned(torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    store = _Store(count)
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

        for part in _chunks(items):
            # A bounded window: encoded bytes of a large Parquet file are never all in memory.
            waiting.append(pool.submit(_read_chunk, part, channels, convert, size))
            if len(waiting) > 2 * workers:
                take()
        while waiting:
            take()
    result.mixed_size = store.mixed
    if store.mixed is None and result.wrong_channels is None:
        result.images, result.labels = store.tensors()
        if store.replicated:
            result.rules["grey_to_rgb"] += store.replicated
    return result


class _Store:
    """One growing block of pixels; turns from grey to RGB when the first RGB image arrives."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._pixels: Pixels | None = None
        self._labels: list[int] = []
        self._first = ""
        self.replicated = 0
        self.mixed: tuple[str, tuple[int, int], str, tuple[int, int]] | None = None

    def add(self, where: str, label: int, pixels: Pixels) -> None:
        if self.mixed is not None:
            return
        if self._pixels is None:
            self._first = where
            self._pixels = np.empty((self._capacity, *pixels.shape), np.uint8)
        have, new = self._pixels.shape[2:], pixels.shape[1:]
        if have != new:
            self.mixed = self._first, (have[0], have[1]), where, (new[0], new[1])
            self._pixels = None  # the scan goes on for its list of bad files, without pixels
            return
        number = len(self._labels)
        if pixels.shape[0] > self._pixels.shape[1]:
            self._pixels = np.repeat(self._pixels, 3, axis=1)
            self.replicated = number
        elif pixels.shape[0] < self._pixels.shape[1]:
            self.replicated += 1
        self._pixels[number] = pixels
        self._labels.append(label)

    def tensors(self) -> tuple[Tensor, Tensor]:
        labels = torch.tensor(self._labels, dtype=torch.int64)
        if self._pixels is None:
            return torch.empty((0, 1, 0, 0), dtype=torch.uint8), labels
        pixels = self._pixels[: len(self._labels)]
        if len(pixels) < self._capacity:
            pixels = pixels.copy()  # let go of the rows that bad files left unused
        return torch.from_numpy(pixels), labels
