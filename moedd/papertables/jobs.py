"""Running many cells: one after another, in several processes, or by any other workers (`Workers`).

The unit of work is a set to make or a network to train. A worker that is free takes the first unit
of the plan whose set is there (or is not being made by another worker): no two wait for the same
set while there is other work. A unit that fails is named at the end; those that need it are left
out, the others go on. Workers end with the process that started them, however it ends.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Protocol, TypeVar

from moedd.papertables.cells import Cell, SetCell
from moedd.papertables.places import CellPlaces
from moedd.papertables.plan import Planned
from moedd.papertables.run import make_set, run_cell
from moedd.papertables.worker import end_with_parent
from moedd.progress import Reporter
from moedd_loaders.errors import MoeddError
from moedd_loaders.records import Record

SetUnit = tuple[str, SetCell]
"""A set to make: of which data, and the cell."""
Unit = Planned | SetUnit
"""What one worker does at a time: a network to train, or a set to make."""


@dataclass
class Outcome:
    """What became of a run: records of networks, and the errors of units by what they were."""

    records: list[Record] = field(default_factory=list)
    failed: dict[str, MoeddError] = field(default_factory=dict)


Told = Callable[[Planned, Record, int], None]
"""Called with each record, its plan, and how many cells are done."""


Run = Callable[[Sequence[Planned], CellPlaces, Told, Reporter], Outcome]
"""A way to run cells."""


def run_on_this_machine(jobs: int) -> Run:
    """So many cells at a time: one in this process, more in processes of their own."""
    if jobs == 1:
        return run_here
    return lambda planned, places, told, _: run_in_processes(planned, places, told, jobs)


def set_of(cell: Cell) -> SetUnit | None:
    """The set that a cell needs."""
    return (cell.data, cell.on) if isinstance(cell.on, SetCell) else None


def run_here(
    planned: Sequence[Planned], places: CellPlaces, told: Told, reporter: Reporter
) -> Outcome:
    """All cells in this process, in their order."""
    outcome = Outcome()
    broken: set[SetUnit] = set()
    for item in planned:
        unit = set_of(item.cell)
        if unit in broken:
            continue
        try:
            if unit is not None:
                make_set(unit[1], unit[0], places, reporter)
        except MoeddError as error:
            assert unit is not None
            broken.add(unit)
            outcome.failed[described_set(unit)] = error
            continue
        try:
            record = run_cell(item.cell, places, reporter)
        except MoeddError as error:
            outcome.failed[described(item)] = error
            continue
        outcome.records.append(record)
        told(item, record, len(outcome.records))
    return outcome


def described_unit(unit: Unit) -> str:
    """A cell or a set in words."""
    return described(unit) if isinstance(unit, Planned) else described_set(unit)


def described(item: Planned) -> str:
    """A cell in words."""
    cell = item.cell
    seed = f", set {cell.seed}" if isinstance(cell.on, SetCell) else ""
    draw = f", draw {cell.on.draw}" if not seed and hasattr(cell.on, "draw") else ""
    which = f"{seed}{draw}, {cell.network} {cell.repeat + 1}"
    return f"{cell.data}: {cell.identity.title}{which}"


def described_set(unit: SetUnit) -> str:
    """A set in words."""
    data, cell = unit
    more = "".join(f", {text}" for text in cell.row)
    return f"set {data}-{cell.methods}-{cell.ipc}x{cell.experts}{more}, seed {cell.seed}"


class Queue:
    """The units in the order of the plan; what can be started next."""

    def __init__(self, planned: Sequence[Planned]) -> None:
        self.waiting = deque(planned)
        self.ready: set[SetUnit] = set()
        self.making: set[SetUnit] = set()
        self.broken: set[SetUnit] = set()

    def next(self) -> Unit | None:
        """The first unit that can be started now; None where all that is left must wait."""
        held: list[Planned] = []
        found: Unit | None = None
        while self.waiting and found is None:
            item = self.waiting.popleft()
            unit = set_of(item.cell)
            if unit is None or unit in self.ready:
                found = item
            elif unit in self.broken:
                continue
            else:
                held.append(item)
                if unit not in self.making:
                    self.making.add(unit)
                    found = unit
        self.waiting.extendleft(reversed(held))
        return found

    def made(self, unit: SetUnit, whole: bool) -> None:
        """A set is there, or will never be."""
        self.making.discard(unit)
        (self.ready if whole else self.broken).add(unit)


Handle = TypeVar("Handle")
"""What stands for a unit that a worker has begun."""


class Workers(Protocol[Handle]):
    """Who does the units: processes here, tasks elsewhere."""

    def room(self) -> int:
        """How many units may be begun at a time, now."""

    def start(self, unit: Unit) -> Handle:
        """Have a unit begun."""

    def some_done(self, running: Mapping[Handle, Unit]) -> Iterable[Handle]:
        """Wait until at least one of them is done; those that are."""

    def result(self, handle: Handle) -> Record | None:
        """The record of a network that is done; None of a set. Raises MoeddError: it failed."""


def run_with(workers: Workers[Handle], planned: Sequence[Planned], told: Told) -> Outcome:
    """All cells by these workers; what a worker raises that is no MoeddError ends the run."""
    outcome, queue = Outcome(), Queue(planned)
    running: dict[Handle, Unit] = {}
    while True:
        while len(running) < workers.room() and (unit := queue.next()) is not None:
            running[workers.start(unit)] = unit
        if not running:
            return outcome
        for handle in workers.some_done(running):
            unit = running.pop(handle)
            try:
                record = workers.result(handle)
            except MoeddError as error:
                outcome.failed[described_unit(unit)] = error
                if not isinstance(unit, Planned):
                    queue.made(unit, whole=False)
                continue
            if isinstance(unit, Planned):
                assert record is not None
                outcome.records.append(record)
                told(unit, record, len(outcome.records))
            else:
                queue.made(unit, whole=True)


class _Processes:
    """Workers that are processes of this machine."""

    def __init__(self, pool: ProcessPoolExecutor, places: CellPlaces, jobs: int) -> None:
        self.pool, self.places, self.jobs = pool, places, jobs

    def room(self) -> int:
        return self.jobs

    def start(self, unit: Unit) -> Future[Record | None]:
        return self.pool.submit(_work, _plain(unit), self.places)

    def some_done(
        self, running: Mapping[Future[Record | None], Unit]
    ) -> set[Future[Record | None]]:
        return wait(running, return_when=FIRST_COMPLETED).done

    def result(self, handle: Future[Record | None]) -> Record | None:
        return handle.result()


def run_in_processes(
    planned: Sequence[Planned], places: CellPlaces, told: Told, jobs: int
) -> Outcome:
    """All cells in `jobs` processes.

    Raises MoeddError: a worker was killed from outside.
    """
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent)
    try:
        return run_with(_Processes(pool, places, jobs), planned, told)
    except BrokenProcessPool:
        raise MoeddError(
            "a worker process was killed from outside (was memory short?): finished cells are "
            "kept, run the same command again to go on, perhaps with fewer --jobs"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _plain(unit: Unit) -> Cell | SetUnit:
    return unit.cell if isinstance(unit, Planned) else unit


def _work(unit: Cell | SetUnit, places: CellPlaces) -> Record | None:
    """One unit, in a worker."""
    if isinstance(unit, Cell):
        return run_cell(unit, places)
    data, cell = unit
    make_set(cell, data, places)
    return None
