"""How a batch is made of the images of a data set: fetched, transformed, normalised, fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moedd_loaders.blend import blend_images, blend_labels
from moedd_loaders.draws import Draws, of_rank
from moedd_loaders.epochs import Epochs
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix
from moedd_loaders.partners import Groups, Ints
from moedd_loaders.plan import MixPlan, unmixed
from moedd_loaders.served import Served

__all__ = ["ImageSource", "Serving", "Transform"]

Transform = Callable[[Any], Any]


class ImageSource(Protocol):
    """Images that are fetched when they are needed (`streaming.py`)."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def take(self, rows: Ints) -> Tensor:
        """(n, C, H, W) float32 of the n rows, in unit space."""


class Serving:
    """The part of a `DistilledDataset` that it shares with `Batches`.

    `finished` says whether `images` is a tensor that needs nothing more before mixing.
    """

    finished: bool
    images: Any  # a tensor (N, C, H, W), or an `ImageSource` of a streamed set
    labels: Tensor
    soft_labels: Tensor | None
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    seed: int
    mix: ExpertMix | None
    served_counts: Served
    epochs: Epochs
    _normalize: bool
    _labels: Ints
    _experts: Ints
    _groups: Groups

    def _keep(self, images: Tensor | ImageSource, transform: Transform | None) -> None:
        self.images, self._transform = images, transform
        self.finished = isinstance(images, Tensor) and transform is None
        self._baked = self.finished and (self.normalize or images.dtype != self.dtype)
        if isinstance(images, Tensor) and self.finished:
            # Without a transform, what comes after it is done once, here.
            self.images = self._finish(images)

    @property
    def transform(self) -> Transform | None:
        """Called with each image. May be set later too, unless images are normalised already."""
        return self._transform

    @transform.setter
    def transform(self, transform: Transform | None) -> None:
        if self._baked:
            raise UsageError(
                "the transform was set on a data set whose images are normalised or in another "
                "dtype already, which come after it: give it to load_distilled(transform=...)"
            )
        self._transform = transform
        nothing_after = not self.normalize and self.images.dtype == self.dtype
        self.finished = isinstance(self.images, Tensor) and transform is None and nothing_after

    @property
    def normalize(self) -> bool:
        """Whether images are normalised; decided on loading."""
        return self._normalize

    @property
    def served_targets(self) -> Tensor:
        """(N,) int64, or (N, classes) float32 with soft labels."""
        return self.labels if self.soft_labels is None else self.soft_labels

    def normalized(self, images: Tensor) -> Tensor:
        """(image - mean) / std per channel; a new tensor."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def plan(
        self,
        index: Ints,
        served: Ints,
        size: tuple[int, int] | None = None,
        epoch: Ints | int | None = None,
    ) -> MixPlan:
        """What becomes of the samples `index`, each served `served` times before.

        `epoch`, of all or of each, decides whether fusion is over; without it, `served` does.
        """
        if self.mix is None:
            return unmixed(len(index))
        return self.mix.plan(
            Draws(of_rank(self.seed, self.served_counts.rank()), index, served),
            self._experts[index],
            self._labels[index],
            self._groups,
            size or (self.images.shape[-2], self.images.shape[-1]),
            served if epoch is None else epoch,
        )

    def serve(
        self,
        index: Ints,
        served: Ints,
        images: Tensor | ImageSource,
        targets: Tensor,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
        epoch: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One fused batch out of `images` and `targets` (the whole set, on any device)."""
        # Copies are not waited for: a GPU goes on with what it was given before.
        plan, device = self.plan(index, served, epoch=epoch), targets.device
        rows = torch.from_numpy(np.column_stack([index, plan.partner]))
        rows = rows.to(device, non_blocking=True)
        place = rows
        if not self.finished or batch_transform is not None:
            taken = self._prepared(images, rows.flatten(), device)
            images = taken if batch_transform is None else batch_transform(taken)
            place = torch.arange(len(images), device=device).view_as(rows)
            if plan.box is not None:  # another size has other boxes, of the same draws
                plan = self.plan(index, served, (images.shape[-2], images.shape[-1]), epoch)
        assert isinstance(images, Tensor)
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

    @property
    def _ends_with_transform(self) -> bool:
        """Nothing comes after the transform, so it may return whatever it likes."""
        return self.mix is None and not self.normalize and self.dtype == self.images.dtype

    def _finish(self, images: Tensor) -> Tensor:
        images = self.normalized(images) if self.normalize else images
        return images.to(self.dtype)

    def _taken(self, images: Tensor | ImageSource, rows: Tensor) -> Tensor:
        """(n, C, H, W): fresh copies of these rows."""
        if isinstance(images, Tensor):
            return images.index_select(0, rows.to(images.device))
        return images.take(rows.cpu().numpy())

    def _prepared(self, images: Tensor | ImageSource, rows: Tensor, device: torch.device) -> Tensor:
        """Rows on `device`, transformed, normalised, in their dtype."""
        taken = self._taken(images, rows)
        if self.finished:
            return taken
        if self.transform is not None:
            made = [self.transform(image) for image in taken]
            wrong = next((row for row in made if not _is_image(row)), None)
            if wrong is not None or len({row.shape for row in made}) > 1:
                given = type(wrong).__name__ if wrong is not None else "images of several shapes"
                raise UsageError(
                    f"the transform returned {given}, expected a float tensor (C, H, W), the same "
                    "shape for every image: end it with v2.Resize and v2.ToDtype(torch.float32, "
                    "scale=True)"
                )
            taken = torch.stack(made)
        return self._finish(taken.to(device))


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()
