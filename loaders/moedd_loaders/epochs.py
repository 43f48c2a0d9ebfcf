"""Which epoch a batch belongs to: what `off_epoch` goes by.

An epoch is a pass over the set by all ranks together. The passes of `batches()` and the epochs of
our own samplers are known. Of a foreign sampler a data set sees rows only: there an epoch is over
when as many images were served as one pass serves, by each rank its share, repeated images counted
and left-out ones not waited for. What is announced counts before all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moedd_loaders.partners import Ints
from moedd_loaders.ranks import SentRank, worker_number

__all__ = ["EpochRows", "Epochs"]

_WORKERS = 1023
_BEGUN, _ANNOUNCED, _EACH, _TOLD = range(4)
_SERVED, _LARGEST, _SMALLEST = range(3)
_LARGE = 1 << 62  # less the smallest batch is what is kept: 0 where there was none


class EpochRows(list[int]):
    """Rows of one batch, of a sampler that knows the epoch; the number travels to the workers."""

    def __init__(self, rows: Sequence[int], epoch: int) -> None:
        super().__init__(rows)
        self.epoch = epoch


class Epochs:
    """The epoch of n samples, in memory that all workers share.

    Nothing is lost where workers count at the same time: each writes to numbers of its own, and a
    pass begins when all batches of the one before were counted.
    """

    def __init__(self, n: int, rank: SentRank) -> None:
        self._n, self._rank = n, rank
        # Passes begun by ourselves (from the epoch announced on); the epoch announced last, or -1;
        # whether every epoch is announced; what a sampler told first after that, or -1.
        self._state = torch.tensor([0, -1, 0, -1]).share_memory_()
        # Of the process itself and each worker: images served, its largest and smallest batch.
        self._counts = torch.zeros(3, 1 + _WORKERS, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What comes through a DataLoader's own pickler is shared already: then this does nothing.
        self.__dict__.update(state)
        self._state.share_memory_()
        self._counts.share_memory_()

    def begin(self, tell: bool = True) -> int:
        """The epoch of a whole pass that begins now; any number unless to `tell` it."""
        epoch = self._counted() if tell else 0
        self._state.numpy()[_BEGUN] += 1
        return epoch

    def of(self, rows: Sequence[int], batched: bool = True, tell: bool = True) -> int:
        """The epoch of a batch, which is counted.

        Args:
            rows: of the batch, as the loader asked for them.
            batched: False for an item that was asked for on its own: its size says nothing.
            tell: False where nobody asks for the epoch: it is then any number.
        """
        if isinstance(rows, EpochRows):
            return self._of_sampler(rows.epoch)
        size, worker = len(rows), worker_number()
        own = self._counts.numpy()[:, 0 if worker is None else 1 + worker % _WORKERS]
        if batched:
            own[_LARGEST] = max(int(own[_LARGEST]), size)
            own[_SMALLEST] = max(int(own[_SMALLEST]), _LARGE - size)
        epoch = self._counted() if tell else 0
        own[_SERVED] += size
        return epoch

    def set(self, epoch: int) -> bool:
        """This epoch begins; returns whether it is the one after that announced before.

        Who announces one after the other, or the first before anything was served, announces all:
        then nothing is counted in between. Any other epoch is where a run goes on, counting.
        """
        state = self._state.numpy()
        announced, begun = int(state[_ANNOUNCED]), int(state[_BEGUN])
        fresh = announced < 0 and not begun and not self._counts.any()
        next_one = announced >= 0 and epoch == announced + 1
        again = bool(state[_EACH]) and epoch == announced
        self._counts.zero_()
        state[:] = epoch, epoch, next_one or again or (fresh and epoch == 0), -1
        return next_one

    def _of_sampler(self, told: int) -> int:
        state = self._state.numpy()
        if state[_EACH] or state[_ANNOUNCED] < 0:
            return int(state[_BEGUN] if state[_EACH] else told)
        if state[_TOLD] < 0:  # all batches of a pass tell the same: whoever writes it is right
            state[_TOLD] = told
        return int(state[_ANNOUNCED] + max(told - state[_TOLD], 0))

    def _counted(self) -> int:
        state = self._state.numpy()
        begun = int(state[_BEGUN])
        if state[_EACH]:
            return begun
        counts = self._counts.numpy()
        served = int(counts[_SERVED].sum())
        return begun + served // self._pass(counts) if served else begun

    def _pass(self, counts: Ints) -> int:
        """Images that a pass serves on this rank, by the sizes of its batches."""
        world = self._rank.world()
        most, least = -(-self._n // world), max(self._n // world, 1)
        largest, smallest = int(counts[_LARGEST].max()), _LARGE - int(counts[_SMALLEST].max())
        if not 0 < largest <= most:
            return most
        if smallest == largest:  # never a smaller one: the last of a pass is left out, if it is
            return most - most % largest
        # The last batch tells what a sampler does that leaves out what ranks cannot share.
        return least if smallest == least % largest != most % largest else most
