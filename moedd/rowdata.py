"""What evaluation networks are trained on: the images of a row, and their batches.

A *row* is one kind of training data: a distilled set (with or without fusion), the same number of
random real images under the same decode rules, or all real images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moedd.experts.mosaic import mosaics, shrink
from moedd.fusion import fusion_of
from moedd.limits import device_limit, memory_limit
from moedd.pixels import Pixels, size_in_bytes
from moedd.realdata import RealData
from moedd.streams import Streams
from moedd.train import Augment, Fetch
from moedd.zca import Whitening
from moedd_loaders.dataset import DistilledDataset
from moedd_loaders.decode import decode, decode_labels
from moedd_loaders.fuse import ExpertMix
from moedd_loaders.manifest import ExpertEntry, TilesDecode
from moedd_loaders.read import StoredSet
from moedd_loaders.serving import ImageSource


@dataclass(frozen=True)
class Row:
    """One line of an evaluation table.

    `variant` "distilled", "random" or "full"; `fuse` a public fusion string, with the parameter of
    its Beta distribution behind a colon where that is not 1 (`fusion_of`); `draw` numbers the
    random draws (0 for the others).
    """

    variant: str
    fuse: str = "none"
    draw: int = 0

    @property
    def title(self) -> str:
        """The row's name in tables."""
        if self.variant == "distilled":
            return "distilled" if self.fuse == "none" else f"distilled, fuse={self.fuse}"
        return {"random": "random real images", "full": "all real images"}[self.variant]


Images = tuple[Tensor | ImageSource, Tensor, Tensor]
"""Training images of a row float32 (N, C, H, W) in unit space, labels, expert ids."""


class UnitImages:
    """uint8 images as float32 in unit space, made when they are asked for: an `ImageSource`.

    With `whitening` they come in that space instead.
    """

    def __init__(self, pixels: Pixels, whitening: Whitening | None = None) -> None:
        self.pixels, self.whitening = pixels, whitening
        self.shape: tuple[int, ...] = tuple(pixels.shape)
        self.dtype = torch.float32

    def take(self, rows: np.ndarray) -> Tensor:
        """(n, C, H, W) float32 of these rows."""
        images = self.pixels[torch.from_numpy(rows)].float() / 255
        return images if self.whitening is None else self.whitening.whiten(images)

    def everything(self) -> Tensor:
        """All of them, as one tensor."""
        return self.take(np.arange(len(self.pixels)))


def whitened(images: Tensor | ImageSource, whitening: Whitening) -> Tensor | ImageSource:
    """Images of a row in whitened space."""
    if isinstance(images, Tensor):
        return whitening.whiten(images)
    assert isinstance(images, UnitImages)
    return UnitImages(images.pixels, whitening)


def distilled_images(stored: StoredSet) -> Images:
    """Decoded training images in unit space, labels, expert ids of a stored set."""
    source = stored.manifest.source
    images, labels, experts = [], [], []
    for entry in stored.manifest.experts:
        rows = stored.experts == entry.id
        made = decode(stored.images[rows], entry.decode, source.mean)
        images.append(made)
        target = stored.labels if stored.soft_labels is None else stored.soft_labels
        labels.append(decode_labels(target[rows], entry.decode))
        experts.append(torch.full((len(made),), entry.id))
    return torch.cat(images), torch.cat(labels), torch.cat(experts)


def random_images(experts: Sequence[ExpertEntry], real: RealData, streams: Streams) -> Images:
    """Random real images with the budget of a set's experts under their decode rules, in unit
    space.

    A tiles rule stores f*f shrunk real images (antialiased) in each stored image, so that the
    comparison has the same pixels to spend. No image is used twice while the class has others.
    """
    images, labels, ids = [], [], []
    size = (real.shape[1], real.shape[2])
    class_rows = real.train.class_rows(len(real.classes))
    taken = [0] * len(class_rows)
    orders = [
        rows[torch.randperm(len(rows), generator=streams.generator("class", c))]
        for c, rows in enumerate(class_rows)
    ]
    for entry in experts:
        rule = entry.decode
        factor = rule.factor if isinstance(rule, TilesDecode) else 1
        order = rule.order if isinstance(rule, TilesDecode) else "row-major"
        for c, count in enumerate(entry.stored_per_class):
            wanted = torch.arange(taken[c], taken[c] + count * factor**2) % len(orders[c])
            taken[c] += len(wanted)
            small = shrink(real.train.images[orders[c][wanted]].float() / 255, factor, "bilinear")
            stored = mosaics(list(small.split(count)), size, factor, order)
            made = decode(stored, rule, real.mean)
            images.append(made)
            labels.append(torch.full((len(made),), c))
            ids.append(torch.full((len(made),), entry.id))
    return torch.cat(images), torch.cat(labels), torch.cat(ids)


def full_images(real: RealData) -> Images:
    """All real training images, as one expert: a tensor where all of them as float32 take no more
    than real data may take in memory, else made batch by batch."""
    labels = real.train.labels
    images = UnitImages(real.train.images)
    small = 4 * size_in_bytes(images.pixels) <= memory_limit()
    return images.everything() if small else images, labels, torch.zeros_like(labels)


def row_images(row: Row, stored: StoredSet, real: RealData, seed: int) -> Images:
    """The training images of a row, in unit space."""
    if row.variant == "distilled":
        return distilled_images(stored)
    if row.variant == "random":
        streams = Streams(seed).scope("random", row.draw)
        return random_images(stored.manifest.experts, real, streams)
    return full_images(real)


class TrainingData:
    """Training images of a row as fetches for a `Trainer`, fused as the row says."""

    def __init__(
        self, row: Row, images: Images, real: RealData, seed: int, device: str = "cpu"
    ) -> None:
        pixels, labels, experts = images
        if isinstance(pixels, UnitImages) and device != "cpu":
            # On a device with room for all as floats they are put together there.
            fits = 4 * size_in_bytes(pixels.pixels) <= device_limit(device)
            pixels = pixels.everything() if fits else pixels
        soft = labels if labels.dim() == 2 else None
        hard = labels if soft is None else labels.argmax(1)
        self.plain = DistilledDataset(
            pixels, hard, experts, classes=real.classes, mean=real.mean, std=real.std,
            soft_labels=soft, normalize=True, seed=seed,
        )  # fmt: skip
        self.fused = self.plain
        mode, alpha = fusion_of(row.fuse)
        if mode != "none":
            mix = ExpertMix.named(mode, alpha=alpha)
            self.fused = DistilledDataset(
                pixels, hard, experts, classes=real.classes, mean=real.mean, std=real.std,
                soft_labels=soft, normalize=True, seed=seed, fuse=mix,
            )  # fmt: skip
        # The whole set lies on the device: batches are put together and augmented there. What does
        # not fit comes in batches.
        whole: Tensor | ImageSource = self.plain.images
        self.images = whole.to(device) if isinstance(whole, Tensor) else whole
        self.targets = self.plain.served_targets.to(device)

    def __len__(self) -> int:
        return len(self.plain)

    def fetch(self, rows: Tensor, epoch: int) -> Fetch:
        """The batch `rows` in its `epoch`-th serving."""
        index = rows.numpy()
        served = np.full_like(index, epoch)

        def batch(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
            ds = self.plain if plain else self.fused
            return ds.serve(index, served, self.images, self.targets, augment)

        return batch
