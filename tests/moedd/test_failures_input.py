"""Settings and data that no method can work with: one sentence, exit code 2, nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from enginefactories import digits, make_expert, random_data, tiny_config
from imagefactories import class_folders, png, write_parquet
from runfactories import (
    AT_ONCE,
    MOVING,
    TINY,
    TINY_METHODS,
    Told,
    cli,
    profile,
    tiny_arguments,
    tree,
)
from torch import Tensor
from trajectoryfactories import SMALL

from moedd.distill import Effort, Places, distill
from moedd.experts import expert_class
from moedd.parts import PartData
from moedd.progress import Reporter
from moedd.realdata import RealData
from moedd_loaders.errors import DataError
from moedd_loaders.manifest import read_manifest
from moedd_loaders.validate import validate_set

METHODS = (*MOVING, *AT_ONCE)
REAL_BATCH = ("idc", "idc_i", "idm", "idm_plain", "dm", "dsa", "dc")
"""Methods that draw a batch of real images of each class."""


@pytest.fixture
def untouched(moedd_home: Path) -> Iterator[Path]:
    """`$MOEDD_HOME`, which must hold nothing after the test."""
    yield moedd_home
    assert not moedd_home.exists() or tree(moedd_home) in ({}, {"runs": -1})


def refused(told: Told, *parts: str) -> None:
    assert told.code == 2, told.err
    for part in parts:
        assert part in told.sentence, part
    assert told.out == ""


# ------------------------------------------------------------------------------ step sizes
def step_sizes() -> list[tuple[str, str]]:
    """(method, setting) of everything that is a step size, wherever it acts."""
    found = []
    for method in METHODS:
        for name, field in expert_class(method).config_class.model_fields.items():
            text = field.description or ""
            if "step size" in text and "momentum" not in text and "per step" not in text:
                found.append((method, name))
    return found


def test_the_step_sizes_are_found() -> None:
    found = step_sizes()
    assert {method for method, _ in found} == {*MOVING, "rded"}
    assert {name for method, name in found if method == "mtt"} == {
        *("lr_img", "lr_lr", "step_size", "trajectory_lr")
    }
    assert {name for method, name in found if method == "dsa"} == {"lr", "lr_net"}


@pytest.mark.parametrize("value", ["-0.01", "NaN", "Infinity"])
@pytest.mark.parametrize(("method", "setting"), step_sizes())
def test_a_step_size_is_a_positive_number(
    method: str, setting: str, value: str, untouched: Path
) -> None:
    told = cli("distill", f"digits-{method}-1x2", "--set", f"{method}.{setting}={value}")
    refused(told, f"setting {method}.{setting}=", "does not fit", "should be ")


@pytest.mark.parametrize("setting", ["pool.lr", "diversity.ratio", "diversity.weight"])
@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity"])
def test_step_sizes_of_what_experts_share(setting: str, value: str, untouched: Path) -> None:
    told = cli("distill", "digits-idm-1x2", "--set", f"{setting}={value}")
    refused(told, f"setting {setting}=", "does not fit")


# ----------------------------------------------------------------------- batch-norm networks
@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_is_no_network_to_distil_with(method: str, untouched: Path) -> None:
    told = cli("distill", f"digits-{method}-1x2", "--set", "network=convnet1_bn")
    refused(told, "network=convnet1_bn", "batch norm", "distil with convnet1 and keep batch norm")


def test_batch_norm_is_no_network_for_trajectories_either(untouched: Path) -> None:
    told = cli("trajectories", "digits", "--set", "network=convnet1_bn")
    refused(told, "network=convnet1_bn", "batch norm", "convnet1")


def test_an_observer_may_have_batch_norm(home: Path) -> None:
    """As in the published RDED: it is used in eval mode, with the statistics of real images."""
    name = "digits-rded-1x1"
    told = cli(*tiny_arguments(name, "rded.observer_network=convnet1_bn"))
    assert told.code == 0, told.err
    validate_set(home / "sets" / name)


def test_batch_norm_in_evaluation_is_noted_where_its_statistics_are_noise(home: Path) -> None:
    # Two experts would make two images of each class.
    for name, noted in (("digits-random-1x1", True), ("digits-random-2x1", False)):
        assert cli(*tiny_arguments(name)).code == 0
        told = cli("evaluate", name, "--networks", "convnet1_bn", "--epochs", "1")
        assert told.code == 0, told.err
        assert ("note: batch norm in convnet1_bn takes" in told.err) is noted


# ------------------------------------------------------------------------------- empty parts
def toy(method: str) -> list[str]:
    arguments = ["--no-evaluate", "--channels", "1"]
    for setting in (*TINY, *TINY_METHODS.get(method, ())):
        arguments += ["--set", setting]
    return arguments


@pytest.mark.parametrize("method", METHODS)
def test_more_experts_than_images_of_a_class(method: str, untouched: Path, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 4, "dog": 2}, "train")
    told = cli("distill", f"toy-{method}-1x3", "--data", data, *toy(method))
    # One of the two was held out to test on, as the data have no test split of their own.
    refused(told, "class 'dog' of toy has 1 training images", f"toy-{method}-1x3 (3 images per ")


@pytest.mark.parametrize("method", METHODS)
def test_a_class_without_images(method: str, untouched: Path, tmp_path: Path) -> None:
    images = [png(seed=n) for n in range(4)]
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_parquet(path, images, [0, 0, 1, 1], names=["cat", "dog", "eel"])
    told = cli("distill", f"toy-{method}-1x1", "--data", tmp_path / "data", *toy(method))
    refused(told, "class 'eel' has no readable training image", "remove the class")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("counts", [(6, 1), (6, 0)])
def test_an_empty_part_from_python(method: str, counts: tuple[int, int], tmp_path: Path) -> None:
    """Who calls the engine without the command line gets the same sentence."""
    real = random_data(counts)
    config = tiny_config(real, (method, method), ipc=1)
    places = Places(tmp_path, tmp_path / "sets" / "s", "s")
    with pytest.raises(DataError, match=r"class 'class 1' has [01] training .* holds 0; 1 images"):
        distill(config, real, places, Effort(), profile(), reporter=Reporter(quiet=True))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.name == "s"]


def test_random_real_images_of_an_empty_class_cannot_be_drawn(home: Path, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 4, "dog": 4}, "train")
    class_folders(tmp_path / "data", {"cat": 1, "dog": 1}, "test")
    assert cli("distill", "toy-random-1x1", "--data", data, *toy("random")).code == 0
    other = tmp_path / "other"
    for split in ("train", "test"):
        write_parquet(
            other / f"{split}-00000-of-00001.parquet", [png(), png()], [0, 0], names=["cat", "dog"]
        )
    told = cli("evaluate", "toy-random-1x1", "--data", other, "--random", "1", "--epochs", "1")
    assert told.code == 2, told.err
    assert "class 'dog' has no readable training image" in told.sentence


# --------------------------------------------------------- fewer images than the real batch
def small(last: int = 3) -> RealData:
    """Digits 0 and 1: 12 images of the one, `last` of the other."""
    real = digits(2, 12)
    rows = [torch.nonzero(real.train.labels == c).flatten() for c in range(2)]
    kept = torch.cat([rows[0], rows[1][:last]])
    return type(real)(**{**vars(real), "train": real.train.subset(kept.numpy())})


@pytest.mark.parametrize("method", REAL_BATCH)
def test_a_class_smaller_than_the_real_batch_is_taken_whole(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published codes do: a smaller batch, never an image twice."""
    expert = make_expert(method, small(), ipc=2, batch_real=8)
    served: list[Tensor] = []
    plain = PartData.unit

    def unit(self: PartData, rows: Tensor) -> Tensor:
        served.append(rows)
        return plain(self, rows)

    monkeypatch.setattr(PartData, "unit", unit)
    expert.step()
    batches = [rows for rows in served if len(rows) > 2]
    assert [len(rows) for rows in batches] == [8, 3]
    assert sorted(batches[1].tolist()) == expert.part.rows[1].tolist()
    assert len(set(batches[0].tolist())) == 8
    notes = [note for note in expert.notes if "batch" in note]
    assert notes == [
        f"expert 0 ({method}): 1 of 2 classes have fewer than 8 real images in its part (least: "
        "'1', 3), so a batch of theirs is the whole class instead of 8 images"
    ]
    assert make_expert(method, digits(2, 40), ipc=2, batch_real=8).notes == []


def test_mosaics_that_repeat_images_are_noted() -> None:
    notes = make_expert("idc", small(), ipc=2, batch_real=3).notes
    assert len(notes) == 1
    assert "fewer than 8 real images" in notes[0]
    assert "the first mosaics of these hold real images more than once" in notes[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_few_images_ends_well_and_says_so(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of 6 and of 1 image; MTT's trajectories see fewer than their batch, too."""
    real = small(2)
    settings: dict[str, Any] = {
        "rded": {"observer_floor": 0, "observer_steps": 2},
        "mtt": {key: SMALL[key] for key in SMALL if key != "trajectory_batch"},
    }.get(method, {})
    config = tiny_config(real, (method, method), ipc=1)
    experts = tuple(expert.model_copy(update=settings) for expert in config.experts)
    config = config.model_copy(update={"experts": experts})
    places = Places(tmp_path, tmp_path / "sets" / "s", "s")
    distill(config, real, places, Effort(), profile(), reporter=Reporter())
    manifest = validate_set(places.target)
    assert [entry.stored_per_class for entry in manifest.experts] == [[1, 1], [1, 1]]
    asked = {"rded": "crops are taken of all", "mtt": None}
    wanted = "whole class" if method in REAL_BATCH else asked.get(method)
    notes = read_manifest(places.target).provenance.notes
    assert bool(notes) is (wanted is not None)
    said = " ".join(capsys.readouterr().err.split())
    for note in notes:
        assert f"note: {note}" in said
    if wanted is not None:
        assert any(wanted in note for note in notes)


# -------------------------------------------------------------------- the diversity step
@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (("estimator=unbiased",), "was given 2 row(s) and needs at least 4"),
        (("within=block",), "was given 2 pair(s), one per class"),
        (("within=per_class",), "needs 2 pairs of a class"),
        (("within=partial", "estimator=unbiased"), "was given 2 row(s) and needs at least 4"),
        (("within=partial",), "set diversity.estimator=unbiased, or within=block"),
    ],
)
def test_a_diversity_step_that_the_images_do_not_allow_is_refused_before_any_work(
    settings: tuple[str, ...], part: str, untouched: Path, tmp_path: Path
) -> None:
    data = class_folders(tmp_path / "data", {"cat": 4, "dog": 4}, "train")
    more = [word for text in settings for word in ("--set", f"diversity.{text}")]
    told = cli("distill", "toy-idm_plain-1x2", "--data", data, *toy("idm_plain"), *more)
    assert told.code == 2
    assert part in told.sentence
    # Four tiles in each image are enough of them.
    if part.startswith("was given") and "partial" not in settings[0]:
        told = cli("distill", "toy-idm-1x2", "--data", data, *toy("idm"), *more, "--print-config")
        assert told.code == 0


def test_a_single_expert_has_no_diversity_step_and_hears_so(home: Path) -> None:
    name = "digits-idm-1x1"
    told = cli(*tiny_arguments(name, "diversity.estimator=unbiased", "diversity.within=block"))
    assert told.code == 0
    assert "note: a single expert has no other to differ from: no diversity step" in told.err
    told = cli(*tiny_arguments(name, "diversity.every=0"), "--overwrite")
    assert "no diversity step" not in told.err
