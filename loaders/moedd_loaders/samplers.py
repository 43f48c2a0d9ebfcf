"""Batches that hold equally many images of every expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from moedd_loaders.draws import key
from moedd_loaders.epochs import EpochRows
from moedd_loaders.errors import UsageError
from moedd_loaders.partners import Ints
from moedd_loaders.ranks import rank_and_world

__all__ = ["ExpertBatchSampler"]

_STREAM = 1 << 34


class ExpertBatchSampler(Sampler[list[int]]):
    """Batch sampler: every batch holds `batch_size / K` images of each of the K experts.

    DataLoader(ds, batch_sampler=ExpertBatchSampler(ds.experts, 64, labels=ds.labels))

    So a partner of another expert is always in the batch, and no expert weighs more for being
    larger. Experts are gone through in an order of their own, shuffled; a smaller one begins again,
    shuffled anew, until the largest is through: an epoch has max_k ceil(|S_k| K / batch_size)
    batches, **more steps than images / batch_size** if experts are unequal, and every image at
    least once. Where `batch_size` is no multiple of K, experts take turns at the places left over.

    In a distributed run every rank gets each world-th batch, equally many (some repeated from the
    beginning, if they do not divide). Draws depend on (seed, epoch), epochs count themselves, and
    a `DistilledDataset` hears of them with each batch.

    Args:
        experts: (N,) expert ids, e.g. `ds.experts`.
        batch_size: of each rank; at least the number of experts.
        labels: (N,) classes: within an expert, classes take turns too. Without them, any order.
        seed: of the order.
        rank, world: of this process; by default those of the process group that runs when an epoch
            begins.

    Raises:
        UsageError: a batch too small for all experts.
    """

    def __init__(
        self,
        experts: Tensor | Sequence[int],
        batch_size: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        owner = np.asarray(experts, dtype=np.int64)
        classes = np.zeros_like(owner) if labels is None else np.asarray(labels, dtype=np.int64)
        if owner.ndim != 1 or not len(owner) or classes.shape != owner.shape:
            raise UsageError(
                f"experts have shape {owner.shape} and labels {classes.shape}, expected (N,) both, "
                "N >= 1: pass ds.experts and ds.labels"
            )
        self._rows = [np.flatnonzero(owner == expert) for expert in np.unique(owner)]
        if batch_size < len(self._rows):
            raise UsageError(
                f"batch_size is {batch_size} and there are {len(self._rows)} experts: a batch must "
                "hold one image of each at least"
            )
        self._given = rank, world
        self._place()
        self._classes, self.batch_size, self.seed = classes, batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        return -(-self._total // self._place()[1])

    def __iter__(self) -> Iterator[list[int]]:
        (rank, world), epoch = self._place(), self._epoch
        batches = self._batches(np.random.default_rng(key(self.seed, _STREAM + epoch)))
        self._epoch += 1
        for number in range(-(-self._total // world)):
            yield EpochRows(batches[(number * world + rank) % len(batches)], epoch)

    def _place(self) -> tuple[int, int]:
        """(rank, number of ranks), as it is now: a process group may begin at any time."""
        place, count = rank_and_world()
        rank, world = self._given
        found = place if rank is None else rank, count if world is None else world
        if not 0 <= found[0] < found[1]:
            raise UsageError(f"rank is {found[0]} of {found[1]}, expected 0 or more")
        return found

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next, for resuming; epochs count on from there."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}, expected 0 or more")
        self._epoch = epoch

    @property
    def _total(self) -> int:
        largest = max(len(rows) for rows in self._rows)
        return -(-largest * len(self._rows) // self.batch_size)

    def _batches(self, rng: np.random.Generator) -> list[list[int]]:
        experts, batches = len(self._rows), self._total
        each, over = divmod(self.batch_size, experts)
        taken = np.full((batches, experts), each)
        for number in range(batches):
            taken[number, (number * over + np.arange(over)) % experts] += 1
        ends = taken.cumsum(axis=0)
        orders = [self._order(rng, e, int(ends[-1, e])) for e in range(experts)]
        made = []
        for number in range(batches):
            parts = [
                orders[e][ends[number, e] - taken[number, e] : ends[number, e]]
                for e in range(experts)
            ]
            made.append(rng.permutation(np.concatenate(parts)).tolist())
        return made

    def _order(self, rng: np.random.Generator, expert: int, length: int) -> Ints:
        """`length` rows of an expert: whole shuffled passes, and the beginning of one."""
        rows = self._rows[expert]
        passes = [self._pass(rng, rows) for _ in range(-(-length // len(rows)))]
        return np.concatenate(passes)[:length]

    def _pass(self, rng: np.random.Generator, rows: Ints) -> Ints:
        """All rows once: one of each class, in random order, then the next of each."""
        shuffled = rng.permutation(rows)
        classes = self._classes[shuffled]
        by_class = np.argsort(classes, kind="stable")
        firsts = np.searchsorted(classes[by_class], classes[by_class])
        turn = np.empty(len(rows), dtype=np.int64)
        turn[by_class] = np.arange(len(rows)) - firsts
        return shuffled[np.lexsort((rng.random(len(rows)), turn))]
