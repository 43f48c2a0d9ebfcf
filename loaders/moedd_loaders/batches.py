"""Epochs of fused batches from a set that stays on the device: no workers, no per-sample Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from moedd_loaders.blend import blend_images
from moedd_loaders.draws import key
from moedd_loaders.errors import UsageError
from moedd_loaders.partners import Ints

if TYPE_CHECKING:
    from moedd_loaders.dataset import DistilledDataset

__all__ = ["Batches"]

# Rows planned at a time: large enough to make planning cheap, small enough to stay in the cache.
_PLANNED = 4096


class Batches:
    """One epoch of `(images, labels)` batches per iteration; see `DistilledDataset.batches`."""

    def __init__(
        self,
        dataset: DistilledDataset,
        batch_size: int,
        device: torch.device | str | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected at least 1")
        self.dataset, self.batch_size = dataset, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.batch_transform = batch_transform
        try:
            self._images = dataset.images.to(device or "cpu")
            self._targets = dataset.served_targets.to(self._images.device)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UsageError(f"device {str(device)!r} cannot be used here: {error}") from error

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order()
        for images, labels in self._fused(order) if self._direct else self._transformed(order):
            if self.dataset.target_transform is not None:
                listed = labels.tolist() if labels.dim() == 1 else labels.unbind(0)
                labels = default_collate([self.dataset.target_transform(one) for one in listed])
            yield images, labels

    @property
    def _direct(self) -> bool:
        return self.dataset.transform is None and self.batch_transform is None

    def _order(self) -> Ints:
        n = len(self.dataset)
        number = self.dataset.served_counts.next_pass()
        order = np.arange(n)
        if self.shuffle:
            generator = torch.Generator().manual_seed(key(self.dataset.seed, 1 + number))
            order = torch.randperm(n, generator=generator).numpy()
        return order[: len(self) * self.batch_size]

    def _transformed(self, order: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            served = self.dataset.served_counts.take(index)
            yield self.dataset.serve(
                index, served, self._images, self._targets, self.batch_transform
            )

    def _fused(self, order: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        """Plans many batches at once; what is left per batch is the arithmetic."""
        dataset, device, size = self.dataset, self._images.device, self.batch_size
        per_batch = dataset.mix is not None and dataset.mix.lam == "batch"
        planned = size if per_batch else max(1, _PLANNED // size) * size
        for begin in range(0, len(order), planned):
            index = order[begin : begin + planned]
            plan = dataset.plan(index, dataset.served_counts.peek(index))
            rows = torch.from_numpy(np.column_stack([index, plan.partner])).to(device)
            weight = torch.from_numpy(plan.weight).to(device)
            box = None if plan.box is None else torch.from_numpy(plan.box).to(device)
            for start in range(0, len(index), size):
                part = slice(start, start + size)
                dataset.served_counts.count(index[part])
                yield (
                    blend_images(
                        self._images, rows[part], weight[part], None if box is None else box[part]
                    ),
                    dataset.blend_targets(self._targets, rows[part], weight[part]),
                )
