"""Who works on what: every expert has ranks, every class of it exactly one of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moedd.shares import assign, blocks, described

costs = st.lists(st.floats(0, 1e12), min_size=1, max_size=8)


@given(st.integers(0, 200), st.integers(1, 20))
def test_blocks_hold_everything_once_and_evenly(things: int, members: int) -> None:
    shares = blocks(things, members)
    assert len(shares) == members
    assert [thing for share in shares for thing in share] == list(range(things))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(costs, st.data(), st.integers(1, 12))
def test_every_expert_has_ranks_of_the_run(costs: list[float], data: st.DataObject, n: int) -> None:
    most = data.draw(st.lists(st.integers(1, 10), min_size=len(costs), max_size=len(costs)))
    teams = assign(costs, most, n)
    assert len(teams) == len(costs)
    working = [e for e, cost in enumerate(costs) if cost > 0]
    for e, team in enumerate(teams):
        assert team == tuple(range(team[0], team[0] + len(team)))
        assert team[0] >= 0
        assert team[-1] < n
        assert len(team) == 1 or (len(team) <= most[e] and n > len(working))
    used = [rank for e in working for rank in teams[e]]
    if n >= len(working):  # nobody works on two experts
        assert len(set(used)) == len(used)
        # A rank is idle only if no expert can use one more.
        assert len(used) == min(n, sum(most[e] for e in working))
    else:  # everybody works
        assert set(used) == set(range(n))


def test_the_costliest_experts_are_spread_first() -> None:
    assert assign([1.0, 1.0, 2.0], [1, 1, 1], 2) == ((1,), (1,), (0,))
    assert assign([5.0, 5.0, 5.0], [1, 1, 1], 2) == ((0,), (1,), (0,))


def test_ranks_to_spare_go_where_most_is_to_do() -> None:
    assert assign([10.0, 1.0], [10, 10], 4) == ((0, 1, 2), (3,))
    assert assign([10.0, 1.0], [2, 1], 4) == ((0, 1), (2,))
    assert assign([0.0, 1.0], [10, 10], 3) == ((0,), (0, 1, 2))


def test_for_people() -> None:
    assert described([(0, 1, 2), (3,)]) == "expert 0 on ranks 0-2, expert 1 on rank 3"
