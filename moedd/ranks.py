"""The processes of one run, and what may pass between them.

`moedd distill` under torchrun is one run of many processes, called ranks. Everything that a rank
does for the others or wants of them goes through a `Ranks`; of a single process all of it does
nothing, so that the code of a run is the same either way. Who works on what is in `shares.py`, how
processes come together and find out that one is gone in `launch.py` and `watch.py`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from moedd_loaders.errors import MoeddError, NetworkError

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE = timedelta(days=30)
"""How long a collective waits: some ranks train for hours while others have nothing to do. Whether
the others are alive is found out otherwise (`watch.py`)."""
SENT: Counter[str] = Counter()
"""Bytes that this process handed to collectives, by what they were: images, features, scalars,
gradients, state. Objects (log rows, errors) are not counted."""


class PeerLostError(NetworkError):
    """A collective failed: another rank is gone, or cannot be reached."""


def _collective(call: Callable[P, T]) -> Callable[P, T]:
    """What torch raises where a peer is gone, as one error."""

    @functools.wraps(call)
    def wrapped(*given: P.args, **named: P.kwargs) -> T:
        try:
            return call(*given, **named)
        except MoeddError:
            raise
        except RuntimeError as error:  # torch's own distributed errors are of this class
            raise PeerLostError(f"another rank cannot be reached any more ({error})") from error

    return wrapped


@dataclass(frozen=True, eq=False)
class Ranks:
    """Some ranks of a run: `members` are their numbers, `rank` that of this process (which may be
    none of them), `group` torch's group of exactly the members (None for a single one)."""

    rank: int = 0
    members: tuple[int, ...] = (0,)
    group: Any = None

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.members)

    @property
    def here(self) -> bool:
        """Whether this process is one of them."""
        return self.rank in self.members

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for them."""
        return self.rank == self.members[0]

    @property
    def place(self) -> int:
        """Which of them this process is, from 0."""
        return self.members.index(self.rank)

    # -- numbers and tensors ---------------------------------------------------------------
    @_collective
    def add_up(self, values: Tensor, kind: str = "scalars") -> Tensor:
        """`values` summed over all members, in place and returned: the same bytes on each."""
        if self.size > 1:
            SENT[kind] += values.numel() * values.element_size()
            dist.all_reduce(values, group=self.group)
        return values

    @_collective
    def largest(self, value: float) -> float:
        """The largest of the members' values."""
        if self.size == 1:
            return value
        both = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self.group)
        return float(both)

    @_collective
    def join_rows(self, rows: Tensor, cuts: Sequence[slice], kind: str) -> None:
        """Fill `rows` in place: member k has the right values at `cuts[k]`, afterwards all do."""
        if self.size == 1:
            return
        for member, cut in zip(self.members, cuts, strict=True):
            piece = rows[cut]
            if piece.numel():
                SENT[kind] += piece.numel() * piece.element_size() if member == self.rank else 0
                dist.broadcast(piece, src=member, group=self.group)

    @_collective
    def send(self, tensor: Tensor, to: int, kind: str) -> None:
        """Hand a tensor to the rank `to` of the run, which calls `receive`."""
        SENT[kind] += tensor.numel() * tensor.element_size()
        dist.send(tensor.contiguous(), to, group=self.group)

    @_collective
    def receive(self, like: Tensor, source: int) -> Tensor:
        """A tensor of the shape, dtype and device of `like` from the rank `source` of the run."""
        found = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(found, source, group=self.group)
        return found

    @_collective
    def send_state(self, state: dict[str, Tensor], to: int) -> None:
        """Hand tensors by name to the rank `to` of the run."""
        plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
        shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in plain.items()]
        dist.send_object_list([shapes], to, group=self.group)
        for tensor in plain.values():
            self.send(tensor, to, "state")

    @_collective
    def receive_state(self, source: int) -> dict[str, Tensor]:
        """What the rank `source` of the run sends by `send_state`, on the host."""
        told: list[Any] = [None]
        dist.recv_object_list(told, source, group=self.group)
        return {
            name: self.receive(torch.empty(shape, dtype=dtype), source)
            for name, shape, dtype in told[0]
        }

    # -- words -----------------------------------------------------------------------------
    @_collective
    def wait(self) -> None:
        """Until all members are here."""
        if self.size > 1:
            # Not `barrier`, which on a GPU machine would go through the GPUs.
            dist.all_reduce(torch.zeros(1), group=self.group)

    def tell(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first member, told to all.

        A user's mistake or the operating system's error met there is raised on all.
        """
        if self.size == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = make()
            except (MoeddError, OSError) as error:
                said[1] = error
        self._broadcast(said)
        if said[1] is not None:
            raise said[1]
        result: T = said[0]
        return result

    @_collective
    def _broadcast(self, said: list[Any]) -> None:
        dist.broadcast_object_list(said, src=self.members[0], group=self.group)

    @_collective
    def collect(self, value: T) -> list[T]:
        """The members' values in order on the first, nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values, dst=self.members[0], group=self.group)
        return values or []

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Hold the lock file for all members; other runs wait meanwhile. It ends with a meeting, so
        that what one of them wrote in it is there for all."""
        if self.first:
            with FileLock(path):
                self.wait()
                yield
                self.wait()
        else:
            self.wait()
            yield
            self.wait()

    def team(self, members: Sequence[int]) -> "Ranks":
        """Some of them; every rank of the run must ask for the same ones in the same order."""
        if self.size == 1:
            return self
        group = dist.new_group(list(members), timeout=PATIENCE) if len(members) > 1 else None
        return Ranks(self.rank, tuple(members), group)


ALONE = Ranks()
_world = [ALONE]


def world() -> Ranks:
    """All ranks of this run: a single one unless `launch.joined` says otherwise."""
    return _world[0]
