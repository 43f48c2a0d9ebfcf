"""Evaluation: what each row trains on, what a record says, and that a seed decides it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from enginefactories import random_data
from factories import COLUMN_TILES, ROW_TILES, make_rows, make_set, make_source
from imagefactories import png, write_tree
from runfactories import cli, digits, profile

from moedd.commands import _evaluation_settings
from moedd.evaluate import (
    Job,
    Row,
    TrainingData,
    distilled_images,
    evaluate,
    full_images,
    random_images,
    row_images,
    train_network,
)
from moedd.experts.rded import RDEDConfig
from moedd.protocols import protocol_recipe
from moedd.realdata import RealData, RealSplit
from moedd.streams import Streams
from moedd_loaders import load_distilled
from moedd_loaders.decode import decode
from moedd_loaders.errors import NonFiniteError
from moedd_loaders.manifest import NoDecode, read_manifest
from moedd_loaders.read import StoredSet, read_tensors
from moedd_loaders.records import read_records, records_in

ONE_EPOCH = protocol_recipe("common", 1)


def stored_set(folder: Path) -> StoredSet:
    return read_tensors(folder, read_manifest(folder))


def class_images(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of class folders, `counts[path]` small images in each."""
    files = {
        f"{place}/{n}.png": png(seed=n) for place, count in counts.items() for n in range(count)
    }
    return write_tree(folder, files)


@pytest.fixture
def pair(finished_home: Path) -> StoredSet:
    """The finished two-expert set on digits."""
    return stored_set(finished_home / "sets" / "pair")


# ------------------------------------------------------------------ what is trained on


@pytest.mark.parametrize("soft", [False, True])
def test_the_distilled_row_is_what_the_loader_serves(soft: bool, tmp_path: Path) -> None:
    make_set(tmp_path / "toy", rules=(COLUMN_TILES, NoDecode(), ROW_TILES), soft=soft)
    images, labels, experts = distilled_images(stored_set(tmp_path / "toy"))
    loaded = load_distilled(tmp_path / "toy")
    assert torch.equal(images, loaded.images)
    assert torch.equal(experts, loaded.experts)
    if soft:
        assert loaded.soft_labels is not None
        assert torch.equal(labels, loaded.soft_labels)
    else:
        assert torch.equal(labels, loaded.labels)


def numbered(per_class: int, classes: int = 2) -> RealData:
    """Real data whose image number n is flat and has the value n: it can be recognised."""
    real = random_data([per_class] * classes)
    values = torch.arange(per_class * classes, dtype=torch.uint8)
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return replace(real, train=RealSplit(images, real.train.labels))


def budget_of(tmp_path: Path, counts: tuple[int, ...], rules: tuple[object, ...]) -> StoredSet:
    source = make_source(len(counts), (1, 8, 8))
    experts = [make_rows(source, counts, rule) for rule in rules]  # type: ignore[arg-type]
    make_set(tmp_path / "toy", classes=len(counts), shape=(1, 8, 8), experts=experts)
    return stored_set(tmp_path / "toy")


def test_random_images_have_the_budget_and_the_decode(tmp_path: Path) -> None:
    stored = budget_of(tmp_path, (2, 3), (COLUMN_TILES, NoDecode(), ROW_TILES))
    real = numbered(60)
    images, labels, experts = random_images(stored.manifest.experts, real, Streams(0))
    made = distilled_images(stored)
    assert torch.equal(experts, made[2])
    for e, entry in enumerate(stored.manifest.experts):
        counts = torch.bincount(labels[experts == e], minlength=2).tolist()
        assert counts == entry.decoded_per_class
    # 2 tiled experts x 4 and one plain: 9 images for each stored place, none of them twice.
    values = (images[:, 0] * 255).round().long()
    assert torch.equal(values.amin((1, 2)), values.amax((1, 2)))
    numbers = values[:, 0, 0]
    assert len(numbers) == 45
    assert numbers.unique().numel() == 45
    assert torch.equal(real.train.labels[numbers], labels)


def test_a_class_that_has_too_few_is_gone_through_again(tmp_path: Path) -> None:
    stored = budget_of(tmp_path, (3, 3), (COLUMN_TILES,))
    images, labels, _ = random_images(stored.manifest.experts, numbered(5), Streams(0))
    for c in range(2):
        numbers = (images[labels == c, 0, 0, 0] * 255).round().long()
        counts = sorted(numbers.bincount()[numbers.unique()].tolist())
        assert counts == [2, 2, 2, 3, 3]


def test_random_tiles_are_shrunk_real_images(tmp_path: Path) -> None:
    """A tile of an 8x8 image at factor 2 is its 2x2 average, enlarged again by the decode rule."""
    stored = budget_of(tmp_path, (1, 1), (COLUMN_TILES,))
    real = random_data((9, 9))
    images, labels, _ = random_images(stored.manifest.experts, real, Streams(3))
    pixels = real.train.images.float() / 255
    small = pixels.view(-1, 1, 4, 2, 4, 2).mean((3, 5))
    wanted = torch.nn.functional.interpolate(
        small, size=(8, 8), mode="bilinear", align_corners=False
    )
    for image, label in zip(images, labels, strict=True):
        distance = (wanted - image).abs().amax((1, 2, 3))
        assert distance.min() < 1e-6
        assert real.train.labels[distance.argmin()] == label


def test_draws_differ_and_are_repeatable(pair: StoredSet) -> None:
    first, again, other, reseeded = (
        row_images(Row("random", draw=draw), pair, digits(), seed)[0]
        for draw, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, reseeded)


def test_the_full_row_is_all_of_training(pair: StoredSet) -> None:
    images, labels, experts = full_images(digits())
    assert torch.equal((images * 255).round().to(torch.uint8), digits().train.images)
    assert torch.equal(labels, digits().train.labels)
    assert experts.unique().tolist() == [0]
    assert torch.equal(row_images(Row("full"), pair, digits(), 0)[0], images)


def test_batches_are_normalised_and_fused_in_their_row_only(pair: StoredSet) -> None:
    images = distilled_images(pair)
    rows = torch.arange(16)
    real = digits()
    plain = TrainingData(Row("distilled"), images, real, 0)
    mixed = TrainingData(Row("distilled", "mixup"), images, real, 0)
    wanted = (images[0][rows] - real.mean[0]) / real.std[0]
    x, y = plain.fetch(rows, 0)(lambda batch: batch, False)
    torch.testing.assert_close(x, wanted)
    assert torch.equal(y, images[1][rows])
    fused, soft = mixed.fetch(rows, 0)(lambda batch: batch, False)
    assert soft.shape == (16, 10)
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    assert not torch.allclose(fused, wanted)
    later, _ = mixed.fetch(rows, 1)(lambda batch: batch, False)
    assert not torch.equal(later, fused)
    # CutMix and fusion are never stacked: a plain batch of a fused row is not mixed.
    unfused, _ = mixed.fetch(rows, 0)(lambda batch: batch, True)
    torch.testing.assert_close(unfused, wanted)


@pytest.mark.parametrize(("fuse", "alpha"), [("mixup", 1.0), ("mixup:0.2", 0.2), ("mixup:8", 8.0)])
def test_shares_are_spread_as_their_distribution_says(
    pair: StoredSet, fuse: str, alpha: float
) -> None:
    mixed = TrainingData(Row("distilled", fuse), distilled_images(pair), digits(), 0)
    rows = torch.arange(len(mixed))
    served = [mixed.fetch(rows, epoch)(lambda batch: batch, False)[1] for epoch in range(60)]
    shares = torch.cat(served).max(1).values
    between = shares[shares < 1]  # of two images of different classes
    assert len(between) > 1000
    # The variance of Beta(a, a) is 1 / (4 (2a + 1)).
    assert float((between - 0.5).square().mean()) == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


# --------------------------------------------------------------------------- training


def test_a_seed_decides_the_network(pair: StoredSet) -> None:
    def trained(seed: int) -> torch.Tensor:
        streams = Streams(seed)
        data = TrainingData(
            Row("distilled", "mixup"), distilled_images(pair), digits(), streams.key("fuse")
        )
        trainer = train_network(data, ONE_EPOCH, "convnet1", digits(), streams, width=4)
        assert trainer.steps == 2
        return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])

    first = trained(0)
    assert torch.equal(trained(0), first)
    assert not torch.equal(trained(1), first)


def test_records_say_what_was_done(pair: StoredSet) -> None:
    jobs = [
        Job(Row("distilled", "mixup"), "convnet1", 0),
        Job(Row("distilled", "mixup"), "convnet1", 1),
        Job(Row("random", draw=2), "convnet2", 0),
    ]
    epochs: list[tuple[Job, int]] = []

    def told(job: Job, epoch: int, loss: float) -> None:
        epochs.append((job, epoch))

    given = {"epochs": 1, "seed": 5, "width": 4}
    records = list(evaluate(pair, digits(), ONE_EPOCH, jobs, profile(), on_epoch=told, **given))
    assert [(r.variant, r.fuse, r.network) for r in records] == [
        ("distilled", "mixup", "convnet1"),
        ("distilled", "mixup", "convnet1"),
        ("random", "none", "convnet2"),
    ]
    assert [(r.config["repeat"], r.config["draw"]) for r in records] == [(0, 0), (1, 0), (0, 2)]
    for record in records:
        assert record.set_hash == pair.manifest.training_sha256
        assert record.set_name == "pair"
        assert (record.protocol, record.epochs, record.seed) == ("common-1", 1, 5)
        assert record.methods == ["idm", "idm"]
        assert (record.ipc, record.experts, record.n_train) == (1, 2, 80)
        assert record.chance == 0.1
        assert record.test_images == 359
        assert record.data_fingerprint == digits().fingerprint
        assert record.optimizer_steps == 2
        assert record.config["width"] == 4
        # So many of 359 test images were right: an accuracy is a whole number of them.
        assert record.accuracy * 359 == pytest.approx(round(record.accuracy * 359), abs=1e-6)
    assert epochs == [(job, epoch) for job in jobs for epoch in (1, 2)]
    again = next(evaluate(pair, digits(), ONE_EPOCH, jobs, profile(), **given))
    assert again.accuracy == records[0].accuracy


def test_a_training_that_runs_off_stops_with_the_reason(pair: StoredSet) -> None:
    recipe = replace(protocol_recipe("common", 5), lr=1e30)
    data = TrainingData(Row("distilled", "none"), distilled_images(pair), digits(), seed=0)
    with pytest.raises(NonFiniteError, match=r"convnet1: the training loss is nan after") as told:
        train_network(data, recipe, "convnet1", digits(), Streams(0), width=4)
    assert "learning rate" in str(told.value)
    assert "1e+30" in str(told.value)


def test_real_images_teach(pair: StoredSet) -> None:
    """Ten epochs on all digits: far above chance, so training and testing fit together."""
    job = Job(Row("full"), "convnet1", 0)
    recipe = protocol_recipe("common", 10)
    record = next(evaluate(pair, digits(), recipe, [job], profile(), epochs=10, width=8))
    assert record.n_train == 1438
    assert record.accuracy > 0.5


# ---------------------------------------------------------------------- the command line


def evaluated(name: str | Path, *more: str) -> tuple[str, ...]:
    return ("evaluate", str(name), "--epochs", "1", "--width", "4", *more)


def test_evaluate_writes_records_beside_a_set_of_ones_own(home: Path) -> None:
    make_set(home / "sets" / "toy", name="toy")
    images = {f"{split}/class {c}": 3 for split in ("train", "test") for c in "abc"}
    data = class_images(home.parent / "data", images)
    told = cli(
        *evaluated("toy", "--data", str(data), "--networks", "convnet1,convnet2"),
        *("--repeats", "2", "--random", "3", "--full", "--fuse", "none,mixup"),
    )
    assert told.code == 0, told.err
    manifest = read_manifest(home / "sets" / "toy")
    lines = (home / "sets" / "toy" / "benchmarks" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    one = [
        *[("distilled", "none")] * 2,
        *[("distilled", "mixup")] * 2,
        *[("random", "none")] * 3,
        *[("full", "none")] * 2,
    ]
    wanted = [(network, *row) for network in ("convnet1", "convnet2") for row in one]
    assert [(row["network"], row["variant"], row["fuse"]) for row in rows] == wanted
    assert {row["set_hash"] for row in rows} == {manifest.training_sha256}
    assert len(read_records(manifest, home / "sets" / "toy")) == len(rows)
    for shown in ("random real images", "all real images", "distilled", "mixup", "convnet2"):
        assert shown in told.out
    assert "your set" in told.err
    # Twice the same evaluation gives the same accuracies, in new lines.
    again = cli(*evaluated("toy", "--data", str(data), "--networks", "convnet1", "--repeats", "1"))
    assert again.code == 0
    lines = (home / "sets" / "toy" / "benchmarks" / "results.jsonl").read_text().splitlines()
    added = [json.loads(line) for line in lines[len(rows) :]]
    assert [row["accuracy"] for row in added] == [rows[0]["accuracy"], rows[2]["accuracy"]]


def test_rded_trains_on_the_labels_of_a_teacher(
    home: Path, finished_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is trained once, on all of the data, and kept."""
    shutil.copytree(finished_home / "sets" / "pair", home / "sets" / "pair")
    monkeypatch.setattr("moedd.experts.rded.RDEDConfig.preset", quick_observer)
    before = set((home / "pools" / "observers").glob("*.safetensors"))
    told = cli(*evaluated("pair", "--protocol", "rded", "--repeats", "1"))
    assert told.code == 0, told.err
    none, mixup = records_in(home / "sets" / "pair" / "benchmarks" / "results.jsonl")
    assert (none.protocol, none.fuse, mixup.fuse) == ("rded-1", "none", "mixup")
    assert none.config["teacher"] == {"network": "convnet2", "temperature": 20.0}
    assert mixup.config["teacher"]["temperature"] == 4.0
    # 80 training images of 10 classes: batches of 25, at the ConvNets' step size.
    assert (none.config["batch"], none.config["lr"], none.optimizer_steps) == (25, 1e-3, 4)
    assert len(set((home / "pools" / "observers").glob("*.safetensors")) - before) == 1


def quick_observer(data: str, ipc: int, shape: tuple[int, int, int]) -> RDEDConfig:
    return RDEDConfig(ipc=ipc, observer_steps=60, observer_lr=0.1, observer_seed=77)


def test_all_epochs_of_one_protocol_are_all_epochs_of_another(home: Path) -> None:
    """RDED has 300; a set that says nothing else asks for the whole of what is asked for."""
    for said in ({"protocol": "common"}, {"protocol": "idc", "epochs": 1000}):
        make_set(home / "sets" / "toy", name="toy", evaluation=said, overwrite=True)
        manifest = read_manifest(home / "sets" / "toy")
        assert _evaluation_settings(manifest, "rded").epochs == 300
        assert _evaluation_settings(manifest, "idc").epochs == 1000
    few = {"protocol": "common", "epochs": 60}
    make_set(home / "sets" / "toy", name="toy", evaluation=few, overwrite=True)
    assert _evaluation_settings(read_manifest(home / "sets" / "toy"), "rded").epochs == 60


def test_the_best_test_point_is_taken_where_asked_for_and_says_so(pair: StoredSet) -> None:
    """A mark in the name, the last accuracy beside it; the network itself is the same."""
    job = Job(Row("distilled"), "convnet1", 0)
    given = {"epochs": 8, "width": 4}
    plain = protocol_recipe("idc", 8)
    best = protocol_recipe("idc", 8, best=True)
    (last,) = evaluate(pair, digits(), plain, [job], profile(), **given)
    (found,) = evaluate(pair, digits(), best, [job], profile(), best=True, **given)
    points = found.config["points"]
    assert list(points) == ["2", "4", "6", "8"]
    assert found.accuracy == max(points.values())
    assert points["8"] == last.accuracy
    assert (last.protocol, found.protocol) == ("idc-8", "idc-8-best")
    assert "points" not in last.config
    # A network that stops after the second epoch of another length had other rates; the first
    # point of the same recipe is what testing there by hand gives.
    short = replace(plain, passes=2)
    (early,) = evaluate(pair, digits(), short, [job], profile(), **given)
    assert points["2"] == early.accuracy


def test_the_best_of_one_test_is_refused(
    finished_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(finished_home))
    told = cli(*evaluated("pair", "--best"))
    assert told.code == 2
    assert "protocol common tests once" in told.sentence


def test_records_of_a_bundled_set_go_home(
    home: Path, tmp_path: Path, finished_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moedd_loaders.resolve._BUNDLED", finished_home / "sets")
    before = sorted(path.name for path in (finished_home / "sets" / "pair").rglob("*"))
    told = cli(*evaluated("pair", "--only-baselines", "--random", "1"))
    assert told.code == 0, told.err
    manifest = read_manifest(finished_home / "sets" / "pair")
    file = home / "records" / f"{manifest.training_sha256}.jsonl"
    (record,) = map(json.loads, file.read_text().splitlines())
    assert record["variant"] == "random"
    assert sorted(path.name for path in (finished_home / "sets" / "pair").rglob("*")) == before
    assert re.search(r"1 record\b", cli("show", "pair").out)


def test_other_classes_are_refused(home: Path) -> None:
    make_set(home / "sets" / "toy", name="toy")
    data = class_images(
        home.parent / "data", {"train/x": 2, "train/class b": 2, "train/class c": 2}
    )
    told = cli(*evaluated("toy", "--data", str(data)))
    assert told.code == 2
    assert "the classes of toy and of the real data differ" in told.sentence
    assert "'class a' is not 'class b'" in told.sentence
    assert not (home / "sets" / "toy" / "benchmarks").exists()


@pytest.mark.parametrize("mode", ["mixup", "cutmix", "dirichlet"])
def test_fusion_across_experts_needs_two(
    mode: str, finished_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(finished_home))
    told = cli(*evaluated("single", "--fuse", mode))
    assert told.code == 2
    assert f"fuse={mode}" in told.sentence
    assert "vanilla" in told.sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fuse", "mixdown"), "unknown fuse 'mixdown'; known: "),
        (("--networks", "convnet9"), "unknown network 'convnet9'; known: "),
        (("--networks", "vgg11"), "vgg11 needs images of at least 28x28 pixels, not 8x8"),
        (("--protocol", "long"), "unknown protocol 'long'; known: common, idc"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], said: str, finished_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(finished_home))
    told = cli(*evaluated("pair", *arguments))
    assert told.code == 2
    assert said in told.sentence


def test_what_a_set_says_about_its_evaluation(home: Path) -> None:
    said = {"protocol": "common", "epochs": 1, "repeats": 1, "width": 4, "of a later version": 1}
    make_set(home / "sets" / "toy", name="toy", evaluation=said)
    data = class_images(home.parent / "data", {f"train/class {c}": 3 for c in "abc"})
    told = cli("evaluate", "toy", "--data", str(data), "--fuse", "none")
    assert told.code == 0, told.err
    (record,) = read_records(read_manifest(home / "sets" / "toy"), home / "sets" / "toy")
    assert (record.epochs, record.config["width"]) == (1, 4)
    make_set(home / "sets" / "far", name="far", evaluation={**said, "protocol": "distant"})
    told = cli("evaluate", "far", "--data", str(data))
    assert told.code == 2
    assert "'distant'" in told.sentence
    assert "--protocol common or idc" in told.sentence
    make_set(home / "sets" / "bad", name="bad", evaluation={**said, "epochs": 0})
    told = cli("evaluate", "bad", "--data", str(data))
    assert told.code == 5
    assert "evaluation.epochs=0" in told.sentence
    told = cli("evaluate", "far", "--data", str(data), "--protocol", "idc", "--fuse", "vanilla")
    assert told.code == 0, told.err


def test_decode_is_the_loaders_own(tmp_path: Path) -> None:
    """The mean that odd sides are padded with is the source's."""
    source = make_source(2, (3, 9, 9))
    rows = make_rows(source, [1, 1], COLUMN_TILES)
    make_set(tmp_path / "odd", classes=2, shape=(3, 9, 9), experts=[rows])
    images, _, _ = distilled_images(stored_set(tmp_path / "odd"))
    assert torch.equal(images, decode(rows.images, COLUMN_TILES, source.mean))
