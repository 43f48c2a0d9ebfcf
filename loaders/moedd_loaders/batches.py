"""Epochs of fused batches from a set that stays on the device: no workers, no per-sample Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from moedd_loaders.blend import blend_images
from moedd_loaders.draws import key
from moedd_loaders.errors import UsageError
from moedd_loaders.partners import Ints
from moedd_loaders.ranks import rank_and_world

if TYPE_CHECKING:
    from moedd_loaders.distilled import DistilledDataset

__all__ = ["Batches", "shares"]

# Rows planned at a time: large enough to make planning cheap, small enough to stay in the cache.
_PLANNED = 4096

Batch = tuple[Ints, Tensor, Tensor]
"""Rows of the set, their images, their labels."""


class Batches:
    """One epoch of batches per iteration; see `DistilledDataset.batches`."""

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
        self._kept: _Kept | None = None
        self._settle()
        where = device or "cpu"
        try:
            self._source = dataset.served_targets
            self._targets = self._source.to(where)
            images = dataset.images
            self._images = images.to(where) if isinstance(images, Tensor) else images
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UsageError(f"device {str(device)!r} cannot be used here: {error}") from error

    def _settle(self) -> None:
        """Which share is this process's: as it is now, a process group may begin at any time."""
        self.rank, self.world = rank_and_world()
        if len(self.dataset) < self.world:
            raise UsageError(
                f"{len(self.dataset)} images for {self.world} processes: each needs one at least"
            )

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(shares(len(self.dataset), self.batch_size, rank, world, self.drop_last))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        dataset = self.dataset
        self._settle()
        if dataset.served_targets is not self._source:  # numbered anew by `align_to`
            self._source, self._kept = dataset.served_targets, None
            self._targets = self._source.to(self._targets.device)
        ends = dataset.mix is not None and dataset.mix.off_epoch is not None
        number, epoch = dataset.served_counts.next_pass(), dataset.epochs.begin(tell=ends)
        for index, images, labels in self._served(number, epoch if ends else number):
            if dataset.target_transform is not None:
                listed = labels.tolist() if labels.dim() == 1 else labels.unbind(0)
                labels = default_collate([dataset.target_transform(one) for one in listed])
            if dataset.return_expert:
                yield images, labels, dataset.experts[torch.from_numpy(index)].to(images.device)
            else:
                yield images, labels

    @property
    def _resident(self) -> bool:
        return isinstance(self.dataset.images, Tensor)

    def _served(self, number: int, epoch: int) -> Iterator[Batch]:
        if not self._resident:
            return self._ahead(self._order(number), epoch)
        if not self.dataset.finished or self.batch_transform is not None:
            return self._transformed(self._order(number), epoch)
        mix = self.dataset.mix
        if mix is not None and mix.lam == "batch":  # the first row of a batch decides
            return self._fused(number, epoch, 1)
        several = _PLANNED // len(self.dataset)
        if several < 2 or sum(self._sizes()) != len(self.dataset):
            return self._fused(number, epoch, max(1, _PLANNED // self.batch_size))
        return self._planned_before(number, epoch, several)

    def _sizes(self) -> list[int]:
        return shares(len(self.dataset), self.batch_size, self.rank, self.world, self.drop_last)

    def _order(self, number: int) -> Ints:
        """Rows of this rank's epoch `number`, `_sizes` in all."""
        n, total = len(self.dataset), sum(self._sizes())
        order = np.arange(n)
        if self.shuffle:
            generator = torch.Generator().manual_seed(key(self.dataset.seed, 1 + number))
            order = torch.randperm(n, generator=generator).numpy()
        order = order[self.rank :: self.world]
        return order[:total] if len(order) >= total else np.resize(order, total)

    def _parts(self, order: Ints) -> Iterator[Ints]:
        ends = np.cumsum(self._sizes())
        for start, end in zip(np.concatenate([[0], ends]), ends, strict=False):
            yield order[start:end]

    def _transformed(self, order: Ints, epoch: int) -> Iterator[Batch]:
        for index in self._parts(order):
            yield self._serve(index, self.dataset.served_counts.take(index), epoch)

    def _ahead(self, order: Ints, epoch: int) -> Iterator[Batch]:
        """The next batch is fetched while this one is in use."""
        with ThreadPoolExecutor(1) as pool:
            coming: Any = None
            for index in self._parts(order):
                served = self.dataset.served_counts.take(index)
                ready, coming = coming, pool.submit(self._serve, index, served, epoch)
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()

    def _serve(self, index: Ints, served: Ints, epoch: int) -> Batch:
        images, labels = self.dataset.serve(
            index, served, self._images, self._targets, self.batch_transform, epoch
        )
        return index, images, labels

    def _fused(self, number: int, epoch: int, together: int) -> Iterator[Batch]:
        """Plans `together` batches at once; what is left per batch is the arithmetic."""
        order, sizes, begin = self._order(number), self._sizes(), 0
        for first in range(0, len(sizes), together):
            group = sizes[first : first + together]
            index = order[begin : begin + sum(group)]
            begin += len(index)
            planned = self._plan(index, self.dataset.served_counts.peek(index), epoch)
            yield from self._blended(planned, 0, group)

    def _planned_before(self, number: int, epoch: int, several: int) -> Iterator[Batch]:
        """Plans `several` epochs at once: a small one costs more to plan than to blend."""
        kept, state = self._kept, (epoch - number, *self._state())
        if kept is None or not kept.holds(number, state, self.dataset.served_counts.all()):
            orders = [self._order(number + ahead) for ahead in range(several)]
            index = np.concatenate(orders)
            before = self.dataset.served_counts.all()
            later = np.repeat(np.arange(several), len(orders[0]))
            plan = self._plan(index, before[index] + later, epoch + later)
            kept = _Kept(number, several, state, before, plan)
            self._kept = kept
        sizes = self._sizes()
        return self._blended(kept.plan, (number - kept.first) * sum(sizes), sizes)

    def _state(self) -> tuple[Any, ...]:
        """All that plans depend on, besides the counts."""
        mix = self.dataset.mix
        settings = () if mix is None else tuple(mix.settings().values())
        rank = self.dataset.served_counts.rank()
        return self.dataset.seed, rank, self.shuffle, self._sizes(), settings

    def _plan(self, index: Ints, served: Ints, epoch: Ints | int) -> _Planned:
        plan, device = self.dataset.plan(index, served, epoch=epoch), self._targets.device
        parts = (np.column_stack([index, plan.partner]), plan.weight, plan.box)
        rows, weight, box = (_sent(part, device) for part in parts)
        assert rows is not None
        assert weight is not None
        labels = self.dataset.blend_targets(self._targets, rows, weight)
        return _Planned(index, rows, weight, box, labels)

    def _blended(self, plan: _Planned, start: int, sizes: list[int]) -> Iterator[Batch]:
        images = self._images
        assert isinstance(images, Tensor)
        for size in sizes:
            part = slice(start, start + size)
            start += size
            self.dataset.served_counts.count(plan.index[part])
            box = None if plan.box is None else plan.box[part]
            mixed = blend_images(images, plan.rows[part], plan.weight[part], box)
            # A copy, so that who keeps the labels of a batch keeps no more than these.
            yield plan.index[part], mixed, plan.labels[part].clone()


def _sent(part: npt.NDArray[Any] | None, device: torch.device) -> Tensor | None:
    """On the device, without waiting for it."""
    return None if part is None else torch.from_numpy(part).to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class _Planned:
    """Rows of the set, rows and weights of the blend, boxes, and labels, blended already."""

    index: Ints
    rows: Tensor
    weight: Tensor
    box: Tensor | None
    labels: Tensor


@dataclass(frozen=True, eq=False)
class _Kept:
    """The plan of epochs `first`, `first + 1`, ..., made when samples had been served `before`."""

    first: int
    several: int
    state: tuple[Any, ...]
    before: Ints
    plan: _Planned

    def holds(self, number: int, state: tuple[Any, ...], counts: Ints) -> bool:
        """Whether epoch `number` is in it and everything is as was expected."""
        past = number - self.first
        return (
            0 <= past < self.several
            and state == self.state
            and bool((counts == self.before + past).all())
        )


def shares(n: int, batch_size: int, rank: int, world: int, drop_last: bool) -> list[int]:
    """Sizes of one rank's batches when `n` images are dealt out in turns: equally many on each.

    Ranks with one image less than others have it missing in a batch, not a batch less. Only where
    they would have fewer images than batches (a batch size of one), one image comes twice.
    """
    own, most = -(-(n - rank) // world), -(-n // world)
    if drop_last:
        return [batch_size] * (n // world // batch_size)
    count = -(-most // batch_size)
    own = max(own, count)
    sizes = [batch_size] * (count - 1) + [own - batch_size * (count - 1)]
    if sizes[-1] < 1:  # one image of the batch before
        sizes[-2:] = [batch_size - 1, 1]
    return sizes
