"""How long work takes, from a few real steps of it: one place for `--max-hours`, which fits the
schedule to it, and `--dry-run`, which prints it.

The first step of anything is slower (buffers, kernels, perhaps a compiler), so it is told apart;
of the others the median counts, because a machine that does something else too slows down a few.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

from moedd.diversify import diversity_step
from moedd.experts import Expert
from moedd.mixture import Mixture
from moedd.profile import NOMINAL_RATE
from moedd.progress import Reporter
from moedd.ranks import world

T = TypeVar("T")

_LEAST, _MOST, _SECONDS = 3, 50, 2.0


@dataclass(frozen=True)
class Laps:
    """Work that is done again and again: seconds each time, and what the first time takes more."""

    each: float = 0.0
    first: float = 0.0

    def seconds(self, times: float) -> float:
        """Of doing it so many times."""
        return self.first + times * self.each if times else 0.0


class Stopwatch:
    """Times laps until there are enough of them: at least 3 after the first, then 2 seconds of
    them or 50. The ranks of one run all take 3, since a step may need all of them."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.times: list[float] = []
        self.last = self._now()

    def lap(self) -> bool:
        """A lap ends here; True if there are enough."""
        now = self._now()
        self.times.append(now - self.last)
        self.last = now
        later = self.times[1:]
        seconds = _SECONDS if world().size == 1 else 0.0
        return len(later) >= _MOST or (len(later) >= _LEAST and sum(later) >= seconds)

    def laps(self) -> Laps:
        """What was found."""
        each = median(self.times[1:] or self.times)
        return Laps(each, max(0.0, self.times[0] - each))

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def timed(work: Callable[[], T], device: str) -> tuple[Laps, T]:
    """Seconds of `work`, which is done until enough is known, and what it gave last."""
    watch = Stopwatch(device)
    given = work()
    while not watch.lap():
        given = work()
    return watch.laps(), given


@dataclass(frozen=True)
class Pace:
    """Of each expert's steps (nothing where this rank does not work on it, or there are no steps to
    make), and of diversity steps (nothing where there are none)."""

    experts: tuple[Laps, ...]
    diversity: Laps

    def seconds(self, steps: Sequence[int], every: int) -> float:
        """Of so many steps of each expert, with a diversity step after each `every` of the longest;
        without what the first ones take more."""
        matching = sum(n * pace.each for n, pace in zip(steps, self.experts, strict=True))
        return matching + (max(steps) / every * self.diversity.each if every else 0.0)


def measure(mixture: Mixture, after: Callable[[Any], object] = lambda given: None) -> Pace:
    """The pace of these experts, which are moved by it: give it a mixture to be thrown away.

    `after` is called when an expert, and when the diversity step, was timed, with what the last
    step gave: losses, log rows, None where there was no step.
    """
    paces = []
    for expert in mixture.experts:
        laps, given = Laps(), None
        if expert.steps and expert.team.here:
            laps, given = _pace(expert)
        paces.append(laps)
        after(given)
    diversity = Laps()
    if mixture.diverse:
        config, streams = mixture.config.diversity, mixture.streams.scope("timing")
        diversity, given = timed(
            lambda: diversity_step(mixture.experts, config, streams), mixture.profile.device
        )
        after(given)
    return Pace(tuple(paces), diversity)


def _pace(expert: Expert) -> tuple[Laps, Any]:
    each, first, given = 0.0, 0.0, dict[str, float]()
    for number, share in expert.sample_steps:

        def step(number: int | None = number) -> dict[str, float]:
            if number is not None:
                expert.done = number
            return expert.step()

        laps, given = timed(step, expert.profile.device)
        each += share * laps.each
        first += laps.first
    return Laps(each, first), given


def choose_fraction(
    mixture: Mixture, asked: float, max_hours: float | None, reporter: Reporter
) -> float:
    """The fraction of the schedules that is asked for, or the one that fits `max_hours`."""
    if max_hours is None:
        return asked
    limit = max_hours * 3600
    work = limit * NOMINAL_RATE[mixture.profile.device] / len(mixture.experts)
    compiling = mixture.profile.for_work(work).compiled
    seconds = _schedule_seconds(mixture, bool(compiling))
    if not all(form == compiling for form in mixture.settle(min(1.0, limit / seconds))):
        # The work that fits is too little, or too much, for the form that was timed.
        seconds = _schedule_seconds(mixture, not compiling)
    fraction = min(1.0, limit / seconds)
    reporter.say(
        f"the whole schedule takes {seconds / 3600:.2f} h here; {max_hours} h make "
        f"{fraction:.4g} of it"
    )
    return fraction


def _schedule_seconds(mixture: Mixture, compiled: bool) -> float:
    """Seconds of the whole schedule: those of the rank that takes longest."""
    spare = mixture.spare()
    for expert in spare.experts:
        expert.settle(math.inf if compiled else 0.0)
    seconds = measure(spare).seconds(mixture.steps(1.0), mixture.config.diversity.every)
    return max(world().largest(seconds), 1e-9)
