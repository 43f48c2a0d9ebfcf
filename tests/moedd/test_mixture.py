"""The mixture loop: who steps when, how long it runs, and that a seed decides every byte."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from enginefactories import random_data
from PIL import Image
from runfactories import config_on, digits, payload, profile, tiny_config, tiny_run

from moedd.distill import Effort, Places, distill
from moedd.finish import source_of
from moedd.mixture import Mixture
from moedd.parts import split_parts
from moedd.progress import Reporter
from moedd.streams import Streams
from moedd_loaders import load_distilled
from moedd_loaders.errors import ConflictError, DataError, UsageError
from moedd_loaders.manifest import NoDecode, TilesDecode, read_manifest
from moedd_loaders.validate import validate_set

Rows = list[dict[str, Any]]


def log_rows(home: Path, called: str = "run") -> Rows:
    text = (home / "runs" / called / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def expert_rows(rows: Rows, expert: int) -> Rows:
    return [row for row in rows if row.get("expert") == expert]


def test_two_experts_make_a_valid_set(finished_home: Path) -> None:
    folder = finished_home / "sets" / "pair"
    manifest = validate_set(folder)
    assert [entry.method for entry in manifest.experts] == ["idm", "idm"]
    assert manifest.source == source_of(digits(), digits().notes)
    for entry in manifest.experts:
        assert isinstance(entry.decode, TilesDecode)
        assert entry.stored_per_class == [1] * 10
        assert entry.decoded_per_class == [4] * 10
        assert entry.trained_in.space == "normalized"
        assert (entry.part.rule, entry.part.of, entry.part.index) == ("stratified", 2, entry.id)
    assert manifest.budget.images == 20
    assert manifest.diversity is not None
    assert manifest.provenance.iterations == {"0.idm": 4, "1.idm": 4}
    assert manifest.provenance.schedule_fraction == {"0.idm": 1.0, "1.idm": 1.0}
    assert {"0.match", "0.ce", "1.match", "1.ce"} <= set(manifest.provenance.losses)
    recipe = json.loads((folder / "recipe" / "config.json").read_text())
    assert recipe["fraction"] == 1.0
    assert "data_path" not in recipe


def test_the_parts_are_disjoint_and_recorded(finished_home: Path) -> None:
    manifest = read_manifest(finished_home / "sets" / "pair")
    parts = split_parts(digits(), 2, "stratified", Streams(0), 1)
    assert [entry.part.fingerprint for entry in manifest.experts] == [p.fingerprint for p in parts]
    assert sum(len(part.labels) for part in parts) == len(digits().train)


def test_a_single_expert_has_no_diversity(finished_home: Path) -> None:
    manifest = validate_set(finished_home / "sets" / "single")
    assert len(manifest.experts) == 1
    assert manifest.diversity is None
    assert not [row for row in log_rows(finished_home, "single") if "pair" in row]


def test_log_and_preview_are_written(finished_home: Path) -> None:
    rows = log_rows(finished_home, "pair")
    for e in (0, 1):
        own = expert_rows(rows, e)
        assert [(row["tick"], row["step"]) for row in own] == [(t, t) for t in (1, 2, 3, 4)]
        assert all(row["match"] > 0 and row["ce"] > 0 and row["image_step"] > 0 for row in own)
    assert [row["tick"] for row in rows if "pair" in row] == [2, 4]
    with Image.open(finished_home / "runs" / "pair" / "preview.png") as picture:
        assert min(picture.size) > 100
    # A finished run keeps its log; the checkpoint would only be mistaken for unfinished work.
    kept = {path.name for path in (finished_home / "runs" / "pair").iterdir()}
    assert kept == {"log.jsonl", "preview.png"}


def test_three_experts_pair_at_random_and_all(home: Path) -> None:
    settings = ("idm.steps=6", "diversity.every=1", "idm.expansion=1")
    manifest = tiny_run(home, "digits-idm-1x3", *settings, "diversity.pairs=all")
    assert len(manifest.experts) == 3
    pairs = [tuple(row["pair"]) for row in log_rows(home) if "pair" in row]
    assert pairs == [(0, 1), (0, 2), (1, 2)] * 6
    tiny_run(home, "digits-idm-1x3", *settings, called="random")
    drawn = [tuple(row["pair"]) for row in log_rows(home, "random") if "pair" in row]
    assert len(drawn) == 6
    assert len(set(drawn)) > 1
    assert set(drawn) <= {(0, 1), (0, 2), (1, 2)}


def test_methods_of_different_length_share_the_clock(home: Path) -> None:
    manifest = tiny_run(home, "digits-idm+idc-1x2", "idm.steps=3", "idc.steps=8")
    assert validate_set(home / "sets" / "run") == manifest
    assert [entry.trained_in.space for entry in manifest.experts] == ["normalized", "unit"]
    rows = log_rows(home)
    # The clock is progress = tick / 8: expert i has done floor(progress * steps_i).
    for e, steps in enumerate((3, 8)):
        own = expert_rows(rows, e)
        assert [row["step"] for row in own] == list(range(1, steps + 1))
        for tick in range(1, 9):
            done = sum(row["tick"] <= tick for row in own)
            assert done == tick * steps // 8
    assert [row["tick"] for row in rows if "pair" in row] == [2, 4, 6, 8]


def test_fraction_shortens_every_method_alike(home: Path) -> None:
    manifest = tiny_run(
        home, "digits-idm+idc-1x2", "idm.steps=30", "idc.steps=8", effort=Effort(fraction=0.1)
    )
    # round(3.0), and one step at least.
    assert manifest.provenance.iterations == {"0.idm": 3, "1.idc": 1}
    assert manifest.provenance.schedule_fraction == {"0.idm": 0.1, "1.idc": 0.125}
    recipe = json.loads((home / "sets" / "run" / "recipe" / "config.json").read_text())
    assert recipe["fraction"] == 0.1


def test_max_hours_fits_the_fraction_and_records_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that moves by one second whenever it is read: every step takes 1 second.
    ticks = iter(range(10_000))
    monkeypatch.setattr("moedd.timing.time.perf_counter", lambda: float(next(ticks)))
    settings = ("idm.steps=60", "diversity.every=10")
    manifest = tiny_run(
        home, "digits-idm-1x2", *settings, effort=Effort(max_hours=12 / 3600), called="fitted"
    )
    # 2 experts x 60 steps x 1 s + 6 diversity steps x 1 s = 126 s; 12 s are 2/21 of it.
    recipe = json.loads((home / "sets" / "fitted" / "recipe" / "config.json").read_text())
    assert recipe["fraction"] == pytest.approx(2 / 21)
    assert manifest.provenance.iterations == {"0.idm": 6, "1.idm": 6}
    assert manifest.provenance.schedule_fraction["0.idm"] == pytest.approx(6 / 60)
    # Timing worked on experts that are thrown away: the same set as by asking for the fraction.
    monkeypatch.undo()
    tiny_run(home, *("digits-idm-1x2", *settings), effort=Effort(fraction=2 / 21), called="asked")
    made, asked = payload(home / "sets" / "fitted"), payload(home / "sets" / "asked")
    assert made["tensors/distilled.safetensors"] == asked["tensors/distilled.safetensors"]


def test_plenty_of_hours_are_the_whole_schedule(home: Path) -> None:
    manifest = tiny_run(home, "digits-idm-1x1", effort=Effort(max_hours=100.0))
    assert manifest.provenance.schedule_fraction == {"0.idm": 1.0}


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_hours_must_be_above_zero(hours: float) -> None:
    with pytest.raises(UsageError, match=r"--max-hours .* given; expected hours above 0"):
        Effort(max_hours=hours)


def test_a_seed_decides_every_byte(home: Path, finished_home: Path, tmp_path: Path) -> None:
    # Neither home has a pool yet: it is trained anew, to the same networks. (The shared one may
    # come from a run of another number of threads, whose last bits differ.)
    for name in ("first", "other"):
        tiny_run(tmp_path / name, "digits-idm-1x2", called="pair")
    first, again = (payload(tmp_path / name / "sets" / "pair") for name in ("first", "other"))
    assert again == first
    assert {"tensors/distilled.safetensors", "webdataset/train-00000.tar"} <= set(first)
    other = tiny_run(home, "digits-idm-1x2", called="pair", seed=1)
    manifest = read_manifest(finished_home / "sets" / "pair")
    assert other.content_sha256 != manifest.content_sha256
    assert other.view_sha256 != manifest.view_sha256


def test_the_diversity_step_changes_the_images(home: Path, finished_home: Path) -> None:
    without = tiny_run(home, "digits-idm-1x2", "diversity.every=0")
    with_it = read_manifest(finished_home / "sets" / "pair")
    assert without.content_sha256 != with_it.content_sha256
    assert not [row for row in log_rows(home) if "pair" in row]
    # What the experts share is reported whether or not the step acts.
    assert without.diversity is not None


def test_the_set_is_the_experts_images(home: Path) -> None:
    config = tiny_config("digits-idc_i-1x2", "idc_i.steps=1", "diversity.every=0")
    mixture = Mixture.build(config, digits(), home, profile(), Reporter(quiet=True))
    mixture.tick(1, [1, 1])
    wanted = torch.cat([expert.unit_images() for expert in mixture.experts])
    tiny_run(home, "digits-idc_i-1x2", "idc_i.steps=1", "diversity.every=0")
    loaded = load_distilled("run")
    assert torch.equal(loaded.images, wanted)
    assert isinstance(loaded.manifest.experts[0].decode, NoDecode)
    assert loaded.origin == "home"


def test_a_pool_per_part(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    manifest = tiny_run(own, "digits-idm-1x2", "pool.train_on=part")
    assert len(list((own / "pools").iterdir())) == 2
    assert len(manifest.experts) == 2


def test_too_few_images_for_the_unbiased_value(tmp_path: Path) -> None:
    """Two classes of one image each: two pairs, and the unbiased value needs four."""
    real = random_data((6, 6))
    config = config_on(real, ("idm_plain", "idm_plain"), ipc=1)
    places = Places(tmp_path, tmp_path / "sets" / "few", "few")
    manifest = distill(config, real, places, Effort(), profile(), reporter=Reporter(quiet=True))
    assert manifest.diversity is None
    rows = [row for row in log_rows(tmp_path, "few") if "pair" in row]
    assert [row["unbiased"] for row in rows] == [None] * 3
    assert [row["n"] for row in rows] == [2] * 3


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 8, 8), (3, 15, 8)])
def test_odd_sides_channels_and_unequal_classes(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    real = random_data((5, 11, 7), shape)
    config = config_on(real, ("idm", "idc"), ipc=2)
    places = Places(tmp_path, tmp_path / "sets" / "odd", "odd")
    distill(config, real, places, Effort(), profile(), reporter=Reporter(quiet=True))
    manifest = validate_set(tmp_path / "sets" / "odd")
    assert manifest.shape == shape
    assert load_distilled(tmp_path / "sets" / "odd").images.shape == (2 * 3 * 2 * 4, *shape)


def test_a_class_too_small_for_its_part_is_named(home: Path) -> None:
    with pytest.raises(DataError, match=r"class '\d' has \d+ training images.*80 images per class"):
        tiny_run(home, "digits-idm-80x2")
    assert not (home / "sets").exists()


@pytest.mark.parametrize(
    ("given", "raises"), [({}, True), ({"resume": True}, True), ({"overwrite": True}, False)]
)
def test_an_existing_set_is_kept_unless_told(
    given: dict[str, Any], raises: bool, home: Path
) -> None:
    tiny_run(home, "digits-idm-1x1")
    before = payload(home / "sets" / "run")
    outcome = (
        pytest.raises(ConflictError, match="--overwrite") if raises else contextlib.nullcontext()
    )
    with outcome:
        tiny_run(home, "digits-idm-1x1", seed=3, **given)
    assert (payload(home / "sets" / "run") == before) is raises


@pytest.mark.parametrize(
    ("method", "trained"), [("random", False), ("dm", False), ("herding", True)]
)
def test_a_pool_is_trained_where_somebody_uses_it(
    method: str, trained: bool, tmp_path: Path
) -> None:
    config = tiny_config(f"digits-{method}-1x1")
    alone = Mixture.build(config, digits(), tmp_path, profile(), Reporter(quiet=True))
    assert bool(alone.pools[0].stored) == trained
    assert bool(list((tmp_path / "pools").rglob("network-*.safetensors"))) == trained
