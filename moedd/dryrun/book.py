"""The book that a dry run keeps: a stage after another, with the peak of each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter

from moedd.dryrun.estimate import Stage
from moedd.dryrun.peaks import PeakMeter
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.timing import Laps, Stopwatch

STAGE_FILE = "stage"


class Book:
    """Stages as they are timed. `folder` is where the name of the present one stands, for the case
    that the process is killed in it."""

    def __init__(self, profile: Profile, folder: Path, reporter: Reporter) -> None:
        self.profile, self.folder, self.reporter = profile, folder, reporter
        self.meter = PeakMeter(profile.device)
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """A stage; what is set in it is kept, and its peak is noted at the end."""
        (self.folder / STAGE_FILE).write_text(title, encoding="utf-8")
        self.reporter.say(f"timing: {title}")
        stage = Stage(title=title)
        yield stage
        peak = self.meter.lap()
        # Parts of a stage may have noted theirs before.
        stage.peak = max(stage.peak, peak.host)
        stage.device_peak = max(stage.device_peak, peak.device)
        self.stages.append(stage)


class Enough(Exception):
    """Enough laps were timed: leaves a training loop that goes on for hours."""


class LapReporter(Reporter):
    """Times what is reported step by step, and ends it when enough is known."""

    def __init__(self, device: str) -> None:
        super().__init__(quiet=True)
        self.device = device
        self.watch: Stopwatch | None = None
        self.made = perf_counter()
        self.before = 0.0

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self.before = perf_counter() - self.made
        self.watch = Stopwatch(self.device)

    def step(self, done: int, note: str = "") -> None:
        assert self.watch is not None
        if self.watch.lap():
            raise Enough

    @property
    def laps(self) -> Laps:
        """What was found."""
        assert self.watch is not None
        return self.watch.laps()


def laps_of(train: Callable[[Reporter], object], device: str) -> LapReporter:
    """The laps that `train`, which is given a reporter, reports to it."""
    reporter = LapReporter(device)
    with suppress(Enough):
        train(reporter)
    return reporter
