"""One cell is a function of the cell and of the places: the same record, once, whatever happens."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runfactories import digits
from tablefactories import cell, digits_facts, evaluation, method_settings, places, set_cell

from moedd.evaluate import Job, Row, evaluate
from moedd.papertables import run
from moedd.papertables.cells import (
    FullCell,
    RandomCell,
    cell_address,
    set_address,
    set_config,
)
from moedd.papertables.cost import is_prepared, network_operations, preparations, set_cost
from moedd.papertables.lines import line_key
from moedd.papertables.places import CellPlaces, DataPlace, read_data
from moedd.papertables.run import hand_cell, make_set, run_cell, set_folder
from moedd.papertables.store import read_cells
from moedd.profile import Profile
from moedd.protocols import protocol_recipe
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import read_manifest
from moedd_loaders.read import read_tensors
from moedd_loaders.records import read_records


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


@pytest.fixture
def at(home: Path) -> CellPlaces:
    """Places of the test's own, one thread."""
    return places(home, threads=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> CellPlaces:
    """Places of all tests of this file that only add to them."""
    home = tmp_path_factory.mktemp("tables")
    (home / "pools").symlink_to(pools)
    return places(home, threads=1)


# ----------------------------------------------------------------------------- a record


def test_a_cell_is_what_evaluate_gives_for_its_set(shared: CellPlaces) -> None:
    """The same set, the same seed: the very same network."""
    one = cell(set_cell(seed=3), fuse="mixup", repeat=1)
    found = run_cell(one, shared)
    folder = set_folder(one.on, digits_facts(), shared)  # type: ignore[arg-type]
    stored = read_tensors(folder, read_manifest(folder))
    job = Job(Row("distilled", "mixup"), "convnet1", 1)
    recipe = protocol_recipe("common", 1)
    (wanted,) = evaluate(stored, digits(), recipe, [job], Profile(), epochs=1, seed=3, width=4)
    same = ("accuracy", "set_hash", "methods", "ipc", "experts", "variant", "fuse", "network",
            "protocol", "epochs", "schedule_fraction", "seed", "chance", "data_fingerprint",
            "optimizer_steps", "n_train", "test_images")  # fmt: skip
    for field in same:
        assert getattr(found, field) == getattr(wanted, field), field
    assert {**found.config, **wanted.config} == found.config


def test_a_record_says_where_it_belongs(shared: CellPlaces) -> None:
    one = cell(set_cell(row=("diversity.every=0",)))
    facts = digits_facts()
    found = run_cell(one, shared)
    assert found.config["cell"] == cell_address(one, facts)
    assert found.config["threads"] == 1
    assert found.config["precision"] == "float32"
    assert found.config["operations"] == network_operations(one, facts)
    made = found.config["set"]
    assert made["cell"] == set_address(one.on, facts)  # type: ignore[arg-type]
    assert made["row"] == ["diversity.every=0"]
    assert (made["seed"], made["fraction"], made["steps"]) == (0, 1.0, [4, 4])
    assert made["operations"] == set_cost(one.on, facts).operations  # type: ignore[arg-type]
    assert (made["threads"], made["precision"]) == (1, "float32")
    assert line_key(found).identity == one.identity
    assert list(read_cells(shared.records).values())[-1] == found


def test_the_set_is_one_like_any_other(shared: CellPlaces) -> None:
    """In `$MOEDD_HOME/sets`, valid, with its records beside it."""
    one = cell()
    found = run_cell(one, shared)
    folder = set_folder(one.on, digits_facts(), shared)  # type: ignore[arg-type]
    assert folder.parent == shared.home / "sets"
    assert folder.name.startswith("digits-idc_i-2x2-s0-")
    manifest = read_manifest(folder)
    assert manifest.name == folder.name
    assert manifest.training_sha256 == found.set_hash
    assert found in read_records(manifest, folder)


@pytest.mark.parametrize(
    ("on", "name", "images"),
    [
        (RandomCell(4, 1, 0), "digits-random-4x1", 40),
        (RandomCell(4, 2, 1), "digits-random-4x1", 160),
        (FullCell(), "digits-full", 1438),
    ],
)
def test_real_images_need_no_set(
    on: RandomCell | FullCell, name: str, images: int, shared: CellPlaces
) -> None:
    one = cell(on)  # type: ignore[arg-type]
    found = run_cell(one, shared)
    assert (found.set_name, found.n_train) == (name, images)
    assert found.config["set"] == {}
    assert line_key(found).identity == one.identity
    assert found.variant in ("random", "full")
    elsewhere = replace(shared, records=shared.home / "elsewhere")
    assert run_cell(one, elsewhere).accuracy == found.accuracy
    if isinstance(on, RandomCell):
        other = run_cell(cell(replace(on, draw=7)), shared)  # type: ignore[arg-type]
        assert other.set_hash != found.set_hash


def test_random_draws_are_those_of_evaluate(shared: CellPlaces) -> None:
    """`moedd evaluate --random` on a set with the same budget and decode draws the same images."""
    one = cell(RandomCell(4, 1, 1))
    found = run_cell(one, shared)
    single = set_cell(ipc=4, experts=1)
    folder, manifest = make_set(single, "digits", shared)
    job = Job(Row("random", draw=1), "convnet1", 0)
    stored = read_tensors(folder, manifest)
    recipe = protocol_recipe("common", 1)
    (wanted,) = evaluate(stored, digits(), recipe, [job], Profile(), epochs=1, width=4)
    assert (found.accuracy, found.n_train) == (wanted.accuracy, wanted.n_train)


@pytest.mark.parametrize(
    ("protocol", "name"), [("idc", "idc-1"), ("idm", "idm-1"), ("rded", "rded-1")]
)
def test_every_protocol_can_be_run(protocol: str, name: str, shared: CellPlaces) -> None:
    quick = ("rded.observer_steps=60", "rded.observer_lr=0.1")
    how = evaluation(protocol=protocol, teacher=quick if protocol == "rded" else ())
    found = run_cell(cell(evaluation=how), shared)
    assert found.protocol == name
    assert ("teacher" in found.config) == (protocol == "rded")
    random = run_cell(cell(RandomCell(4, 1, 0), evaluation=how), shared)
    assert (random.protocol, random.config["lr"]) == (name, found.config["lr"])


def test_protocol_mtt_takes_the_learned_step_size(shared: CellPlaces) -> None:
    settings = (*set_cell().settings, *method_settings("mtt"))
    mtt = set_cell(methods="mtt", experts=1, settings=settings)
    how = evaluation(protocol="mtt")
    found = run_cell(cell(mtt, evaluation=how), shared)
    manifest = read_manifest(set_folder(mtt, digits_facts(), shared))
    assert found.config["lr"] == manifest.experts[0].step_size
    for on, said in ((set_cell(), "learned one"), (RandomCell(4, 1, 0), "real images have none")):
        with pytest.raises(UsageError, match=said):
            run_cell(cell(on, evaluation=how), shared)  # type: ignore[arg-type]


def test_the_best_point_is_marked(shared: CellPlaces) -> None:
    how = evaluation(protocol="idc", epochs=4, best=True)
    found = run_cell(cell(evaluation=how), shared)
    assert found.protocol == "idc-4-best"
    assert found.accuracy == max(found.config["points"].values())


# ------------------------------------------------------------------- done once, killed


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How often a function of `run.py` was called."""
    calls: list[int] = []
    function = getattr(run, name)

    def call(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return function(*given, **named)

    monkeypatch.setattr(run, name, call)
    return calls


def test_a_set_is_made_once(at: CellPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "distill")
    for fuse in ("none", "mixup"):
        run_cell(cell(fuse=fuse), at)
    assert len(calls) == 1
    run_cell(cell(set_cell(seed=1)), at)
    assert len(calls) == 2


def test_a_network_is_trained_once(at: CellPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "train_and_test")
    first, again = run_cell(cell(), at), run_cell(cell(), at)
    assert again == first
    assert len(calls) == 1
    lines = [path.read_text().count("\n") for path in at.records.iterdir()]
    assert lines == [1]
    # Whose records are elsewhere has its own.
    run_cell(cell(), replace(at, records=at.home / "other"))
    assert len(calls) == 2
    assert not any(path.name.startswith("cell-") for path in (at.home / "locks").iterdir())


def test_a_record_that_nobody_took_is_taken_by_the_next(
    at: CellPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked was killed after the network was tested."""
    calls = counted(monkeypatch, "train_and_test")
    left = hand_cell(cell(), at)
    assert read_cells(at.records) == {}
    assert hand_cell(cell(), at) == left
    assert run_cell(cell(), at) == left
    assert len(calls) == 1
    assert list(read_cells(at.records).values()) == [left]
    assert list((at.home / "handed").iterdir()) == []


def test_three_at_one_cell_train_it_once(at: CellPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "train_and_test")
    with ThreadPoolExecutor(3) as together:
        found = list(together.map(lambda _: run_cell(cell(), at), range(3)))
    assert len(calls) == 1
    assert found[0] == found[1] == found[2]
    lines = [path.read_text().count("\n") for path in at.records.iterdir()]
    assert lines == [1]


def test_a_killed_set_goes_on(at: CellPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    import moedd.mixture

    whole = run_cell(cell(), replace(at, home=at.home / "whole", records=at.home / "other"))
    tick, ticks = moedd.mixture.Mixture.tick, []

    def deadly(self: Any, number: int, steps: Any) -> Any:
        ticks.append(number)
        if len(ticks) == 3:
            raise Killed
        return tick(self, number, steps)

    often = replace(at, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(moedd.mixture.Mixture, "tick", deadly)
        with pytest.raises(Killed):
            run_cell(cell(), often)
        assert read_cells(at.records) == {}
        found = run_cell(cell(), often)
    assert ticks == [1, 2, 3, 3, 4]
    assert (found.accuracy, found.set_hash) == (whole.accuracy, whole.set_hash)


def test_a_killed_network_goes_on(at: CellPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    from moedd.train import Trainer

    one = cell(evaluation=evaluation(epochs=5))
    whole = run_cell(one, replace(at, records=at.home / "other"))
    after, epochs = Trainer.after_epoch, []

    def deadly(self: Trainer, epoch: int) -> None:
        epochs.append(epoch)
        if len(epochs) == 4:
            raise Killed
        after(self, epoch)

    often = replace(at, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_epoch", deadly)
        with pytest.raises(Killed):
            run_cell(one, often)
        assert len(list((at.home / "training").iterdir())) == 1
        found = run_cell(one, often)
    assert epochs == [0, 1, 2, 3, 3, 4, 5]
    assert found.accuracy == whole.accuracy
    assert list((at.home / "training").iterdir()) == []


def test_threads_are_those_of_the_places_and_given_back(at: CellPlaces) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = run_cell(cell(), at)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (found.config["threads"], found.config["set"]["threads"]) == (1, 1)
    # Another number of threads moves the last bits: it is the same cell.
    assert found.config["cell"] == cell_address(cell(), digits_facts())


def test_what_is_shared_is_known_to_be_there(at: CellPlaces, pools: Path) -> None:
    own = replace(at, home=at.home / "fresh")
    (work,) = preparations(set_cell(), digits_facts())
    assert not is_prepared(work, digits(), own.home, "float32")
    make_set(set_cell(), "digits", own)
    assert is_prepared(work, digits(), own.home, "float32")
    assert not is_prepared(work, digits(), own.home, "bfloat16")


def test_a_cell_is_plain_values() -> None:
    """It can be sent anywhere: equal after a trip through text."""
    import pickle

    for one in (cell(), cell(RandomCell(4, 2, 1))):
        assert pickle.loads(pickle.dumps(one)) == one
    assert pickle.loads(pickle.dumps(places(Path("x")))) == places(Path("x"))


# -------------------------------------------------------------------- the validation part


def test_the_validation_part_is_held_out_of_distillation(at: CellPlaces) -> None:
    held = replace(at, data=(DataPlace("digits", validation=True),))
    real, plain = read_data(held.of("digits")), digits()
    assert len(real.train) + len(real.test) == len(plain.train)
    assert real.fingerprint != plain.fingerprint
    found = run_cell(cell(), held)
    assert found.test_images == len(real.test)
    assert found.config["notes"][-1].startswith("scored on the validation part")
    assert found.config["cell"] != cell_address(cell(), digits_facts())
    manifest = read_manifest(next((at.home / "sets").iterdir()))
    assert manifest.source.fingerprint == real.fingerprint


def test_configurations_are_kept_with_their_sets(shared: CellPlaces) -> None:
    folder, _ = make_set(set_cell(), "digits", shared)
    kept = json.loads((folder / "recipe" / "config.json").read_text())
    config = set_config(set_cell(), digits_facts()).model_dump(mode="json")
    assert kept["experts"] == config["experts"]
    assert kept["fraction"] == 1.0
