"""Every format that others release in, read and written as a set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pytest
import releasefactories as made
import torch
from torch import Tensor

from moedd.importers import Answers, Choice, Imported, Request, import_release, open_release
from moedd_loaders.dataset import load_distilled
from moedd_loaders.errors import DataError, UsageError
from moedd_loaders.manifest import NoDecode, TilesDecode
from moedd_loaders.read import read_tensors
from moedd_loaders.validate import validate_set

NAMES = ",".join(made.CLASSES)
NORMALIZED = {"space": "normalized:cifar10", "classes": NAMES}


def taken(tmp_path: Path, path: Path | str, choice: Choice | None = None, **said: Any) -> Imported:
    request = Request(str(path), Answers(**said), choice or Choice(), "taken")
    return import_release(request, tmp_path / "sets")


def images_of(found: Imported) -> Tensor:
    return read_tensors(found.folder, found.manifest).images


def unit(images: Tensor) -> Tensor:
    """Normalised to unit space, in float64 and another way round than the importer."""
    array = images.double().numpy()
    mean, std = np.array(made.MEAN), np.array(made.STD)
    return torch.from_numpy((array.transpose(0, 2, 3, 1) * std + mean).transpose(0, 3, 1, 2))


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-7)


def test_dc(tmp_path: Path) -> None:
    path = made.make_dc(tmp_path, method="DSA")
    found = taken(tmp_path, path, **NORMALIZED)
    near(images_of(found), unit(made.pixels()))
    entry = found.manifest.experts[0]
    assert (entry.method, entry.decode, entry.stored_per_class) == ("dsa", NoDecode(), [2, 2, 2])
    assert entry.trained_in.space == "normalized"
    assert tuple(entry.trained_in.mean or ()) == made.MEAN
    assert tuple(entry.trained_in.std or ()) == made.STD
    assert found.record["detected"]["reported_accuracies"] == {
        "ConvNet": [0.25, pytest.approx(0.3)]
    }
    assert any("makers report" in note for note in found.manifest.source.notes)


def test_dc_of_a_graphics_card(tmp_path: Path) -> None:
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        path = made.make_dc(tmp_path, method="DC")
    near(images_of(taken(tmp_path, path, **NORMALIZED)), unit(made.pixels()))


def test_dm_in_the_name_may_be_idm(tmp_path: Path) -> None:
    opened = open_release(Request(str(made.make_dc(tmp_path)), Answers(**NORMALIZED)))
    asked = {question.option: question for question in opened.asked}
    assert list(asked) == ["--method", "--decode"]
    assert "IDM's scripts write that too" in asked["--method"].why
    found = taken(tmp_path, tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt", **NORMALIZED,
                  method="idm", decode="2")  # fmt: skip
    rule = found.manifest.experts[0].decode
    assert rule == TilesDecode(factor=2, order="column-major")
    assert found.manifest.experts[0].decoded_per_class == [8, 8, 8]


def test_a_file_of_several_experiments(tmp_path: Path) -> None:
    sets = [made.pixels(seed=seed) for seed in range(3)]
    path = made.make_dc(tmp_path, sets, method="DC")
    with pytest.raises(UsageError, match=r"sets of 3 experiments: .*--experiment 0 to"):
        taken(tmp_path, path, **NORMALIZED)
    with pytest.raises(UsageError, match="--experiment 3 given"):
        taken(tmp_path, path, Choice(experiment=3), **NORMALIZED)
    found = taken(tmp_path, path, Choice(experiment=1), **NORMALIZED)
    near(images_of(found), unit(sets[1]))
    assert "experiment 1 of 3 in the file" in found.manifest.source.notes


def test_idm_pickle(tmp_path: Path) -> None:
    path = made.make_idm(tmp_path, device="cuda:0")
    found = taken(tmp_path, path, **NORMALIZED, decode="2x2-column-major")
    near(images_of(found), unit(made.pixels()))
    assert found.manifest.experts[0].method == "idm"
    assert found.manifest.experts[0].decode == TilesDecode(factor=2, order="column-major")
    asked = open_release(Request(str(path), Answers(**NORMALIZED))).asked
    assert [question.option for question in asked] == ["--decode"]
    assert "aug_True" in asked[0].why


@pytest.mark.parametrize("name", ["images_best.pt", "ema_images_best.pt", "images_5000.pt"])
def test_mtt(tmp_path: Path, name: str) -> None:
    path = made.make_mtt(tmp_path / "run", lr=0.0213, name=name)
    found = taken(tmp_path, path, **NORMALIZED, method="ftd")
    near(images_of(found), unit(made.pixels()))
    entry = found.manifest.experts[0]
    assert entry.step_size == pytest.approx(0.0213, rel=1e-6)
    assert entry.decode == NoDecode()
    assert found.manifest.evaluation == {"protocol": "mtt"}
    assert len(found.record["files"]) == 3
    assert taken(tmp_path / "2", tmp_path / "run", **NORMALIZED, method="ftd").record["files"]


def test_datm_labels_are_logits(tmp_path: Path) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    path = made.make_mtt(tmp_path / "run", labels=logits, lr=torch.tensor([0.5]))
    with pytest.raises(UsageError, match="--soft-labels probabilities or logits or argmax"):
        taken(tmp_path, path, **NORMALIZED, method="datm")
    with pytest.raises(UsageError, match="do not add up to 1"):
        taken(tmp_path, path, **NORMALIZED, method="datm", soft_labels="probabilities")
    found = taken(tmp_path, path, **NORMALIZED, method="datm", soft_labels="logits")
    stored = read_tensors(found.folder, found.manifest)
    rows = logits.detach().double().numpy()
    expected = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    order = np.argsort(expected.argmax(1), kind="stable")
    assert stored.soft_labels is not None
    np.testing.assert_allclose(stored.soft_labels.numpy(), expected[order], rtol=1e-6)
    assert stored.labels.tolist() == sorted(expected.argmax(1).tolist())
    near(stored.images, unit(made.pixels())[order])
    assert load_distilled(found.folder)[0][1].shape == (3,)


def test_soft_labels_that_are_probabilities_need_no_word(tmp_path: Path) -> None:
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3]] * 3)
    path = made.make_mtt(tmp_path / "run", labels=rows)
    found = taken(tmp_path, path, **NORMALIZED, method="tesla")
    stored = read_tensors(found.folder, found.manifest)
    assert stored.soft_labels is not None
    assert torch.equal(stored.soft_labels, rows)
    hard = taken(tmp_path / "2", path, **NORMALIZED, method="tesla", soft_labels="argmax")
    assert hard.manifest.labels.kind == "hard"


def test_idc(tmp_path: Path) -> None:
    path = made.make_idc(tmp_path)
    found = taken(tmp_path, path, method="idc", space="unit", decode="2x2", classes=NAMES)
    assert torch.equal(images_of(found), made.pixels() * 0.3 + 0.5)
    entry = found.manifest.experts[0]
    assert entry.decode == TilesDecode(factor=2, order="row-major")
    assert entry.trained_in.space == "unit"
    assert found.manifest.evaluation == {"protocol": "idc"}


@pytest.mark.parametrize(
    "names",
    [("00000", "00001", "00002"), ("new000", "new001", "new002"), ("0", "1", "2")],
)
def test_numbered_class_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = made.make_folders(tmp_path / "release", names, ending="png")
    (root / "README.md").write_text("hello")
    found = taken(tmp_path, root, method="sre2l", classes=NAMES)
    expected = torch.from_numpy(made.pictures()).float() / 255
    assert torch.equal(images_of(found), expected)
    assert found.manifest.classes == list(made.CLASSES)
    assert found.record["detected"]["dtype"] == "8 bits"
    with pytest.raises(UsageError, match="--decode none, 2x2-row-major"):
        taken(tmp_path, root, method="rded", classes=NAMES)
    with pytest.raises(UsageError, match="--data NAME or --classes"):
        taken(tmp_path, root, method="rded", decode="none")
    with pytest.raises(UsageError, match="8-bit pictures, which are unit space"):
        taken(tmp_path, root, method="sre2l", **NORMALIZED)


def test_numbers_beyond_ten_and_with_gaps_keep_their_class(tmp_path: Path) -> None:
    root = made.make_folders(tmp_path / "release", ("10", "2", "9"), ending="png")
    names = ",".join(f"class {c}" for c in range(11))
    found = taken(tmp_path, root, method="sre2l", classes=names)
    stored = read_tensors(found.folder, found.manifest)
    assert stored.labels.tolist() == [2, 2, 9, 9, 10, 10]
    expected = torch.from_numpy(made.pictures()).float() / 255
    assert torch.equal(stored.images, expected[[2, 3, 4, 5, 0, 1]])


def test_named_class_folders_are_matched_by_name(tmp_path: Path) -> None:
    root = made.make_folders(tmp_path / "release", ("dog", "cat", "owl"), ending="png")
    own = taken(tmp_path, root, method="sre2l")
    assert own.manifest.classes == ["cat", "dog", "owl"]
    told = taken(tmp_path / "2", root, method="sre2l", classes="owl,dog,cat")
    assert told.manifest.classes == ["owl", "dog", "cat"]
    pictures = torch.from_numpy(made.pictures()).float() / 255
    assert torch.equal(images_of(told), pictures[[4, 5, 0, 1, 2, 3]])
    with pytest.raises(DataError, match="'cat' is not among yours"):
        taken(tmp_path, root, method="sre2l", classes="owl,dog,bat")


def test_jpegs_are_what_their_files_decode_to(tmp_path: Path) -> None:
    from PIL import Image

    root = made.make_folders(tmp_path / "release")
    found = taken(tmp_path, root, method="rded", decode="none", classes=NAMES)
    files = sorted(root.rglob("*.jpg"))
    expected = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    assert torch.equal((images_of(found) * 255).round().to(torch.uint8), torch.tensor(expected))


def test_an_unreadable_picture_and_mixed_sizes(tmp_path: Path) -> None:
    root = made.make_folders(tmp_path / "release")
    next(root.rglob("*.jpg")).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 6 images of release cannot be read"):
        taken(tmp_path, root, method="sre2l", classes=NAMES)
    other = made.pictures(1, (3, 9, 9))[0]
    for path in list(root.rglob("*.jpg"))[:2]:
        path.write_bytes(made.encoded(other))
    next(root.rglob("*.jpg")).write_bytes(made.encoded(made.pictures()[0]))
    with pytest.raises(DataError, match="differ in size"):
        taken(tmp_path, root, method="sre2l", classes=NAMES)


def test_many_files_are_summed_up_in_one_hash(tmp_path: Path) -> None:
    root = made.make_folders(tmp_path / "release", images=made.pictures(15), ending="png")
    found = taken(tmp_path, root, method="sre2l", classes=NAMES)
    lines = sorted(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root).as_posix()}\n"
        for path in root.rglob("*.png")
    )
    lines.sort(key=lambda line: line.split("  ")[1])
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert found.record["files"]["release (15 files)"]["sha256"] == digest


def test_ddranking(tmp_path: Path) -> None:
    made.make_ddranking(tmp_path / "dd")
    found = taken(tmp_path, tmp_path / "dd", **NORMALIZED, method="dm")
    near(images_of(found), unit(made.pixels()))
    assert found.record["format"] == "ddranking"


def test_labels_that_are_missing(tmp_path: Path) -> None:
    path = made.make_ddranking(tmp_path / "dd")
    (tmp_path / "dd" / "labels.pt").rename(tmp_path / "y.pt")
    with pytest.raises(UsageError, match=r"there is no labels\.pt beside it: give --labels FILE"):
        taken(tmp_path, path, **NORMALIZED, method="dm")
    found = taken(tmp_path, path, Choice(labels=str(tmp_path / "y.pt")), **NORMALIZED, method="dm")
    assert list(found.record["files"]) == ["images.pt", "y.pt"]
    ordered = taken(tmp_path / "2", path, Choice(labels="by-class"), **NORMALIZED, method="dm")
    assert ordered.manifest.content_sha256 == found.manifest.content_sha256
    with pytest.raises(UsageError, match="there are 4 classes"):
        taken(tmp_path, path, Choice(labels="by-class"), space="unit", classes="a,b,c,d")
    with pytest.raises(DataError, match="there is no file of labels"):
        taken(tmp_path, path, Choice(labels="nowhere.pt"), **NORMALIZED, method="dm")


@pytest.mark.parametrize("learned", [False, True])
def test_kip(tmp_path: Path, learned: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3)) if learned else None
    path = made.make_kip(tmp_path, labels=rows)
    if learned:
        with pytest.raises(UsageError, match="--soft-labels"):
            taken(tmp_path, path, **NORMALIZED)
    found = taken(tmp_path, path, **NORMALIZED, soft_labels="argmax" if learned else None)
    stored = read_tensors(found.folder, found.manifest)
    expected = made.by_class().numpy() if rows is None else rows.argmax(1)
    order = np.argsort(expected, kind="stable")
    assert stored.labels.tolist() == expected[order].tolist()
    near(stored.images, unit(made.pixels())[order])
    assert found.manifest.experts[0].method == "kip"
    assert "axes (image, height, width, channel) reordered" in found.manifest.source.notes


def test_a_clone_of_a_hub_set(tmp_path: Path) -> None:
    root = made.make_parquet(tmp_path / "clone")
    found = taken(tmp_path, root, method="idc", decode="2")
    assert torch.equal(images_of(found), torch.from_numpy(made.pictures()).float() / 255)
    assert found.manifest.classes == list(made.CLASSES)
    assert found.manifest.source.class_order == "as declared in the data (ClassLabel)"
    again = taken(tmp_path / "2", root, method="idc", decode="2", classes="owl,cat,dog")
    assert again.manifest.classes == ["owl", "cat", "dog"]
    assert torch.equal(images_of(again), images_of(found)[[4, 5, 0, 1, 2, 3]])


def test_plain_class_numbers_of_a_hub_set_are_asked_for(tmp_path: Path) -> None:
    root = made.make_parquet(tmp_path / "clone", names=None)
    with pytest.raises(UsageError, match="--data NAME or --classes"):
        taken(tmp_path, root, method="sre2l")
    assert taken(tmp_path, root, method="sre2l", classes=NAMES).manifest.classes == [*made.CLASSES]


def test_a_set_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made.make_parquet(tmp_path / "clone")
    table = datasets.Dataset.from_parquet(
        str(next(root.rglob("*.parquet"))), cache_dir=str(tmp_path / "cache")
    )
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(hub_id: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append((hub_id, arguments))
        return {"train": table, "test": table}

    monkeypatch.setattr("moedd.importers.hub.load_hub", load)
    monkeypatch.setattr("moedd.importers.hub.hub_card", lambda *_: ("abc123", "cc-by-4.0"))
    found = taken(tmp_path, "someone/set@main", method="sre2l")
    assert asked == [("someone/set", {"name": None, "revision": "main"})]
    assert torch.equal(images_of(found), torch.from_numpy(made.pictures()).float() / 255)
    assert found.record["files"] == {"someone/set": {"revision": "abc123", "split": "train"}}
    assert found.manifest.source.license == "cc-by-4.0"


def test_sets_of_moedd_are_not_imported(tmp_path: Path) -> None:
    found = taken(tmp_path, made.make_dc(tmp_path, method="DC"), **NORMALIZED)
    with pytest.raises(UsageError, match="is a set of moedd already"):
        taken(tmp_path, found.folder)
    (found.folder / "moedd.json").unlink()
    with pytest.raises(UsageError, match="is a set of moedd already"):
        taken(tmp_path, found.folder)


def test_nothing_to_import(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=r"expected res_\*\.pt"):
            taken(tmp_path, path)
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="holds a dict with the keys state_dict"):
        taken(tmp_path, tmp_path / "model.pt")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match="no file that moedd imports"):
        taken(tmp_path, tmp_path / "x.txt")


def test_a_folder_of_several_sets_is_not_chosen_from(tmp_path: Path) -> None:
    made.make_dc(tmp_path)
    made.make_dc(tmp_path, method="DC")
    with pytest.raises(UsageError, match=r"holds 2 released sets \(res_DC"):
        taken(tmp_path, tmp_path, **NORMALIZED)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(6, 8, 8), "expected a tensor of"),
        (torch.zeros(6, 5, 8, 8), "expected 1 or 3 channels"),
        (torch.zeros(6, 3, 8, 3), "second or the last axis"),
        (torch.zeros(6, 3, 8, 8, dtype=torch.int64), "expected floats or 8 bits"),
        (torch.full((6, 3, 8, 8), torch.nan), "NaN or infinity in 6 of 6 images"),
        (torch.full((6, 3, 8, 8), 1e300, dtype=torch.float64), "beyond the range of float32"),
    ],
)
def test_images_that_are_none(tmp_path: Path, images: Tensor, said: str) -> None:
    path = made.make_idc(tmp_path, images=images)
    with pytest.raises(DataError, match=said):
        taken(tmp_path, path, method="dm", space="unit", classes=NAMES)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(5, dtype=torch.int64), "where the labels of 6 images should be"),
        (torch.tensor([0, 0, 1, 1, 2, -1]), "not class numbers"),
        (torch.tensor([0, 0, 1, 1, 2, 0.5]), "not class numbers"),
        (torch.full((6, 3), torch.inf), "NaN or infinity"),
        (torch.ones(6, 1), "expected 2 classes up"),
        (torch.tensor([0, 0, 1, 1, 2, 3]), "labels are of 4 classes and 3 are named"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: Tensor, said: str) -> None:
    path = made.make_idc(tmp_path, labels=labels)
    with pytest.raises(DataError, match=said):
        taken(tmp_path, path, method="dm", space="unit", classes=NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_this_is_said(tmp_path: Path, dtype: torch.dtype) -> None:
    images = (made.pixels() * 0.3 + 0.5).to(dtype)
    path = made.make_idc(tmp_path, images=images, labels=made.by_class().int())
    found = taken(tmp_path, path, method="dm", space="unit", classes=NAMES)
    assert torch.equal(images_of(found), images.float())
    assert any("pixels converted to float32" in note for note in found.manifest.source.notes)
    assert "int32 labels converted to int64" in found.manifest.source.notes


def test_rows_out_of_order_are_sorted_and_this_is_said(tmp_path: Path) -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1])
    path = made.make_idc(tmp_path, labels=labels)
    found = taken(tmp_path, path, method="dm", space="unit", classes=NAMES)
    stored = read_tensors(found.folder, found.manifest)
    assert torch.equal(stored.images, (made.pixels() * 0.3 + 0.5)[[1, 3, 2, 5, 0, 4]])
    assert "rows sorted by class, otherwise in the order of the file" in found.manifest.source.notes
    assert found.record["detected"]["order"] == "mixed"


def test_everything_is_recorded_and_the_unknown_is_said_to_be_unknown(tmp_path: Path) -> None:
    path = made.make_dc(tmp_path, method="DC")
    listed = tmp_path / "names.txt"
    listed.write_text("cat\ndog\nowl\n")
    said = {"space": "normalized:cifar10", "classes": str(listed)}
    request = Request(str(path), Answers(**said), name="taken", note="from the web page")
    found = import_release(request, tmp_path / "sets")
    assert validate_set(found.folder) == found.manifest
    record = found.manifest.experts[0].config["imported"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["files"][path.name] == {"sha256": digest, "size": path.stat().st_size}
    assert record["said"] == {"space": "normalized:cifar10", "classes": "names.txt"}
    assert record["detected"]["range"] == [
        round(float(value), 4) for value in made.pixels().aminmax()
    ]
    recipe = json.loads((found.folder / "recipe" / "config.json").read_text())
    assert recipe == {"imported": [record]}
    made_by = found.manifest.provenance
    assert (made_by.device, made_by.profile) == ("unknown", "unknown")
    assert made_by.seed is made_by.seconds is None
    assert found.manifest.source.data == "unknown"
    assert found.manifest.source.license == "unknown"
    assert found.manifest.experts[0].part.rule == "unknown"
    notes = found.manifest.source.notes
    assert "from the web page" in notes
    assert any("is not known" in note for note in notes)
    everything = (
        "".join(file.read_text("utf-8", "replace") for file in found.folder.rglob("*.json"))
        + (found.folder / "README.md").read_text()
    )
    assert str(tmp_path) not in everything, "paths of the person's disk are published"
