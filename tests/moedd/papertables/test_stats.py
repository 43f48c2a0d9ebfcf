"""Statistics against hand calculations: set means, Welch's and paired intervals, chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moedd.papertables.stats import Sets, at_chance, gap, summary

A: Sets = {0: [50.0, 52.0], 1: [54.0], 2: [55.0, 56.0, 57.0]}
B: Sets = {0: [49.0], 1: [51.0, 51.0], 2: [50.0]}

percents = st.floats(0, 100)
sets_of = st.dictionaries(
    st.integers(0, 9), st.lists(percents, min_size=1, max_size=4), min_size=1, max_size=5
)


# ------------------------------------------------------------------------------ summaries


def test_the_mean_is_that_of_set_means_whatever_the_networks() -> None:
    """Set means 51, 54 and 56: mean 161/3, squared deviations 64/9, 1/9 and 49/9."""
    found = summary(A)
    assert found.mean == pytest.approx(161 / 3)
    assert found.spread == pytest.approx(math.sqrt((64 + 1 + 49) / 9 / 2))
    assert (found.sets, found.networks, found.over) == (3, 6, "sets")


def test_of_one_set_the_spread_is_over_its_networks() -> None:
    found = summary({4: [50.0, 52.0, 54.0]})
    assert (found.mean, found.spread) == (52.0, 2.0)
    assert (found.sets, found.networks, found.over) == (1, 3, "networks")


def test_one_network_has_no_spread() -> None:
    assert summary({0: [50.0]}).spread is None


@given(sets_of)
def test_a_mean_lies_among_its_values(sets: Sets) -> None:
    values = [value for group in sets.values() for value in group]
    assert min(values) - 1e-9 <= summary(sets).mean <= max(values) + 1e-9


# -------------------------------------------------------------------------------- gaps


def test_welchs_interval_by_hand() -> None:
    """Set means 51, 54, 56 and 49, 51, 50. Variances 19/3 and 1, each over 3 sets: the error is
    sqrt(22/9), the degrees of freedom (22/9)^2 / ((19/9)^2/2 + (1/3)^2/2) = 968/370, and t's 97.5 %
    point there, 3.4538, is from a table of its quantiles."""
    found = gap(A, B)
    assert found.difference == pytest.approx(161 / 3 - 50)
    assert (found.sets, found.paired) == ((3, 3), False)
    assert found.low is not None
    assert found.high is not None
    assert (found.low + found.high) / 2 == pytest.approx(found.difference)
    assert found.high - found.difference == pytest.approx(quantile(968 / 370) * math.sqrt(22 / 9))


def test_a_paired_interval_by_hand() -> None:
    """Differences 2, 3, 6: mean 11/3, deviation sqrt(13/3); t's 97.5 % point of 2 is 4.302653."""
    found = gap(A, B, paired=True)
    assert found.difference == pytest.approx(11 / 3)
    assert found.high is not None
    half = 4.302652729911275 * math.sqrt(13 / 3) / math.sqrt(3)
    assert found.high - found.difference == pytest.approx(half)
    assert (found.sets, found.paired) == ((3, 3), True)


def quantile(freedom: float) -> float:
    """97.5 % point of t by bisection of its density, integrated by Simpson's rule."""
    factor = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    factor /= math.sqrt(freedom * math.pi)

    def below(x: float) -> float:
        grid = np.linspace(0, x, 20_001)
        density = factor * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
        weights = np.ones(len(grid))
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        return 0.5 + float((density * weights).sum()) * x / 20_000 / 3

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return low


def test_pairs_are_the_sets_that_both_have() -> None:
    found = gap(A, {1: [50.0], 7: [10.0]}, paired=True)
    assert (found.difference, found.sets, found.low) == (4.0, (1, 1), None)
    apart = gap(A, {7: [10.0]}, paired=True)
    assert apart.sets == (3, 1)
    assert not apart.paired


@pytest.mark.parametrize(("a", "b"), [({0: [50.0, 51.0]}, B), (A, {0: [1.0]})])
def test_one_set_on_a_side_has_no_interval_and_nothing_is_clear(a: Sets, b: Sets) -> None:
    found = gap(a, b)
    assert (found.low, found.high, found.clear) == (None, None, False)


def test_clear_means_that_zero_is_outside() -> None:
    near, far = {0: [50.0], 1: [50.2]}, {0: [40.0], 1: [40.2]}
    assert gap(near, far).clear
    assert gap(far, near).clear
    assert not gap(near, {0: [49.0], 1: [52.0]}).clear


def test_sets_without_any_spread() -> None:
    found = gap({0: [5.0], 1: [5.0]}, {0: [3.0], 1: [3.0]})
    assert (found.low, found.high, found.clear) == (2.0, 2.0, True)
    assert gap({0: [5.0], 1: [6.0]}, {0: [3.0], 1: [4.0]}, paired=True).low == 2.0


@given(sets_of, sets_of, st.booleans())
def test_turned_round_a_gap_changes_its_sign(a: Sets, b: Sets, paired: bool) -> None:
    one, other = gap(a, b, paired), gap(b, a, paired)
    assert one.difference == pytest.approx(-other.difference, abs=1e-9)
    if one.low is None:
        assert other.high is None
    else:
        assert other.high == pytest.approx(-one.low, rel=1e-6, abs=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """1,000 tables of three sets a side with no difference: 95 % of the intervals hold zero.

    Networks of one set share its deviation; intervals over networks would hold it far too seldom.
    """
    random = np.random.default_rng(0)
    held = naive = 0
    for _round in range(1000):
        sides = [
            {s: list(50 + random.normal(0, 2) + random.normal(0, 0.3, 5)) for s in range(3)}
            for _side in range(2)
        ]
        found = gap(sides[0], sides[1])
        assert found.low is not None
        held += not found.clear
        flat = [
            {n: [value] for n, value in enumerate(v for group in side.values() for v in group)}
            for side in sides
        ]
        naive += not gap(flat[0], flat[1]).clear
    # Welch's interval is a little wide with three values a side.
    assert 940 <= held <= 990
    assert naive < 700


# ------------------------------------------------------------------------------ chance


@pytest.mark.parametrize(
    ("values", "chance", "images", "failed"),
    [
        ([10.0, 10.5, 10.7, 50.0], 10.0, 10_000, 2),  # noise: 0.3 points, twice
        ([10.0, 13.1, 13.2], 10.0, 359, 2),  # 1.58 points, twice: up to 13.17
        ([1.0, 1.1, 9.9], 1.0, 10_000, 2),
        ([5.0], 10.0, 10_000, 1),
    ],
)
def test_networks_at_chance(values: list[float], chance: float, images: int, failed: int) -> None:
    assert at_chance(values, chance, images) == failed
