"""Many cells: their order, what waits for what, failures, workers that come and go."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runfactories import make_home
from tablefactories import digits_facts, places, tiny_options

from moedd.papertables import jobs
from moedd.papertables.cells import SetCell
from moedd.papertables.jobs import (
    Outcome,
    Queue,
    described,
    described_set,
    run_here,
    run_in_processes,
    set_of,
)
from moedd.papertables.places import CellPlaces
from moedd.papertables.plan import Planned, plan_cells
from moedd.papertables.store import read_cells
from moedd.progress import Reporter
from moedd_loaders.errors import DataError, MoeddError
from moedd_loaders.records import Record

QUIET = Reporter(quiet=True)


def plan(**given: Any) -> list[Planned]:
    return plan_cells(tiny_options(**given), [digits_facts()])


def two_sets() -> list[Planned]:
    """Table 3's three rows on two seeds."""
    return plan(seeds=2)


def ignore(item: Planned, record: Record, count: int) -> None:
    pass


# ------------------------------------------------------------------------------ the queue


def test_a_free_worker_takes_the_first_unit_that_can_be_started() -> None:
    items = two_sets()
    first, second = (set_of(items[n].cell) for n in (0, 3))
    queue = Queue(items)
    assert queue.next() == first  # its networks wait for it
    assert queue.next() == second  # another worker does not
    assert queue.next() is None
    assert second is not None
    queue.made(second, whole=True)
    assert queue.next() is items[3]
    assert first is not None
    queue.made(first, whole=True)
    assert [queue.next() for _ in range(6)] == [items[n] for n in (0, 1, 2, 4, 5)] + [None]


def test_real_images_wait_for_nothing() -> None:
    items = plan(groups=("paper", "fair"), only=("idc_i",))
    queue = Queue(items)
    started = [queue.next() for _ in range(3)]
    assert [type(unit) for unit in started] == [tuple, tuple, Planned]
    assert isinstance(started[2], Planned)
    assert started[2].cell.identity.variant == "random"


def test_what_needs_a_broken_set_is_left_out() -> None:
    items = two_sets()
    queue = Queue(items)
    broken = queue.next()
    assert isinstance(broken, tuple)
    queue.made(broken, whole=False)
    whole = queue.next()
    assert isinstance(whole, tuple)
    queue.made(whole, whole=True)
    assert [queue.next() for _ in range(4)] == [*items[3:], None]


def test_units_are_named_in_words() -> None:
    (item, *_) = plan(groups=("paper",))
    assert described(item) == "digits: idc_i 2x2, cross-expert mixup, set 0, convnet1 1"
    unit = set_of(replace(item.cell, on=replace(item.cell.on, row=("parts=all",))))  # type: ignore[arg-type]
    assert unit is not None
    assert described_set(unit) == "set digits-idc_i-2x2, parts=all, seed 0"
    random = next(i for i in plan(groups=("fair",)) if set_of(i.cell) is None)
    assert described(random) == "digits: random 4, draw 0, convnet1 1"


# ---------------------------------------------------------------------- in this process


@pytest.fixture
def at(home: Path) -> CellPlaces:
    return places(home, threads=1)


Seen = list[tuple[Planned, int]]


@pytest.fixture(scope="module")
def in_one(
    tmp_path_factory: pytest.TempPathFactory, pools: Path
) -> tuple[CellPlaces, Outcome, Seen]:
    """The six cells in this process, and what was told of them."""
    at = places(make_home(tmp_path_factory.mktemp("one") / "home", pools), threads=1)
    seen: Seen = []

    def told(item: Planned, record: Record, count: int) -> None:
        seen.append((item, count))

    return at, run_here(two_sets(), at, told, QUIET), seen


def test_all_cells_in_their_order(in_one: tuple[CellPlaces, Outcome, Seen]) -> None:
    at, outcome, seen = in_one
    items = two_sets()
    assert [item for item, _ in seen] == items
    assert [count for _, count in seen] == list(range(1, 7))
    assert [r.config["cell"] for r in outcome.records] == [item.address for item in items]
    assert set(read_cells(at.records)) == {item.address for item in items}
    assert outcome.failed == {}


def failing(monkeypatch: pytest.MonkeyPatch, name: str, when: Any) -> None:
    """A function of `jobs.py` that fails where `when(its first argument)` says so."""
    function = getattr(jobs, name)

    def call(unit: Any, *rest: Any) -> Any:
        if when(unit):
            raise DataError("the dog ate it")
        return function(unit, *rest)

    monkeypatch.setattr(jobs, name, call)


def test_a_set_that_fails_takes_its_networks_with_it_and_nothing_else(
    at: CellPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = two_sets()
    failing(monkeypatch, "make_set", lambda on: isinstance(on, SetCell) and on.seed == 0)
    outcome = run_here(items, at, ignore, QUIET)
    assert list(outcome.failed) == ["set digits-idc_i-2x2, seed 0"]
    assert [record.seed for record in outcome.records] == [1, 1, 1]


def test_a_network_that_fails_fails_alone(at: CellPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    items = two_sets()
    failing(monkeypatch, "run_cell", lambda one: one.fuse == "vanilla" and one.seed == 1)
    outcome = run_here(items, at, ignore, QUIET)
    assert list(outcome.failed) == ["digits: idc_i 2x2, vanilla mixup, set 1, convnet1 1"]
    assert isinstance(next(iter(outcome.failed.values())), DataError)
    assert len(outcome.records) == 5


# --------------------------------------------------------------------------- in processes


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> tuple[CellPlaces, Outcome]:
    """The six cells in two processes, and a set that cannot be made beside them."""
    at = places(make_home(tmp_path_factory.mktemp("two") / "home", pools), threads=1)
    items = two_sets()
    broken = replace(items[0].cell, on=replace(items[0].cell.on, ipc=10_000))  # type: ignore[arg-type]
    items.append(Planned(items[0].row, broken, "broken"))
    return at, run_in_processes(items, at, ignore, 2)


def test_processes_make_the_same_records(
    in_two: tuple[CellPlaces, Outcome], in_one: tuple[CellPlaces, Outcome, Seen]
) -> None:
    wanted = {r.config["cell"]: (r.accuracy, r.set_hash) for r in in_one[1].records}
    found = {r.config["cell"]: (r.accuracy, r.set_hash) for r in in_two[1].records}
    assert found == wanted
    assert set(read_cells(in_two[0].records)) == set(wanted)


def test_failures_of_workers_are_told(in_two: tuple[CellPlaces, Outcome]) -> None:
    (what,) = in_two[1].failed
    assert what == "set digits-idc_i-10000x2, seed 0"
    assert "training images" in str(in_two[1].failed[what])


def test_a_worker_that_is_killed_is_one_sentence(
    at: CellPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel does so where memory is short."""
    monkeypatch.setattr(jobs, "_work", _die)
    with pytest.raises(MoeddError, match="a worker process was killed from outside"):
        run_in_processes(two_sets(), at, ignore, 1)


def _die(*given: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
