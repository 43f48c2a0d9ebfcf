"""How long a mixture takes: a few real steps of experts that are thrown away, in one place.

`--max-hours` fits the schedule to it, and `--dry-run` prints it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from moedd.diversify import diversity_step
from moedd.mixture import Mixture
from moedd.profile import NOMINAL_RATE
from moedd.progress import Reporter
from moedd.ranks import world

_TIMED_STEPS = 2


@dataclass(frozen=True)
class Pace:
    """Seconds of a step of each expert (0 where this rank does not work on it, or there are no
    steps to make), and of a diversity step (0 where there is none)."""

    steps: tuple[float, ...]
    diversity: float

    def seconds(self, steps: Sequence[int], every: int) -> float:
        """Of so many steps of each expert, a diversity step after each `every` of the longest."""
        matching = sum(n * pace for n, pace in zip(steps, self.steps, strict=True))
        return matching + (max(steps) / every * self.diversity if every else 0.0)


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


def measure(mixture: Mixture) -> Pace:
    """The pace of these experts, which are moved by it: give it a `spare` one."""
    paces = []
    for expert in mixture.experts:
        paces.append(0.0)
        if expert.steps and expert.team.here:
            expert.step()
            began = time.perf_counter()
            for _ in range(_TIMED_STEPS):
                expert.step()
            paces[-1] = (time.perf_counter() - began) / _TIMED_STEPS
    diversity = 0.0
    if mixture.diverse:
        began = time.perf_counter()
        diversity_step(mixture.experts, mixture.config.diversity, mixture.streams.scope("timing"))
        diversity = time.perf_counter() - began
    return Pace(tuple(paces), diversity)
