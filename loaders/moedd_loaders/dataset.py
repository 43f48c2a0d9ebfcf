"""A distilled set as a map-style data set: decoded, optionally fused, ready for any DataLoader.

from moedd_loaders import load_distilled
ds = load_distilled("cifar10-idc-5x2", fuse="mixup")
image, label = ds[0]                      # float32 (C, H, W), float32 (classes,)
DataLoader(ds, batch_size=64, shuffle=True, num_workers=2)
for images, labels in ds.batches(64, device="cuda"): ...   # no worker, nothing copied
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moedd_loaders.blend import blend_images, blend_labels
from moedd_loaders.checks import check_batch
from moedd_loaders.draws import Draws
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix, MixPlan
from moedd_loaders.partners import Groups, Ints
from moedd_loaders.served import Served

if TYPE_CHECKING:
    from moedd_loaders.batches import Batches
    from moedd_loaders.manifest import Manifest
    from moedd_loaders.read import StoredSet

__all__ = ["DistilledDataset", "load_distilled"]

Transform = Callable[[Any], Any]


class DistilledDataset(Dataset[tuple[Any, Any]]):
    """Training images of a distilled set. `load_distilled` makes one from a set on disk.

    `ds[i]` is `(image, label)`: image float32 (C, H, W), transformed, normalised, fused, in this
    order (a partner is transformed like its anchor, then the two are mixed); label an `int`
    without fusion or with `same_class`, else float32 (classes,). Sets with soft labels give
    float32 (classes,) always. An epoch has every image as the anchor once.

    What is mixed with what depends on (seed, sample, how often it was served) alone: it differs
    in every epoch, not with the batch size or the workers, and leaves global generators alone.
    Transforms draw from wherever they draw.

    Args:
        images: (N, C, H, W) float32 training images in unit space.
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
        seed: of the fusion, and of the order of `batches()`.
        manifest: of the set, if there is one.
        origin: where the set was found: "folder", "home", "bundled", "hub", "url"; "memory"
            without a set.

    Attributes (besides these arguments): `targets` (list of int), `class_to_idx`, `mix`
    (the `ExpertMix`, or None).

    Raises:
        UsageError (a ValueError): inconsistent arguments; fusion across experts with one expert.
    """

    def __init__(
        self,
        images: Tensor,
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
        seed: int = 0,
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
        self.labels, self.experts, self.soft_labels = labels, experts, soft_labels
        self.classes = list(classes)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.transform, self.target_transform = transform, target_transform
        self.normalize, self.seed = normalize, seed
        self.manifest, self.origin = manifest, origin
        self.mix = _as_mix(fuse, experts, len(self.classes))
        self.fuse = fuse
        # Without a transform normalising commutes with everything after it: done once, here.
        self.images = self.normalized(images) if normalize and transform is None else images
        # Copies, not views: handing a tensor to a spawned worker moves it and frees its old memory.
        self._labels, self._experts = (part.cpu().numpy().copy() for part in (labels, experts))
        self.served_counts = Served(len(images))
        if self.mix is not None:
            by_class = self.mix.same_class
            self._groups = Groups(
                self._experts, self._labels if by_class else None, len(self.classes)
            )
            if by_class:  # whether each class has partners is known now: say so now
                everything = np.arange(len(images))
                self.plan(everything, np.zeros_like(everything))

    @property
    def targets(self) -> list[int]:
        """Integer labels of all images, as torchvision's data sets have them."""
        return self.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """A batch at once, as DataLoader's fetcher asks for it: B pairs as `ds[i]` gives them."""
        index = np.array([operator.index(i) for i in indices], dtype=np.int64)
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(f"index {index[outside][0]} is out of range for {len(self)} images")
        index[index < 0] += len(self)
        if self.mix is None and self.transform is not None and not self.normalize:
            # Nothing comes after the transform: it may return whatever it likes.
            images: Any = [self.transform(self.images[i].clone()) for i in index]
            labels = self.served_targets[torch.from_numpy(index)]
        else:
            served = self.served_counts.take(index) if self.mix else index
            images, labels = self.serve(index, served, self.images, self.served_targets)
        targets = labels.tolist() if labels.dim() == 1 else list(labels.unbind(0))
        if self.target_transform is not None:
            targets = [self.target_transform(target) for target in targets]
        return list(zip(images, targets, strict=True))

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

        Iterate over the result once per epoch. It gives `(images, labels)`: (B, C, H, W) float32
        and (B,) int64, or (B, classes) float32 as for single items, with the same draws.

        Args:
            batch_size: at least 1; the last batch is smaller unless `drop_last`.
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

    def set_epoch(self, epoch: int) -> None:
        """Draw as after `epoch` full epochs, for resuming. Not needed from epoch to epoch."""
        if operator.index(epoch) < 0:
            raise UsageError(f"epoch is {epoch}, expected 0 or more")
        self.served_counts.set(epoch)

    def __repr__(self) -> str:
        name = self.manifest.name if self.manifest else "images in memory"
        fuse = self.mix.settings() if isinstance(self.fuse, ExpertMix) and self.mix else self.fuse
        return (
            f"DistilledDataset({name}, {len(self)} images of {tuple(self.images.shape[1:])}, "
            f"{len(self.classes)} classes, {len(self.experts.unique())} experts, fuse={fuse!r})"
        )

    # What follows is shared with `Batches`.

    @property
    def served_targets(self) -> Tensor:
        """(N,) int64, or (N, classes) float32 with soft labels."""
        return self.labels if self.soft_labels is None else self.soft_labels

    def normalized(self, images: Tensor) -> Tensor:
        """(image - mean) / std per channel; a new tensor."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def plan(self, index: Ints, served: Ints, size: tuple[int, int] | None = None) -> MixPlan:
        """What becomes of the samples `index`, each served `served` times before."""
        if self.mix is None:
            nobody = np.empty((len(index), 0), np.int64)
            return MixPlan(nobody, np.ones((len(index), 1), np.float32), np.zeros(len(index), bool))
        return self.mix.plan(
            Draws(self.seed, index, served),
            self._experts[index],
            self._labels[index],
            self._groups,
            size or (self.images.shape[-2], self.images.shape[-1]),
        )

    def serve(
        self,
        index: Ints,
        served: Ints,
        images: Tensor,
        targets: Tensor,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One fused batch out of `images` and `targets` (the whole set, on any device)."""
        plan = self.plan(index, served)
        # Not waited for: a GPU goes on with what it was given before.
        device = images.device
        rows = torch.from_numpy(np.column_stack([index, plan.partner]))
        rows = rows.to(device, non_blocking=True)
        place = rows
        if self.transform is not None or batch_transform is not None:
            images = self._transformed(images[rows.flatten()], batch_transform)
            place = torch.arange(len(images), device=images.device).view_as(rows)
            if plan.box is not None:  # another size has other boxes, of the same draws
                plan = self.plan(index, served, (images.shape[-2], images.shape[-1]))
        weight = torch.from_numpy(plan.weight).to(device, non_blocking=True)
        box = None
        if plan.box is not None:
            box = torch.from_numpy(plan.box).to(device, non_blocking=True)
        return blend_images(images, place, weight, box), self.blend_targets(targets, rows, weight)

    def blend_targets(self, targets: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Labels (B,) or (B, classes) of a batch: (B, 1 + M) rows of the set and their weights."""
        mix = self.mix
        kept = mix is None or (mix.same_class and mix.mode != "none" and targets.dim() == 1)
        if kept:
            return targets.index_select(0, rows[:, 0])
        return blend_labels(targets, rows, weight, len(self.classes))

    def _transformed(
        self, images: Tensor, batch_transform: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Images (fresh copies) through `transform`, normalisation and `batch_transform`."""
        if self.transform is not None:
            rows = [self.transform(image) for image in images]
            wrong = next((row for row in rows if not _is_image(row)), None)
            if wrong is not None or len({row.shape for row in rows}) > 1:
                given = type(wrong).__name__ if wrong is not None else "images of several shapes"
                raise UsageError(
                    f"the transform returned {given}, expected a float tensor (C, H, W), the same "
                    "shape for every image: end it with v2.Resize and v2.ToDtype(torch.float32, "
                    "scale=True)"
                )
            images = torch.stack(rows)
            if self.normalize:
                images = self.normalized(images)
        if batch_transform is not None:
            images = batch_transform(images)
        return images


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def _as_mix(fuse: str | ExpertMix | None, experts: Tensor, num_classes: int) -> ExpertMix | None:
    """The transform that `fuse` means, if this set has the experts that it needs."""
    if fuse is None:
        return None
    mix = fuse if isinstance(fuse, ExpertMix) else ExpertMix.named(fuse, num_classes)
    if mix.num_classes not in (None, num_classes):
        raise UsageError(
            f"fuse is an ExpertMix of {mix.num_classes} classes and the set has {num_classes}: "
            f"use ExpertMix({num_classes}, ...)"
        )
    present = experts.unique().tolist()
    if mix.mode == "cross" and mix.fallback == "error" and len(present) < 2:
        shown = f"fuse={fuse!r}" if isinstance(fuse, str) else 'mode "cross"'
        raise UsageError(
            f"{shown} mixes images of different experts and there is only expert {present[0]}: "
            'use fuse="vanilla" (any two images) or fuse="none" (no mixing)'
        )
    return mix


def load_distilled(
    name: str | os.PathLike[str],
    *,
    fuse: str | ExpertMix | None = None,
    transform: Transform | None = None,
    target_transform: Transform | None = None,
    normalize: bool = False,
    experts: Sequence[int] | None = None,
    decode: bool = True,
    seed: int = 0,
    verify: bool = True,
    offline: bool | None = None,
) -> DistilledDataset:
    """Load a distilled set by name, folder or address.

    Args:
        name: a folder that holds a set, or the name of a set in `$MOEDD_HOME/sets` or of a bundled
            one, looked up in this order; "ns/name" or "ns/name@revision" on the Hub; "s3://..." or
            another URL that fsspec reads.
        fuse, transform, target_transform, normalize, seed: see `DistilledDataset`; in short, fuse
            is None, "none", "mixup" (across experts), "vanilla", "same", "cutmix", "dirichlet".
        experts: ids of the experts to load; all by default.
        decode: False gives stored images as they are, undecoded tiles included.
        verify: compare the file's sha256 with the manifest.
        offline: for sets that are not on this machine: True takes the copy fetched before and
            never uses the network, None does so where the network fails, False never.

    Raises:
        SetNotFoundError: no such set; says where it looked.
        AuthError, NetworkError, ConflictError: a set on the Hub that is private or gated, that
            cannot be reached, or whose tag was moved.
        InvalidSetError: the set is damaged, edited, or of a newer format.
        UsageError: wrong arguments, such as `fuse="mixup"` with a single expert.
    """
    from moedd_loaders.manifest import read_manifest
    from moedd_loaders.read import read_tensors
    from moedd_loaders.resolve import resolve

    found = resolve(name, offline=offline)
    manifest = read_manifest(found.folder)
    chosen = _chosen(experts, [entry.id for entry in manifest.experts], manifest.name)
    stored = read_tensors(found.folder, manifest, verify)
    images, labels, expert_ids, soft = _training_rows(stored, chosen, decode)
    return DistilledDataset(
        images,
        labels,
        expert_ids,
        classes=manifest.source.classes,
        mean=manifest.source.mean,
        std=manifest.source.std,
        soft_labels=soft,
        fuse=fuse,
        transform=transform,
        target_transform=target_transform,
        normalize=normalize,
        seed=seed,
        manifest=manifest,
        origin=found.origin,
    )


def _chosen(experts: Sequence[int] | None, known: list[int], name: str) -> list[int]:
    if experts is None:
        return known
    if isinstance(experts, (str, int)) or not all(
        isinstance(e, (int, np.integer)) for e in experts
    ):
        raise UsageError(f"experts is {experts!r}, expected a list of expert ids such as [0]")
    missing = [int(e) for e in experts if e not in known]
    if missing or not len(experts):
        given = f"no expert {missing[0]}" if missing else "no expert for an empty list"
        raise UsageError(f"{name} has {given}: choose among {known}")
    return [e for e in known if e in set(experts)]


def _training_rows(
    stored: StoredSet, experts: list[int], decode: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Images, labels, expert ids and soft labels of the chosen experts, decoded by their rules."""
    from moedd_loaders.decode import decode as training_images
    from moedd_loaders.decode import decode_index

    images, labels, ids, soft = [], [], [], []
    for entry in stored.manifest.experts:
        if entry.id not in experts:
            continue
        own = stored.experts == entry.id
        part = stored.images[own]
        index = torch.arange(len(part))
        if decode:
            part = training_images(part, entry.decode, stored.manifest.source.mean)
            index = decode_index(len(index), entry.decode)
        images.append(part)
        labels.append(stored.labels[own][index])
        ids.append(torch.full((len(index),), entry.id))
        if stored.soft_labels is not None:
            soft.append(stored.soft_labels[own][index])
    return torch.cat(images), torch.cat(labels), torch.cat(ids), torch.cat(soft) if soft else None
