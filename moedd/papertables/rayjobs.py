"""Running many cells as Ray tasks: sets to make, networks to train, on all machines of a cluster.

A task works in `$MOEDD_HOME`, which all machines share, and hands its record back; the one who
asked keeps it. The task of a worker that dies is begun again by Ray, elsewhere if need be, and goes
on from its checkpoint; the lock of the dead one is free by then, and that of one that only seemed
dead is not, so that nothing is done twice.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import moedd
from moedd.papertables.alone import LOCKS
from moedd.papertables.cells import Arithmetic, Cell, SetCell
from moedd.papertables.handover import take
from moedd.papertables.jobs import (
    Outcome,
    Told,
    Unit,
    described_unit,
    run_with,
)
from moedd.papertables.places import CellPlaces, DataPlace, read_data
from moedd.papertables.plan import Planned
from moedd.papertables.raycluster import machines
from moedd.papertables.run import hand_cell, make_set
from moedd.profile import choose_profile
from moedd.progress import Reporter
from moedd_loaders.errors import MoeddError, UsageError
from moedd_loaders.files import put
from moedd_loaders.records import Record

RETRIES = 3
"""How often a unit whose worker died is begun again."""
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Needs:
    """What each unit gets: CPUs, a part of a GPU or several; `jobs` at a time (None: as many as
    the cluster holds)."""

    threads: int
    gpus: float = 0.0
    jobs: int | None = None


@dataclass(frozen=True)
class Terms:
    """What a machine must have in common with the one that asked, or it would do other work, or
    work that another one does."""

    asked_on: str
    token: str
    version: str
    fingerprints: Mapping[str, str]
    gpus: float


@dataclass(frozen=True)
class Answer:
    """What a task gives back; an error with `unfit` True is the machine's, not the unit's."""

    record: Record | None = None
    error: MoeddError | None = None
    unfit: bool = False


class _UnfitError(Exception):
    """A machine cannot take part: the run ends, before it does work that is of no use."""


def run_on_ray(
    planned: Sequence[Planned], places: CellPlaces, told: Told, needs: Needs, reporter: Reporter
) -> Outcome:
    """All cells as tasks of the Ray that is joined.

    Raises UsageError: no machine is large enough for a cell, or one has other files, data or
    arithmetic than this one.
    """
    places = _absolute(places)
    with _terms(planned, places, needs.gpus) as terms:
        workers = _Tasks(places, needs, terms, len(planned), reporter)
        reporter.begin("cells", len(planned))
        try:
            return run_with(workers, planned, told)
        except _UnfitError as error:
            raise error.args[0] from None
        finally:
            reporter.end()
            workers.stop()


class _Tasks:
    """Workers that are tasks of Ray."""

    def __init__(
        self, places: CellPlaces, needs: Needs, terms: Terms, total: int, reporter: Reporter
    ) -> None:
        import ray

        self.places, self.needs, self.terms = places, needs, terms
        self.reporter, self.total, self.done = reporter, total, 0
        self.ray: Any = ray
        self.begun: set[Any] = set()
        self.task = ray.remote(num_cpus=needs.threads, num_gpus=needs.gpus, max_retries=RETRIES)(
            work
        )
        if not self._fitting():
            raise UsageError(
                f"every cell is to have {amount(needs)}, and no machine of the Ray cluster has as "
                "much: give fewer --threads, or other --gpus-per-cell (0 computes on CPUs)"
            )

    def room(self) -> int:
        return self.needs.jobs or max(1, self._fitting())

    def start(self, unit: Unit) -> Any:
        task = self.task.options(name=described_unit(unit))
        handle = task.remote(unit, self.places, self.terms)
        self.begun.add(handle)
        return handle

    def some_done(self, running: Mapping[Any, Unit]) -> list[Any]:
        while True:
            found, _ = self.ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
            if found:
                return list(found)
            self.reporter.step(self.done, _shown(list(running.values())))

    def result(self, handle: Any) -> Record | None:
        self.begun.discard(handle)
        answer = self._answer(handle)
        if answer.error is not None:
            raise _UnfitError(answer.error) if answer.unfit else answer.error
        if answer.record is not None:
            take(self.places, answer.record)
            self.done += 1
        return answer.record

    def stop(self) -> None:
        """End what was begun and is not done: after an error, or when the person says so."""
        for handle in self.begun:
            self.ray.cancel(handle, force=True)

    def _fitting(self) -> int:
        needs = self.needs
        return sum(machine.cells(needs.threads, needs.gpus) for machine in machines())

    def _answer(self, handle: Any) -> Answer:
        errors = self.ray.exceptions
        try:
            answer: Answer = self.ray.get(handle)
        except errors.RayTaskError as error:
            if "No module named 'moedd" in str(error):
                raise _UnfitError(
                    UsageError(
                        "the machines of the Ray cluster have no moedd, or an older one: install "
                        f"moedd {moedd.__version__} in the Python that runs Ray there"
                    )
                ) from None
            raise (error.cause or error) from error  # a fault inside
        except errors.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MoeddError(
                f"its worker died {1 + RETRIES} times, or Ray gave it up (was memory short?): "
                f"{reason.split('. ')[0].rstrip('.')}"
            ) from None
        return answer


def amount(needs: Needs) -> str:
    """`2 CPUs`, `1 CPU and 0.5 GPU`."""
    cpus = f"{needs.threads} CPU{'s' if needs.threads > 1 else ''}"
    return f"{cpus} and {needs.gpus:g} GPU{'s' if needs.gpus > 1 else ''}" if needs.gpus else cpus


def _shown(units: list[Unit]) -> str:
    """What runs, in a few words."""
    more = f", and {len(units) - 2} more" if len(units) > 2 else ""
    return "running: " + "; ".join(described_unit(unit) for unit in units[:2]) + more


def _absolute(places: CellPlaces) -> CellPlaces:
    """Folders by names that mean the same in any process."""
    data = tuple(replace(place, path=_found(place)) for place in places.data)
    return replace(
        places, home=places.home.absolute(), records=places.records.absolute(), data=data
    )


def _found(place: DataPlace) -> str | None:
    """The path of data that lie here; other places (the Hub) as they are named."""
    path = Path(place.path).expanduser() if place.path is not None else None
    return str(path.absolute()) if path is not None and path.exists() else place.path


# ----------------------------------------------------------------------- on both sides


@contextmanager
def _terms(planned: Sequence[Planned], places: CellPlaces, gpus: float) -> Iterator[Terms]:
    """Terms of this run, with a file in `$MOEDD_HOME` that is there and locked while it lasts."""
    token = secrets.token_hex(8)
    path = _token_path(places.home, token)
    put(path, token.encode())
    names = {item.cell.data for item in planned}
    fingerprints = {name: read_data(places.of(name)).fingerprint for name in names}
    try:
        with FileLock(path):
            yield Terms(socket.gethostname(), token, moedd.__version__, fingerprints, gpus)
    finally:
        path.unlink(missing_ok=True)


def _token_path(home: Path, token: str) -> Path:
    return home / LOCKS / f"ray-{token}"


# ---------------------------------------------------------------------------- in a task


def work(unit: Unit, places: CellPlaces, terms: Terms) -> Answer:
    """One unit, in a worker of any machine."""
    os.environ["MOEDD_HOME"] = str(places.home)
    if not terms.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        check_machine(unit, places, terms)
    except MoeddError as error:
        return Answer(error=UsageError(f"on {socket.gethostname()}: {error}"), unfit=True)
    try:
        if isinstance(unit, Planned):
            return Answer(hand_cell(unit.cell, places))
        make_set(unit[1], unit[0], places)
    except MoeddError as error:
        return Answer(error=error)
    return Answer()


def check_machine(unit: Unit, places: CellPlaces, terms: Terms) -> None:
    """Raise UsageError if a unit cannot be done here as it is meant."""
    if moedd.__version__ != terms.version:
        raise UsageError(
            f"moedd is {moedd.__version__} here and {terms.version} on {terms.asked_on}: install "
            "the same version on all machines"
        )
    _check_home(places.home, terms)
    data = unit.cell.data if isinstance(unit, Planned) else unit[0]
    if read_data(places.of(data)).fingerprint != terms.fingerprints[data]:
        place = places.of(data).path or "their usual place"
        raise UsageError(
            f"the images of {data} at {place} are not those of {terms.asked_on}: share the folder, "
            "or copy it to all machines as it is"
        )
    if terms.gpus and not torch.cuda.is_available():
        raise UsageError(
            "a GPU is given to the cell and torch sees none: install a torch with CUDA there, or "
            "give --gpus-per-cell 0"
        )
    for arithmetic in _arithmetic(unit):
        here = choose_profile(arithmetic.profile).precision
        if here != arithmetic.precision:
            raise UsageError(
                f"profile {arithmetic.profile} computes in {here} here and the cells are meant in "
                f"{arithmetic.precision}: give --profile float32, or use machines of one kind"
            )


def _check_home(home: Path, terms: Terms) -> None:
    path = _token_path(home, terms.token)
    if not path.is_file():
        raise UsageError(
            f"MOEDD_HOME, {home}, is not the folder of {terms.asked_on}: sets, checkpoints and "
            "locks lie there, so it must be on a file system that all machines share"
        )
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        return
    raise UsageError(
        f"a lock that {terms.asked_on} holds in MOEDD_HOME, {home}, is not seen: two machines "
        "would do the same work; mount the file system with locks that reach all machines"
    )


def _arithmetic(unit: Unit) -> set[Arithmetic]:
    cell: Cell | None = unit.cell if isinstance(unit, Planned) else None
    on = cell.on if cell is not None else unit[1]  # type: ignore[index]
    found = {on.arithmetic} if isinstance(on, SetCell) else set()
    return found | ({cell.evaluation.arithmetic} if cell is not None else set())
