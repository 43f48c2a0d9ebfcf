"""Statistics of accuracies: over distillation seeds, not over networks.

Networks trained on one set share its images: their spread says how training on this set varies, and
nothing about the method. So what is compared are *set means* (of random real images: draws). With
one set per side there is no interval, and no statement.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95
_SAME = 1e-9  # points: differences below are rounding

Sets = Mapping[int, Sequence[float]]
"""Accuracies in percent of the networks of each set, by the set's seed (or the number of the draw);
never empty."""


@dataclass(frozen=True)
class Summary:
    """Mean of the set means, in percent, and its spread.

    `spread`: standard deviation (n - 1) over set means, or with one set over its networks; None
    where there is one value. `sets` and `networks` count.
    """

    mean: float
    spread: float | None
    sets: int
    networks: int

    @property
    def over(self) -> Literal["sets", "networks"]:
        """What the spread is over."""
        return "sets" if self.sets > 1 else "networks"


@dataclass(frozen=True)
class Gap:
    """Difference of two means in points; `low` and `high` bound its 95 % interval, None with one
    set on a side. `paired`: of set means that belong together."""

    difference: float
    low: float | None
    high: float | None
    sets: tuple[int, int]
    paired: bool

    @property
    def clear(self) -> bool:
        """The interval is there and does not hold zero."""
        if self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


def summary(sets: Sets) -> Summary:
    """Of one cell of a table."""
    means = [mean(values) for values in sets.values()]
    networks = [value for values in sets.values() for value in values]
    spread_of = means if len(means) > 1 else networks
    spread = stdev(spread_of) if len(spread_of) > 1 else None
    return Summary(mean(means), spread, len(means), len(networks))


def gap(a: Sets, b: Sets, paired: bool = False) -> Gap:
    """a minus b, with Welch's interval over set means.

    `paired`: equal keys belong together (one set trained on in two ways, or two sets made from the
    same parts and initial images), and the interval is that of their differences.
    """
    shared = sorted(set(a) & set(b))
    if paired and shared:
        pairs = [mean(a[key]) - mean(b[key]) for key in shared]
        low, high = _interval(pairs)
        return Gap(mean(pairs), low, high, (len(pairs), len(pairs)), True)
    left, right = ([mean(values) for values in side.values()] for side in (a, b))
    low, high = _interval(left, right)
    return Gap(mean(left) - mean(right), low, high, (len(left), len(right)), False)


def at_chance(values: Sequence[float], chance: float, test_images: int) -> int:
    """How many networks are no better than guessing: within two standard deviations of what a
    guess gets on so many test images. `values` and `chance` in percent."""
    share = chance / 100
    noise = 100 * (share * (1 - share) / max(test_images, 1)) ** 0.5
    return sum(value <= chance + 2 * noise for value in values)


def _interval(*samples: Sequence[float]) -> tuple[float | None, float | None]:
    """Of the mean of one sample, or of the difference of two; (None, None) with one value."""
    if min(map(len, samples)) < 2:
        return None, None
    if all(max(values) - min(values) < _SAME for values in samples):  # scipy would give NaN
        point = samples[0][0] - (samples[1][0] if len(samples) > 1 else 0.0)
        return point, point
    with warnings.catch_warnings():
        # One side without any spread is what it is, not a loss of precision.
        warnings.simplefilter("ignore", RuntimeWarning)
        if len(samples) == 1:
            test = stats.ttest_1samp(samples[0], 0.0)
        else:
            test = stats.ttest_ind(*samples, equal_var=False)
    found = test.confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)
