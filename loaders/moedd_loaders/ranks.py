"""Which process this is: its rank in a distributed run, its number among a DataLoader's workers."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed
from torch.utils.data import get_worker_info

__all__ = ["SentRank", "rank_and_world", "worker_number"]


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks) of the running process group; (0, 1) without one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def worker_number() -> int | None:
    """Which of a DataLoader's workers this process is, None outside of workers."""
    info = get_worker_info()
    return None if info is None else info.id


class SentRank:
    """The rank, known in spawned DataLoader workers too, where no process group runs.

    A worker gets its data set pickled by the process that it works for; the rank and the number of
    ranks travel along.
    """

    def __init__(self) -> None:
        self._sent, self._sent_world = 0, 1

    def __call__(self) -> int:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
        # Under torchrun the environment knows it before (and without) any process group.
        told = os.environ.get("RANK", "")
        if told.isdecimal() and "WORLD_SIZE" in os.environ:
            return int(told)
        return self._sent if worker_number() is not None else 0

    def world(self) -> int:
        """The number of ranks among which samplers share a data set; 1 without a process group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size()
        return self._sent_world if worker_number() is not None else 1

    def __getstate__(self) -> dict[str, Any]:
        return {"_sent": self(), "_sent_world": self.world()}
