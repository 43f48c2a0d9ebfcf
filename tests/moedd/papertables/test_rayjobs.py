"""Cells as tasks of a local Ray of two workers: the same records, once, also after a kill."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from runfactories import make_home
from tablefactories import (
    SETTINGS,
    cell,
    digits_facts,
    method_settings,
    places,
    set_cell,
    tiny_options,
)

from moedd.papertables import rayjobs
from moedd.papertables.cells import Arithmetic, SetCell
from moedd.papertables.jobs import Outcome, Unit, run_here
from moedd.papertables.places import CellPlaces, DataPlace
from moedd.papertables.plan import Planned, plan_cells
from moedd.papertables.raycluster import Where, joined, machines
from moedd.papertables.rayjobs import Answer, Needs, Terms, check_machine, run_on_ray
from moedd.papertables.run import run_cell
from moedd.papertables.store import read_cells
from moedd.progress import Reporter
from moedd_loaders.errors import UsageError
from moedd_loaders.records import Record

QUIET = Reporter(quiet=True)
ONE_CPU = Needs(threads=1)


def plan(**given: Any) -> list[Planned]:
    return plan_cells(tiny_options(**given), [digits_facts()])


def ignore(item: Planned, record: Record, count: int) -> None:
    pass


def decided(records: Any) -> dict[str, dict[str, Any]]:
    """All of the records that the cells decide, by address; times and sizes of memory vary."""
    varying = {"created", "seconds", "peak_memory_bytes"}
    found = {}
    for record in records:
        fields = record.model_dump(mode="json", exclude=varying)
        fields["config"]["set"].pop("seconds", None)
        found[record.config["cell"]] = fields
    return found


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of this file's own, with two CPUs."""
    with joined(Where(None), 2):
        import ray

        yield ray


@pytest.fixture
def at(home: Path) -> CellPlaces:
    return places(home, threads=1)


# ---------------------------------------------------------------------- the same records


@dataclass(frozen=True)
class Both:
    """The same cells by tasks and here: places and outcomes."""

    tasks_at: CellPlaces
    by_tasks: Outcome
    here_at: CellPlaces
    here: Outcome


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, pools: Path, ray: Any) -> Both:
    """Two sets and their six networks; by tasks also a set that cannot be made, and records kept
    where no task writes."""
    folder = tmp_path_factory.mktemp("both")
    items = plan(seeds=2)
    one = places(make_home(folder / "one", pools), threads=1)
    two = places(make_home(folder / "two", pools), folder / "mine", threads=1)
    broken = replace(items[0].cell, on=replace(items[0].cell.on, ipc=10_000))  # type: ignore[arg-type]
    more = [*items, Planned(items[0].row, broken, "broken")]
    by_tasks = run_on_ray(more, two, ignore, ONE_CPU, QUIET)
    return Both(two, by_tasks, one, run_here(items, one, ignore, QUIET))


def test_tasks_make_the_same_records(both: Both) -> None:
    at, wanted = both.tasks_at, decided(both.here.records)
    assert len(wanted) == 6
    assert decided(both.by_tasks.records) == wanted
    # They are kept, each once: in the folder of who asked and beside their sets.
    assert decided(read_cells(at.records).values()) == wanted
    assert lines(at.records) == 6
    assert [lines(made / "benchmarks") for made in (at.home / "sets").iterdir()] == [3, 3]
    assert list((at.home / "handed").iterdir()) == []
    assert not any(path.name.startswith("ray-") for path in (at.home / "locks").iterdir())


def test_a_failure_is_named_and_the_others_go_on(both: Both) -> None:
    (what,) = both.by_tasks.failed
    assert what == "set digits-idc_i-10000x2, seed 0"
    assert "training images" in str(both.by_tasks.failed[what])


def test_nobody_else_reaches_our_ray(ray: Any) -> None:
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.connect(("192.0.2.1", 9))  # sends nothing; says which address would be used
        own = other.getsockname()[0]
    socket.create_connection(("127.0.0.1", port), 5).close()
    if own != "127.0.0.1":
        with pytest.raises(OSError):
            socket.create_connection((own, port), 5)


def test_a_machine_that_cannot_take_part_ends_the_run(
    at: CellPlaces, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moedd.__version__", "9.9")  # here, not where tasks run
    with pytest.raises(UsageError, match=r"on \S+: moedd is \S+ here and 9\.9 on"):
        run_on_ray(plan(seeds=2), at, ignore, ONE_CPU, QUIET)
    assert not (at.home / "sets").exists()


# ------------------------------------------------------------------------------- a kill


def holder(lock: Path) -> int | None:
    """The process that has this file open."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            opened = [os.readlink(one) for one in (process / "fd").iterdir()]
        except OSError:
            continue
        if str(lock) in opened:
            return int(process.name)
    return None


class Killer(threading.Thread):
    """SIGKILL for whoever holds the lock of a name, as soon as the moment has come."""

    def __init__(self, at: CellPlaces, lock: str, moment: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.at, self.lock, self.moment = at, lock, moment
        self.killed: int | None = None

    def run(self) -> None:
        ends = time.monotonic() + 200
        while self.killed is None and time.monotonic() < ends:
            time.sleep(0.01)
            for lock in (self.at.home / "locks").glob(self.lock) if self.moment() else ():
                if process := holder(lock):
                    os.kill(process, signal.SIGKILL)
                    self.killed = process


def test_a_killed_workers_cell_is_run_again(both: Both) -> None:
    """SIGKILL while the network is trained."""
    item = plan(epochs=150)[0]
    often = replace(both.tasks_at, checkpoint_seconds=0.0, records=both.tasks_at.home / "again")

    def trained() -> bool:
        return any((often.home / "training").glob(f"{item.address}.safetensors"))

    killer = Killer(often, f"cell-{item.address}.lock", trained)
    killer.start()
    outcome = run_on_ray([item], often, ignore, ONE_CPU, QUIET)
    assert killer.killed
    assert outcome.failed == {}
    wanted = decided([run_cell(item.cell, both.here_at)])
    assert decided(outcome.records) == wanted
    assert decided(read_cells(often.records).values()) == wanted
    (made,) = (often.home / "sets").glob("*-s0-*")
    assert (lines(often.records), lines(made / "benchmarks")) == (1, 3 + 1)
    assert not any((often.home / "training").glob("[!.]*"))


@pytest.mark.slow
def test_a_killed_workers_set_is_made_again(
    at: CellPlaces, ray: Any, tmp_path: Path, pools: Path
) -> None:
    """SIGKILL while the set is matched: another worker goes on, and no step is done twice."""
    (item, *_) = plan(settings=(*SETTINGS, *method_settings("idc_i"), "idc_i.steps=40"))
    often = replace(at, checkpoint_seconds=0.0)

    def begun() -> bool:
        logs = (at.home / "runs").glob("*/log.jsonl")
        return any(path.read_bytes().count(b"\n") >= 4 for path in logs)

    killer = Killer(at, "digits-*.lock", begun)
    killer.start()
    outcome = run_on_ray([item], often, ignore, ONE_CPU, QUIET)
    assert killer.killed
    assert outcome.failed == {}
    whole = places(make_home(tmp_path / "whole", pools), threads=1)
    assert decided(outcome.records) == decided([run_cell(item.cell, whole)])
    assert lines(at.records) == 1
    assert lines_of_log(at.home) == lines_of_log(whole.home)


def lines_of_log(home: Path) -> int:
    (log,) = (home / "runs").glob("*/log.jsonl")
    return log.read_bytes().count(b"\n")


@pytest.mark.slow
def test_a_worker_that_always_dies_fails_its_unit(
    at: CellPlaces, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(unit: Unit, places: CellPlaces, terms: Terms) -> Answer:
        os.kill(os.getpid(), signal.SIGKILL)
        return Answer()

    monkeypatch.setattr(rayjobs, "work", deadly)
    monkeypatch.setattr(rayjobs, "RETRIES", 1)
    outcome = run_on_ray(plan(), at, ignore, ONE_CPU, QUIET)
    assert list(outcome.failed) == ["set digits-idc_i-2x2, seed 0"]
    assert "its worker died 2 times" in str(outcome.failed["set digits-idc_i-2x2, seed 0"])
    assert outcome.records == []


# ---------------------------------------------------------------------- what cannot be


def test_a_cell_that_fits_no_machine_is_refused(at: CellPlaces, ray: Any) -> None:
    assert [(machine.cpus, machine.cells(1, 0)) for machine in machines()] == [(2, 2)]
    with pytest.raises(UsageError, match="every cell is to have 3 CPUs, and no machine"):
        run_on_ray(plan(), at, ignore, Needs(threads=3), QUIET)


@pytest.fixture
def terms(at: CellPlaces) -> Iterator[Terms]:
    with rayjobs._terms([planned()], at, 0.0) as made:
        yield made


def planned(on: SetCell | None = None) -> Planned:
    return replace(plan()[0], cell=cell(on or set_cell()))


def test_a_machine_like_this_one_takes_part(at: CellPlaces, terms: Terms) -> None:
    check_machine(planned(), at, terms)
    check_machine(("digits", set_cell()), at, terms)


def test_another_home_is_noticed(at: CellPlaces, terms: Terms, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be on a file system that all machines share"):
        check_machine(planned(), replace(at, home=tmp_path / "other"), terms)


def test_locks_that_do_not_reach_are_noticed(at: CellPlaces, terms: Terms) -> None:
    """A file of the same name that nobody holds: what a machine sees of a lock that stays on
    another one."""
    (token,) = (at.home / "locks").glob("ray-*")
    token.unlink()
    token.touch()
    with pytest.raises(UsageError, match="two machines would do the same work"):
        check_machine(planned(), at, terms)
    with FileLock(token):
        check_machine(planned(), at, terms)


def test_other_images_are_noticed(at: CellPlaces, terms: Terms) -> None:
    held = replace(at, data=(DataPlace("digits", validation=True),))
    with pytest.raises(UsageError, match="the images of digits at their usual place are not"):
        check_machine(planned(), held, terms)


def test_another_arithmetic_is_noticed(
    at: CellPlaces, terms: Terms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moedd.profile.bfloat16_units", lambda: "none")
    fast = planned(set_cell(arithmetic=Arithmetic("fast", "bfloat16")))
    with pytest.raises(UsageError, match="profile fast computes in float32 here"):
        check_machine(fast, at, terms)


def test_a_gpu_that_torch_does_not_see_is_noticed(
    at: CellPlaces, terms: Terms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees none"):
        check_machine(planned(), at, replace(terms, gpus=1.0))


def test_folders_mean_the_same_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    data = tuple(DataPlace(n, p) for n, p in (("a", "images"), ("b", "some/one"), ("c", None)))
    found = rayjobs._absolute(CellPlaces(Path("home"), Path("records"), data))
    assert (found.home, found.records) == (tmp_path / "home", tmp_path / "records")
    assert [place.path for place in found.data] == [str(tmp_path / "images"), "some/one", None]
