"""What a dry run measures, beside what runs of the same settings leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from dryrunfactories import Dry
from runfactories import MOVING, tiny_run, tree

from moedd.dryrun.estimate import Estimate, Stage
from moedd_loaders.manifest import TENSORS, read_manifest


def stages(estimate: Estimate) -> dict[str, Stage]:
    return {stage.title: stage for stage in estimate.stages}


def files(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def test_a_set_of_real_images_weighs_what_it_will(dry: Dry, home: Path) -> None:
    """Nothing is optimised, so the images are those of the run itself."""
    found = dry("digits-random-2x2")
    tiny_run(home, "digits-random-2x2")
    folder = home / "sets" / "run"
    manifest = read_manifest(folder)
    for e, cost in enumerate(found.experts):
        assert (cost.stored, cost.decoded, cost.steps, cost.schedule) == (20, 20, 0, 0)
        assert cost.seconds == 0
        assert cost.formats["webdataset"] == files(folder, f"train-{e:05d}.tar")
        assert cost.formats["parquet"] == files(folder, f"train-{e:05d}-of-*.parquet")
    assert found.format_bytes("tensors") == manifest.files[TENSORS].size
    made = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    whole = sum(map(found.format_bytes, ("tensors", "parquet", "webdataset"))) + found.other_files
    # Times, and how a number is written, differ by some characters.
    assert whole == pytest.approx(made, rel=0.01)
    networks = files(home / "pools", "network-*.safetensors")
    assert stages(found)["pool"].kept == pytest.approx(networks, rel=0.01)


def test_steps_and_disk_of_a_run(dry: Dry, home: Path) -> None:
    settings = ("idm.steps=20", "idc.steps=10", "pool.networks=2", "pool.steps=5", "pool.every=2")
    found = dry("digits-idm+idc-1x2", *settings, schedule="0.5")
    assert [cost.method for cost in found.experts] == ["idm", "idc"]
    assert [(cost.steps, cost.schedule) for cost in found.experts] == [(10, 20), (5, 10)]
    assert [(cost.stored, cost.decoded) for cost in found.experts] == [(10, 40)] * 2
    parts = stages(found)
    assert parts["pool"].amount == "2 networks x 5 steps, kept at 3 ages"
    assert parts["matching"].amount == "15 steps"
    assert parts["diversity"].amount == "5 steps"
    assert "evaluation: distilled" not in parts
    each = [cost.step_seconds * cost.steps for cost in found.experts]
    assert sum(each) <= parts["matching"].seconds
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert found.peak == max(stage.peak for stage in found.stages) > 100e6
    assert found.fraction == 0.5
    tiny_run(home, "digits-idm+idc-1x2", *settings)
    networks = files(home / "pools", "network-*.safetensors")
    assert parts["pool"].kept == pytest.approx(networks, rel=0.01)
    # Images and velocity, float32; a number of steps and a norm.
    assert [cost.checkpoint for cost in found.experts] == [10 * 64 * 4 * 2 + 16] * 2


@pytest.mark.parametrize(
    "methods",
    [
        "idm_plain+dc",
        pytest.param("idc_i+dm+herding", marks=pytest.mark.slow),
        pytest.param("dsa+kcenter", marks=pytest.mark.slow),
    ],
)
def test_every_method_can_be_timed(methods: str, dry: Dry, home: Path) -> None:
    """Others: see the tests around this one; `pytest -m slow tests/moedd/dryrun` does all."""
    names = methods.split("+")
    found = dry(f"digits-{methods}-1x{len(names)}")
    assert [cost.method for cost in found.experts] == names
    for cost in found.experts:
        assert cost.stored == 10
        assert (cost.step_seconds > 0) == (cost.method in MOVING)
        assert cost.steps == (4 if cost.method in MOVING else 0)
    # Nothing came into the home itself.
    assert not list(home.iterdir())


def test_what_is_there_already_costs_nothing(dry: Dry, home: Path) -> None:
    settings = ("pool.networks=2", "mtt.trajectories=3")
    tiny_run(home, "digits-mtt+idm-1x2", *settings)
    before = tree(home)
    parts = stages(dry("digits-mtt+idm-1x2", *settings))
    for title in ("pool", "trajectories"):
        assert (parts[title].amount, parts[title].seconds) == ("there already", 0)
        assert parts[title].kept == 0
    next(home.rglob("network-01.safetensors")).unlink()
    paths = sorted(home.rglob("trajectory-*.safetensors"))
    size = paths[2].stat().st_size
    paths[2].unlink()
    parts = stages(dry("digits-mtt+idm-1x2", *settings))
    assert parts["pool"].amount.startswith("1 network x")
    assert parts["trajectories"].amount == "2 epochs x 6 steps"
    assert parts["trajectories"].kept == pytest.approx(size, rel=0.01)
    # Longer ones are made from what is there.
    parts = stages(dry("digits-mtt+idm-1x2", *settings, "mtt.max_start_epoch=3"))
    assert parts["trajectories"].amount == "5 epochs x 6 steps"
    # The files that were deleted apart, nothing has changed.
    after = tree(home)
    assert {key: before[key] for key in after} == after


def test_observers_teacher_and_evaluation(dry: Dry, home: Path) -> None:
    found = dry("digits-idm+rded-1x2", "evaluation.protocol=rded", evaluate=True)
    parts = stages(found)
    assert parts["observers"].amount == "1 network x 60 steps"
    assert parts["evaluation: the teacher"].amount == "1 network x 60 steps"
    assert parts["evaluation: distilled"].amount == "1 network x 1 epoch of 50 images"
    assert parts["evaluation: random real images"].amount == "3 networks x 1 epoch of 50 images"
    assert parts["evaluation: all real images"].amount == "1 network x 1 epoch of 1438 images"
    assert all(stage.seconds > 0 for title, stage in parts.items() if "evaluation" in title)
    tiny_run(home, "digits-idm+rded-1x2")
    assert parts["observers"].kept == pytest.approx(
        files(home / "pools" / "observers", "*.safetensors"), rel=0.01
    )


@pytest.mark.slow
def test_whitening_is_fitted_once_and_told(dry: Dry, home: Path) -> None:
    parts = stages(dry("digits-mtt-1x1", "mtt.zca=true", "evaluation.protocol=mtt", evaluate=True))
    tiny_run(home, "digits-mtt-1x1", "mtt.zca=true")
    made = files(home / "trajectories", "*.safetensors")
    assert parts["trajectories"].kept == pytest.approx(made, rel=0.01)


def test_hours_are_fitted_as_the_run_does(dry: Dry, home: Path) -> None:
    found = dry("digits-idm-1x1", "idm.steps=100000", schedule=None, max_hours=0.001)
    assert 0 < found.fraction < 1
    assert stages(found)["fitting the schedule"].seconds > 0
    # 3.6 seconds of matching, on a machine whose speed changes while it is measured.
    assert found.experts[0].seconds == pytest.approx(3.6, rel=1.0)
