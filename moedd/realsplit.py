"""What real data are once they are read: `RealData`, its splits, and their identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from moedd.ondevice import per_channel
from moedd.pixels import Pixels, in_batches, subset
from moedd_loaders.errors import DataError

__all__ = ["HOLDOUT", "RealData", "RealSplit", "fingerprint", "stratified_holdout"]

HOLDOUT = "one in five images of each class, chosen by a fixed hash of class and position"
"""How a test split is made where the data have none: the same in every run, whatever its seed."""


@dataclass(frozen=True)
class RealSplit:
    """Pixels uint8 (N, C, H, W), 0 = black and 255 = white, and class indices int64 (N,).

    Many images are not a tensor but stay in a file (`pixels.HostImages`), and a subset of them
    copies none.
    """

    images: Pixels
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def subset(self, index: Tensor | Sequence[int]) -> RealSplit:
        """The rows `index`, in that order."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        return RealSplit(subset(self.images, rows), self.labels[rows])

    def class_rows(self, classes: int) -> list[Tensor]:
        """For each class, the int64 row numbers of its images, ascending."""
        return [torch.nonzero(self.labels == label).flatten() for label in range(classes)]


@dataclass(frozen=True)
class RealData:
    """A data set that was read and everything a manifest has to say about it.

    `classes` are the names in label order, `class_order` the rule of that order. `mean` and `std`
    are per channel in unit space (pixel / 255). `fingerprint` covers classes and both splits.
    `license` is "unknown" unless a data card states one. `flip`: mirroring keeps the class.
    """

    data: str
    hub_id: str | None
    revision: str | None
    license: str
    classes: tuple[str, ...]
    train: RealSplit
    test: RealSplit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    fingerprint: str
    class_order: str
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return torch.bincount(self.train.labels, minlength=len(self.classes)).tolist()

    def subset(self, index: Tensor | Sequence[int]) -> RealSplit:
        """The training rows `index`, in that order."""
        return self.train.subset(index)

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 (pixel / 255 - mean) / std, on the device of `images`."""
        pixels = images.float() / 255
        return (pixels - per_channel(self.mean, pixels)) / per_channel(self.std, pixels)

    def require_per_class(self, n: int, what: str) -> None:
        """Raises DataError, naming the smallest class, unless every class has `n` images.

        `what` says in a few words what needs them, for example "10 images per class x 2 experts".
        """
        counts = self.class_counts()
        smallest = min(range(len(counts)), key=counts.__getitem__)
        if counts[smallest] >= n:
            return
        short = sum(count < n for count in counts)
        others = f" (and {short - 1} more classes fall short)" if short > 1 else ""
        raise DataError(
            f"class '{self.classes[smallest]}' of {self.data} has {counts[smallest]} training "
            f"images{others}, but {what} needs {n} per class: ask for fewer or add images"
        )


def fingerprint(classes: Sequence[str], *splits: RealSplit) -> str:
    """ "sha256:..." over class names, shapes, labels and pixels of the splits, in order."""
    head = {"classes": list(classes), "shapes": [list(split.images.shape) for split in splits]}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for split in splits:
        digest.update(split.labels.numpy().astype("<i8").tobytes())
        for batch in in_batches(split.images):
            digest.update(np.ascontiguousarray(batch.numpy()).data)
    return f"sha256:{digest.hexdigest()}"


def stratified_holdout(labels: Tensor, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(train rows, test rows), ascending: `HOLDOUT`, at least one of every class on each side.

    A hash orders the images of a class, not a random generator, so that the split depends on
    nothing but class index and position within the class.
    """
    train: list[int] = []
    test: list[int] = []
    for label, name in enumerate(classes):
        rows = torch.nonzero(labels == label).flatten().tolist()
        if len(rows) < 2:
            raise DataError(
                f"class '{name}' has {len(rows)} images, and without a test split at least 2 are "
                "needed, one of them to hold out: add images or give a test split"
            )
        ranked = sorted(range(len(rows)), key=lambda k: _rank(label, k))
        held = set(ranked[: max(1, round(len(rows) / 5))])
        for position, row in enumerate(rows):
            (test if position in held else train).append(row)
    return torch.tensor(sorted(train)), torch.tensor(sorted(test))


def _rank(label: int, position: int) -> bytes:
    return hashlib.sha256(f"moedd holdout {label} {position}".encode()).digest()
