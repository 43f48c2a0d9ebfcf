"""What the ranks of a run do together besides matching: meet now and then, and bring log rows and
the experts' state to the first of them, which writes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moedd.config import RunConfig
from moedd.experts import Expert
from moedd.profile import Profile
from moedd.ranks import Ranks, world
from moedd.realdata import RealData
from moedd_loaders.errors import UsageError

_MEETING_SECONDS = 2.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is due at a meeting, and the tick of the next one."""

    save: bool
    picture: bool
    next: int


class Meetings:
    """When all ranks come together: about every two seconds, and at the end. A process of its own
    meets after every tick. The first rank's clock decides for all."""

    def __init__(self, ranks: Ranks, checkpoint: float, picture: float, at: int = 0) -> None:
        """`checkpoint`, `picture`: seconds from one to the next; `at`: the tick that the run begins
        or goes on from."""
        self.ranks, self.checkpoint, self.picture = ranks, checkpoint, picture
        self.saved = self.pictured = self.met = time.monotonic()
        self.at = self.next = at

    def due(self, tick: int, total: int) -> bool:
        """Whether the ranks meet after this tick."""
        return self.ranks.size == 1 or tick >= min(self.next, total)

    def plan(self, tick: int) -> Plan:
        """What to do at this meeting: the same on every rank."""
        plan = self.ranks.tell(lambda: self._decide(tick))
        self.next = plan.next
        return plan

    def _decide(self, tick: int) -> Plan:
        now = time.monotonic()
        save = now - self.saved >= self.checkpoint
        picture = now - self.pictured >= self.picture
        self.saved = now if save else self.saved
        self.pictured = now if picture else self.pictured
        pace = (now - self.met) / max(1, tick - self.at)
        ahead = int(min(_MEETING_SECONDS, self.checkpoint) / max(pace, 1e-6))
        self.at, self.met = tick, now
        return Plan(save, picture, tick + max(1, ahead))


def in_order(by_rank: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of all ranks in the order of a single process; the two halves of a diversity row,
    each with the norms of one expert, become one."""
    if len(by_rank) == 1:
        return list(by_rank[0])
    rows = sorted((row for rows in by_rank for row in rows), key=_place)
    merged: list[Row] = []
    for row in rows:
        last = merged[-1] if merged else {}
        if "pair" in row and (row["tick"], row["pair"]) == (last.get("tick"), last.get("pair")):
            last.update(row)
        else:
            merged.append(row)
    return merged


def _place(row: Row) -> tuple[int, ...]:
    if "pair" not in row:
        return row["tick"], 0, row["expert"], row["step"], 0
    i, j = row["pair"]
    return row["tick"], 1, i, j, 0 if f"image_step_{i}" in row else 1


def gather_experts(experts: Sequence[Expert]) -> None:
    """Bring every expert's state to the first rank. All ranks call it at the same tick."""
    ranks = world()
    for expert in experts:
        team = expert.team
        if team.here:
            expert.pull()
        if team.members[0] == ranks.members[0]:
            continue
        if team.first:
            ranks.send_state(expert.state_dict(), ranks.members[0])
        elif ranks.first:
            expert.load_state_dict(ranks.receive_state(team.members[0]))


def require_one_job(ranks: Ranks, config: RunConfig, real: RealData, profile: Profile) -> None:
    """Raise UsageError, naming the rank, unless all ranks would make the same set in the same
    arithmetic."""
    mine = {
        "settings": config.digest(),
        "real data": real.fingerprint,
        "profile": f"{profile.name} ({profile.precision}, {profile.device})",
        "number of threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    everyone = ranks.collect(mine)

    def compare() -> None:
        for rank, theirs in enumerate(everyone):
            for what, value in theirs.items():
                if value != mine[what]:
                    raise UsageError(
                        f"rank {rank} has another {what} than rank 0 ({value}, not {mine[what]}): "
                        "start all ranks with the same command, data, torch, kind of machine and "
                        "OMP_NUM_THREADS"
                    )

    ranks.tell(compare)
