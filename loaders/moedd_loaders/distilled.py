"""A distilled set as a map-style data set: decoded, optionally fused, ready for any DataLoader."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moedd_loaders.adapt import EvalTransform, Form, check_dtype
from moedd_loaders.align import class_numbers
from moedd_loaders.checks import check_batch
from moedd_loaders.epochs import Epochs
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix, mix_for
from moedd_loaders.items import Items
from moedd_loaders.partners import Groups
from moedd_loaders.served import Served
from moedd_loaders.serving import ImageSource, Serving, Transform

if TYPE_CHECKING:
    from moedd_loaders.batches import Batches
    from moedd_loaders.manifest import Manifest

__all__ = ["DistilledDataset", "ImageSource"]


class DistilledDataset(Serving, Dataset[tuple[Any, ...]]):
    """Training images of a distilled set. `load_distilled` makes one from a set on disk.

    `ds[i]` is `(image, label)`: image float (C, H, W), transformed, normalised, fused, in this
    order (a partner is transformed like its anchor, then the two are mixed); label an `int`
    without fusion or with `same_class`, else float32 (classes,). Sets with soft labels give
    float32 (classes,) always. An epoch has every image as the anchor once.

    What is mixed with what depends on (seed, rank, sample, how often it was served) alone: it
    differs in every epoch, not with the batch size or the workers, and leaves global generators
    alone. Transforms draw from wherever they draw.

    Args:
        images: (N, C, H, W) float training images in unit space, or an `ImageSource` of them.
        labels: (N,) int64.
        experts: (N,) int64, which expert each image is of.
        classes: class names, in label order.
        mean, std: per channel, of the source in unit space.
        soft_labels: (N, classes) float32, used instead of `labels` where given.
        fuse: None (no fusion, integer labels), a key of `FUSE_MODES` ("none": no fusion, labels
            as float rows), or an `ExpertMix` (its generator is not used).
        transform: called with each image, a float (C, H, W) tensor in unit space.
        target_transform: called with each label just before it is handed out.
        normalize: subtract `mean`, divide by `std`; after `transform`.
        return_expert: items and batches end with the expert id of the (anchor) image.
        dtype: float type of the images handed out; that of `images` by default.
        seed: of the fusion, and of the order of `batches()`.
        form: how test images are brought into the form of `images`; nothing to do by default.
        manifest: of the set, if there is one.
        origin: where the set was found: "folder", "home", "bundled", "hub", "url"; "memory" without
            a set.

    Attributes (besides these arguments): `targets` (list of int), `class_to_idx`, `mix`
    (the `ExpertMix`, or None).

    Raises:
        UsageError (a ValueError): inconsistent arguments; fusion across experts with one expert.
    """

    def __init__(
        self,
        images: Tensor | ImageSource,
        labels: Tensor,
        experts: Tensor,
        *,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        soft_labels: Tensor | None = None,
        fuse: str | ExpertMix | None = None,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        normalize: bool = False,
        return_expert: bool = False,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        form: Form | None = None,
        manifest: Manifest | None = None,
        origin: str = "memory",
    ) -> None:
        check_batch(images, labels, experts, len(classes), "data set")
        if soft_labels is not None:
            check_batch(images, soft_labels, experts, len(classes), "data set")
        if len(mean) != images.shape[1] or len(std) != images.shape[1]:
            raise UsageError(
                f"{len(mean)} means and {len(std)} standard deviations for images of "
                f"{images.shape[1]} channels: give one of each per channel"
            )
        self.experts = experts
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.target_transform = target_transform
        self._normalize, self.return_expert, self.seed = normalize, return_expert, seed
        self.dtype = check_dtype(images.dtype if dtype is None else dtype)
        self.form = form or Form((images.shape[1], images.shape[2], images.shape[3]))
        self.manifest, self.origin = manifest, origin
        self.mix = mix_for(fuse, experts, len(classes))
        self.fuse = fuse
        self._keep(images, transform)
        # Copies, not views: handing a tensor to a spawned worker moves it and frees its old memory.
        self._experts = experts.cpu().numpy().copy()
        self.served_counts = Served(len(experts))
        self.epochs = Epochs(len(experts), self.served_counts.rank)
        self._set_labels(labels, soft_labels, classes)

    def _set_labels(
        self, labels: Tensor, soft_labels: Tensor | None, classes: Sequence[str]
    ) -> None:
        self.labels, self.soft_labels = labels, soft_labels
        self.classes = list(classes)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        self._labels = labels.cpu().numpy().copy()
        if self.mix is not None:
            by_class = self.mix.same_class
            self._groups = Groups(
                self._experts, self._labels if by_class else None, len(self.classes)
            )
            if by_class:  # whether each class has partners is known now: say so now
                everything = np.arange(len(labels))
                self.plan(everything, np.zeros_like(everything))

    @property
    def targets(self) -> list[int]:
        """Integer labels of all images, as torchvision's data sets have them."""
        return self.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._items([operator.index(index)], batched=False)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """A batch at once, as DataLoader's fetcher asks for it: B items as `ds[i]` gives them."""
        return self._items(indices, batched=True)

    def _items(self, indices: Sequence[int], batched: bool) -> list[tuple[Any, ...]]:
        index = np.array([operator.index(i) for i in indices], dtype=np.int64)
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(f"index {index[outside][0]} is out of range for {len(self)} images")
        index[index < 0] += len(self)
        if self.transform is not None and self._ends_with_transform:
            rows = torch.from_numpy(index)
            images: Any = [self.transform(image) for image in self._taken(self.images, rows)]
            labels = self.served_targets[rows]
        else:
            served, epoch = index, 0
            if self.mix is not None:
                served = self.served_counts.take(index)
                epoch = self.epochs.of(indices, batched, self.mix.off_epoch is not None)
            images, labels = self.serve(
                index, served, self.images, self.served_targets, epoch=epoch
            )
        parts: list[Any] = [images, labels]
        if self.return_expert:
            parts.append(torch.from_numpy(self._experts[index]))
        each = [part if isinstance(part, list) else _one_by_one(part) for part in parts]
        if self.target_transform is not None:
            each[1] = [self.target_transform(target) for target in each[1]]
        if self.target_transform is not None or isinstance(images, list):
            return list(zip(*each, strict=True))
        return Items(zip(*each, strict=True), tuple(parts))

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> Batches:
        """Batches straight from the decoded set, which is kept on `device`; no workers.

        Iterate over the result once per epoch. It gives `(images, labels)`: (B, C, H, W) float
        and (B,) int64, or (B, classes) float32 as for single items, with the same draws; with
        `return_expert` also (B,) int64 expert ids.

        In a distributed run (`torch.distributed` is initialised when iteration begins) every rank
        gets its share of each epoch: every image once over all ranks, equally many batches on each.

        Args:
            batch_size: at least 1; the last batch is smaller unless `drop_last`. Of each rank.
            device: where batches are wanted; the CPU by default.
            shuffle: a new order in every epoch, from the data set's seed.
            drop_last: leave an incomplete last batch out.
            batch_transform: an augmentation of whole batches, (B', C, H, W) -> the same, each image
                on its own; called with anchors and partners stacked, on `device`, after
                normalising and before mixing. Much faster than `transform`, which is called image
                by image here too.
        """
        from moedd_loaders.batches import Batches

        return Batches(self, batch_size, device, shuffle, drop_last, batch_transform)

    def numpy(self, *, channels_last: bool = False) -> tuple[np.ndarray, ...]:
        """One epoch in order as NumPy arrays, for JAX, scikit-learn and the like.

        Returns `(images, labels)`, with `return_expert` also the expert ids: images (N, C, H, W),
        or (N, H, W, C) with `channels_last`, float32 (also for bfloat16, which NumPy lacks); labels
        (N,) int64 or (N, classes) float32. Every call is the next epoch: fusion draws anew.
        """
        index = np.arange(len(self))
        served = self.served_counts.take(index) if self.mix else index
        epoch = self.epochs.begin()
        images, labels = self.serve(index, served, self.images, self.served_targets, epoch=epoch)
        images = images.cpu().float() if images.dtype == torch.bfloat16 else images.cpu()
        pixels = images.movedim(1, 3).contiguous().numpy() if channels_last else images.numpy()
        targets = labels.cpu().numpy()
        if self.target_transform is not None:
            rows = labels.tolist() if labels.dim() == 1 else labels.unbind(0)
            targets = np.stack([np.asarray(self.target_transform(row)) for row in rows])
        return (pixels, targets, self._experts.copy()) if self.return_expert else (pixels, targets)

    def test_transform(self) -> EvalTransform:
        """The transform that makes real test images match the images of this data set.

        Same size, channels, normalisation and dtype; see `EvalTransform` for what it takes. What
        `transform` does is not part of it: augmentation has no place in testing.
        """
        mean, std = (self.mean, self.std) if self.normalize else (None, None)
        return EvalTransform(self.form, mean, std, self.dtype)

    def align_to(self, class_names: Sequence[str]) -> DistilledDataset:
        """Number the classes as `class_names` does, by name; returns this data set, changed.

        Give the class list of the test set (`test_set.classes`): it may hold more classes than the
        set, and float labels then have that many columns.

        Raises:
            UsageError: a class of the set is not among the names.
        """
        numbers = torch.tensor(class_numbers(self.classes, class_names))
        soft = self.soft_labels
        if soft is not None:
            soft = soft.new_zeros(len(soft), len(class_names)).index_copy(1, numbers, soft)
        self._set_labels(numbers[self.labels], soft, class_names)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say that this epoch begins, from 0: draws and `off_epoch` go on as after so many.

        Call it at the start of every epoch, as one does for samplers: then only what is announced
        counts, however long a pass of your sampler is. Or call it once to resume: epochs are
        counted from there on. DataLoader workers hear of it, persistent ones too. Without any call
        epochs are counted from 0 (docs/loading.md says how).
        """
        if operator.index(epoch) < 0:
            raise UsageError(f"epoch is {epoch}, expected 0 or more")
        if self.epochs.set(epoch):
            self.served_counts.at_least(epoch)
        else:
            self.served_counts.set(epoch)

    def __repr__(self) -> str:
        name = self.manifest.name if self.manifest else "images in memory"
        fuse = self.mix.settings() if isinstance(self.fuse, ExpertMix) and self.mix else self.fuse
        return (
            f"DistilledDataset({name}, {len(self)} images of {tuple(self.images.shape[1:])}, "
            f"{len(self.classes)} classes, {len(self.experts.unique())} experts, fuse={fuse!r})"
        )


def _one_by_one(batch: Tensor) -> Sequence[Any]:
    """Images and label rows as tensors, numbers as Python's own."""
    return batch.tolist() if batch.dim() == 1 else batch.unbind(0)
