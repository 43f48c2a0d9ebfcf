"""Who works on what: experts over ranks, and the classes of one expert over its ranks."""

from collections.abc import Sequence
from itertools import pairwise


def assign(costs: Sequence[float], most: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each expert, given what each has to compute and how many ranks it can use.

    With no more ranks than working experts every expert has one rank: the costliest are placed
    first, each where least is to be done so far. With more ranks, each of them in turn goes to the
    expert that has most to do per rank; an expert's ranks are neighbours, so that they tend to be
    on one host. Experts without work of their own (cost 0) cost no rank.
    """
    working = [e for e, cost in enumerate(costs) if cost > 0]
    teams: list[tuple[int, ...]] = [(e % size,) for e in range(len(costs))]
    if size > len(working):
        counts = _counts([costs[e] for e in working], [most[e] for e in working], size)
        first = 0
        for e, count in zip(working, counts, strict=True):
            teams[e] = tuple(range(first, first + count))
            first += count
        return tuple(teams)
    loads = [0.0] * size
    for e in sorted(working, key=lambda e: (-costs[e], e)):
        least = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[least] += costs[e]
        teams[e] = (least,)
    return tuple(teams)


def _counts(costs: Sequence[float], most: Sequence[int], size: int) -> list[int]:
    counts = [1] * len(costs)
    for _ in range(size - len(costs)):
        able = [e for e, count in enumerate(counts) if count < most[e]]
        if not able:
            break  # the others have nothing to match; they train networks of the pool
        counts[max(able, key=lambda e: (costs[e] / counts[e], -e))] += 1
    return counts


def blocks(things: int, members: int) -> list[range]:
    """`things` in as many runs of neighbours as there are members; sizes differ by one at most."""
    ends = [things * k // members for k in range(members + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


def described(teams: Sequence[Sequence[int]]) -> str:
    """For people: `expert 0 on rank 0, expert 1 on ranks 1-2`."""
    said = []
    for e, team in enumerate(teams):
        where = f"rank {team[0]}" if len(team) == 1 else f"ranks {team[0]}-{team[-1]}"
        said.append(f"expert {e} on {where}")
    return ", ".join(said)
