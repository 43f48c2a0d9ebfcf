"""Timing a few steps: what counts, what is told apart, and what is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from runfactories import digits, profile, tiny_config

from moedd import timing
from moedd.mixture import Mixture
from moedd.progress import Reporter
from moedd.timing import Laps, Pace, Stopwatch, measure


def clock(patch: pytest.MonkeyPatch, *laps: float) -> None:
    """A clock on which the laps of the next stopwatch take so long."""
    times = [0.0]
    for lap in laps:
        times.append(times[-1] + lap)
    patch.setattr(timing.time, "perf_counter", lambda: times.pop(0))


def test_the_first_lap_is_told_apart_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 9.0, 1.0, 30.0, 1.2, 1.1, 1.3)
    watch = Stopwatch("cpu")
    # Three after the first one are enough: they took more than two seconds.
    assert [watch.lap() for _ in range(4)] == [False, False, False, True]
    assert (watch.laps().each, watch.laps().first) == pytest.approx((1.2, 7.8))
    assert watch.laps().seconds(10) == pytest.approx(7.8 + 12)
    assert watch.laps().seconds(0) == 0


def test_short_laps_are_timed_until_fifty(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, *[0.01] * 60)
    watch, laps = Stopwatch("cpu"), 1
    while not watch.lap():
        laps += 1
    assert laps == 51


def test_a_pace_adds_up() -> None:
    pace = Pace((Laps(2.0, 5.0), Laps(3.0), Laps()), Laps(7.0))
    assert pace.seconds([10, 5, 0], every=5) == pytest.approx(10 * 2 + 5 * 3 + 2 * 7)
    assert pace.seconds([10, 5, 0], every=0) == pytest.approx(35)


def test_each_expert_with_steps_is_timed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    config = tiny_config("digits-idm+random+dc-1x3", "dc.outer=4")
    mixture = Mixture.build(config, digits(), home, profile(), Reporter(quiet=True))
    given: list[object] = []
    pace = measure(mixture.spare(), after=given.append)
    idm, random, dc = pace.experts
    assert idm.each > 0
    assert random == Laps()
    assert dc.each > 0
    assert pace.diversity.each > 0
    # The last step of each expert, then of the diversity step: losses, log rows.
    assert [type(last) for last in given] == [dict, type(None), dict, list]
    # The mixture itself is where it was.
    assert [expert.done for expert in mixture.experts] == [0, 0, 0]


@pytest.mark.parametrize(
    ("outer", "steps"), [(1, [(0, 1.0)]), (2, [(0, 0.5), (1, 0.5)]), (4, [(1, 0.75), (3, 0.25)])]
)
def test_steps_of_dc_that_train_no_network_have_their_share(
    outer: int, steps: list[tuple[int, float]], home: Path
) -> None:
    config = tiny_config("digits-dc-1x1", f"dc.outer={outer}")
    mixture = Mixture.build(config, digits(), home, profile(), Reporter(quiet=True))
    expert = mixture.experts[0]
    assert expert.sample_steps == steps
    trained = []
    for number in range(outer):
        before = -1 if number == 0 else expert.trainer.steps  # type: ignore[attr-defined]
        expert.step()
        trained.append(expert.trainer.steps > max(before, 0))  # type: ignore[attr-defined]
    # One epoch on ten images follows every step but the last.
    assert trained == [True] * (outer - 1) + [False]
