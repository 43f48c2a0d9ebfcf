"""What ranks bring together: log rows in the order of a single process, and when they meet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from enginefactories import digits, tiny_config
from runfactories import profile

from moedd.ranks import ALONE, Ranks
from moedd.together import Meetings, in_order, require_one_job
from moedd_loaders.errors import UsageError


def step(tick: int, expert: int, step: int) -> dict[str, Any]:
    return {"tick": tick, "expert": expert, "step": step, "match": 0.5}


def half(tick: int, side: int, pair: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    return {"tick": tick, "pair": list(pair), "value": 0.1, f"image_step_{pair[side]}": 1.0 + side}


def test_rows_of_one_process_stay_as_they_are() -> None:
    rows = [half(1, 0), step(1, 1, 1), step(1, 0, 1)]
    assert in_order([rows]) == rows


def test_rows_of_two_ranks_are_put_in_order() -> None:
    first = [step(1, 0, 1), half(1, 0), step(2, 0, 2), step(2, 0, 3)]
    second = [step(1, 1, 1), half(1, 1), step(2, 1, 2)]
    rows = in_order([first, second])
    assert rows == in_order([second, first])
    places = [(row["tick"], row.get("expert"), row.get("step")) for row in rows]
    assert places == [(1, 0, 1), (1, 1, 1), (1, None, None), (2, 0, 2), (2, 0, 3), (2, 1, 2)]
    # Bytes of the log count: the keys have an order, too.
    assert list(rows[2]) == ["tick", "pair", "value", "image_step_0", "image_step_1"]
    assert rows[2]["image_step_0"] == 1.0
    assert rows[2]["image_step_1"] == 2.0


def test_different_pairs_of_one_tick_stay_apart() -> None:
    rows = in_order([[half(1, 0, (0, 2)), half(1, 1, (0, 1))], [half(1, 0, (0, 1))]])
    assert [row["pair"] for row in rows] == [[0, 1], [0, 2]]


def test_a_process_of_its_own_meets_after_every_tick() -> None:
    meetings = Meetings(ALONE, checkpoint=3600.0, picture=3600.0)
    meetings.plan(1)
    assert all(meetings.due(tick, 100) for tick in (1, 2, 3))


def test_ranks_meet_now_and_then_and_at_the_end() -> None:
    meetings = Meetings(Ranks(1, (0, 1)), checkpoint=3600.0, picture=3600.0)
    assert meetings.due(1, 100)
    meetings.next = 20
    assert [tick for tick in range(2, 31) if meetings.due(tick, 30)] == list(range(20, 31))
    assert meetings.due(10, 10)


def test_a_run_that_goes_on_does_not_take_its_past_for_speed() -> None:
    meetings = Meetings(Ranks(1, (0, 1)), checkpoint=3600.0, picture=3600.0, at=10_000)
    assert meetings.due(10_001, 200_000)
    meetings.met -= 2.0  # the one tick since then took two seconds
    assert meetings._decide(10_001).next == 10_002


def test_what_is_due_is_done_at_once() -> None:
    assert Meetings(ALONE, checkpoint=0.0, picture=3600.0)._decide(1).save
    plan = Meetings(ALONE, checkpoint=3600.0, picture=0.0)._decide(1)
    assert (plan.save, plan.picture) == (False, True)
    assert plan.next > 1


class Pretended(Ranks):
    """Two ranks, the other of which differs from this one in `theirs`."""

    theirs: dict[str, Any]

    def collect(self, value: Any) -> list[Any]:
        return [value, {**value, **self.theirs}]


@pytest.mark.parametrize("what", ["settings", "real data", "number of threads", "torch"])
def test_ranks_of_different_jobs_are_refused(what: str) -> None:
    ranks = Pretended()
    object.__setattr__(ranks, "theirs", {what: "something else"})
    real = digits(2, 24)
    with pytest.raises(UsageError, match=f"rank 1 has another {what} than rank 0"):
        require_one_job(ranks, tiny_config(real), real, profile())


def test_ranks_of_one_job_are_not() -> None:
    real = digits(2, 24)
    require_one_job(ALONE, tiny_config(real), real, profile())
    other = dataclasses.replace(profile(), threads=torch.get_num_threads() + 1)
    require_one_job(ALONE, tiny_config(real), real, other)  # the threads in use count
