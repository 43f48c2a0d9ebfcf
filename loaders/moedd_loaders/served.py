"""Counts in memory that all processes of a loader share: what makes draws differ between epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moedd_loaders.draws import key, of_rank
from moedd_loaders.ranks import SentRank, worker_number

__all__ = ["Calls", "Served"]

Ints = npt.NDArray[np.int64]

_WORKERS = 1023
_WORKER_STREAMS = 1 << 33


class Served:
    """Counts of n samples, and of passes through `batches()`, in memory shared by all workers.

    Worker processes (forked or spawned, persistent or not) count in the same place, so nobody has
    to announce epochs. Plain pickles and deep copies get counts of their own, with equal values.
    Two workers that serve the *same* sample at the same time (sampling with replacement) may read
    one count twice; the two then draw alike.
    """

    def __init__(self, n: int) -> None:
        self._counts = torch.zeros(n + 1, dtype=torch.int64).share_memory_()
        self.rank = SentRank()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What comes through a DataLoader's own pickler is shared already: then this does nothing.
        self.__dict__.update(state)
        self._counts.share_memory_()

    def __len__(self) -> int:
        return len(self._counts) - 1

    def take(self, index: Ints) -> Ints:
        """(B,) how often each was served so far, counting repeats within `index`; counts these."""
        counts = self._counts.numpy()
        served = counts[index]
        if len(index) > 1:
            order = np.argsort(index, kind="stable")
            ordered, place = index[order], np.arange(len(index))
            first = np.ones(len(index), dtype=np.bool_)
            np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
            if not first.all():
                served[order] += place - np.maximum.accumulate(np.where(first, place, 0))
        np.maximum.at(counts, index, served + 1)
        return served

    def peek(self, index: Ints) -> Ints:
        """(B,) how often each was served so far."""
        return self._counts.numpy()[index]

    def all(self) -> Ints:
        """(n,) a copy of all counts."""
        return self._counts.numpy()[:-1].copy()

    def count(self, index: Ints) -> None:
        """Count each of `index` (distinct) once more."""
        self._counts.numpy()[index] += 1

    def next_pass(self) -> int:
        """Number of the pass through `batches()` that starts now, from 0."""
        counts = self._counts.numpy()
        number = int(counts[-1])
        counts[-1] += 1
        return number

    def set(self, epoch: int) -> None:
        """As after `epoch` full epochs."""
        self._counts.fill_(epoch)

    def at_least(self, epoch: int) -> None:
        """As after `epoch` full epochs, but what was served more often stays so."""
        self._counts.clamp_(min=epoch)
        self._counts[-1] = epoch


class Calls:
    """The epoch of a batch transform, and its calls in each DataLoader worker, shared by all.

    Workers get copies of a transform, and new ones in every epoch unless they persist: a stream
    kept inside the copy would be the same in all of them, epoch after epoch.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(1 + _WORKERS, dtype=torch.int64).share_memory_()
        self._counts[0] = -1
        self.rank = SentRank()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._counts.share_memory_()

    @property
    def epoch(self) -> int | None:
        """As set last, None before that."""
        epoch = int(self._counts[0])
        return None if epoch < 0 else epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._counts[0] = epoch

    def seed(self, generator: torch.Generator) -> int:
        """The seed of this call: outside of workers the generator's next number."""
        worker = worker_number()
        if worker is None:
            drawn = int(torch.randint(2**63 - 1, (), generator=generator))
            return of_rank(drawn, self.rank())
        # Not what the copy's generator draws: copies live for one epoch or, if they persist, many.
        seed = of_rank(generator.initial_seed(), self.rank())
        counts, slot = self._counts.numpy(), 1 + worker % _WORKERS
        counts[slot] += 1
        return key(key(seed, _WORKER_STREAMS + worker), int(counts[slot]))
