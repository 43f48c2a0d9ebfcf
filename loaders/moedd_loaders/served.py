"""How often each sample has been served: the part of a draw's key that differs between epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Served"]

Ints = npt.NDArray[np.int64]


class Served:
    """Counts of n samples, and of passes through `batches()`, in memory shared by all workers.

    Worker processes (forked or spawned, persistent or not) count in the same place, so nobody has
    to announce epochs. Plain pickles and deep copies get counts of their own, with equal values.
    Two workers that serve the *same* sample at the same time (sampling with replacement) may read
    one count twice; the two then draw alike.
    """

    def __init__(self, n: int) -> None:
        self._counts = torch.zeros(n + 1, dtype=torch.int64).share_memory_()

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
