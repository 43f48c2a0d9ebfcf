"""load_real: real data in memory, whatever the source, and clear words for what cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from imagefactories import class_folders, encoded, noise, png, write_parquet, write_tar, write_tree

from moedd.realdata import RealSplit, fingerprint, load_real, stratified_holdout
from moedd.tablereaders import hub_error, open_hub_splits
from moedd_loaders.errors import AuthError, DataError, MoeddError, NetworkError, UsageError


def test_digits_whole_and_fixed() -> None:
    data = load_real("digits")
    assert data.shape == (1, 8, 8)
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.classes == tuple("0123456789")
    assert not data.flip
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.class_counts() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert load_real("digits").fingerprint == data.fingerprint
    # The split is part of every published digits set: it must never move.
    assert data.fingerprint.startswith("sha256:e778b805aa7cb74c")


def test_digits_take_size_and_channels() -> None:
    data = load_real("digits", size=(12, 10), channels=3)
    assert data.shape == (3, 12, 10)
    assert len(data.mean) == 3
    assert data.mean[0] == data.mean[2]
    assert any("replicated" in note for note in data.notes)


def test_normalized_is_the_formula() -> None:
    data = load_real("digits")
    images = data.train.images[:5]
    expected = (images.double() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(data.normalized(images).double(), expected, atol=1e-6, rtol=0)
    assert data.normalized(images).dtype == torch.float32


def test_too_small_class_is_named() -> None:
    data = load_real("digits")
    data.require_per_class(139, "139 images")
    with pytest.raises(DataError, match=r"class '8' of digits has 139 .* 10 x 14 needs 140"):
        data.require_per_class(140, "10 x 14")


@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.randoms())
def test_holdout_is_stratified_and_disjoint(counts: list[int], shuffle: Any) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    shuffle.shuffle(labels)
    tensor = torch.tensor(labels)
    train, test = stratified_holdout(tensor, [str(label) for label in range(len(counts))])
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held = int((tensor[test] == label).sum())
        assert held == max(1, round(count / 5))
        assert held < count


def test_fingerprint_is_a_hash_of_everything() -> None:
    images = torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8)
    split = RealSplit(images, torch.tensor([0, 1]))
    base = fingerprint(["a", "b"], split, split)
    digest = hashlib.sha256(b'{"classes": ["a", "b"], "shapes": [[2, 1, 8, 8], [2, 1, 8, 8]]}')
    for _ in range(2):
        digest.update(b"\0" * 8 + b"\1" + b"\0" * 7 + bytes(range(128)))
    assert base == "sha256:" + digest.hexdigest()
    changed = images.clone()
    changed[1, 0, 3, 3] += 1
    others = {
        fingerprint(["a", "c"], split, split),
        fingerprint(["a", "b"], split),
        fingerprint(["a", "b"], split, RealSplit(changed, split.labels)),
        fingerprint(["a", "b"], split, RealSplit(images, torch.tensor([1, 0]))),
        fingerprint(["a", "b"], split, RealSplit(images.reshape(2, 1, 4, 16), split.labels)),
    }
    assert len(others) == 5
    assert base not in others
    assert fingerprint(["a", "b"], split.subset([0, 1]), split) == base


# --- local folders


def test_image_folder_without_test_split_is_split_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "mine", {"1": 10, "10": 5, "2": 7})
    data = load_real("mine", path=tmp_path / "mine")
    assert data.classes == ("1", "2", "10")
    assert data.class_order.startswith("numeric")
    assert data.class_counts() == [8, 6, 4]
    assert len(data.test) == 4
    assert data.license == "unknown"
    assert not data.flip
    notes = " | ".join(data.notes)
    assert "local folder 'mine'" in notes
    assert str(tmp_path) not in notes
    assert "held out" in notes
    # Constants of unknown data come from the training split.
    unit = data.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), unit.mean((0, 2, 3)))
    torch.testing.assert_close(
        torch.tensor(data.std).double(), unit.permute(1, 0, 2, 3).flatten(1).std(1, correction=0)
    )
    assert load_real("mine", path=tmp_path / "mine", flip=True).flip


@pytest.mark.parametrize("shape", [(9, 13, 3), (28, 28, 1), (48, 64, 3)])
def test_odd_non_square_and_grey_shapes(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    class_folders(tmp_path, {"a": 2, "b": 3}, "train", shape)
    class_folders(tmp_path, {"a": 1, "b": 1}, "test", shape)
    data = load_real("x", path=str(tmp_path))
    assert data.shape == (shape[2], shape[0], shape[1])
    assert data.class_counts() == [2, 3]
    assert len(data.test) == 2


def test_the_same_images_in_three_containers_are_the_same_data(tmp_path: Path) -> None:
    """Folder, Parquet and tars of one set of images have one fingerprint."""
    class_folders(tmp_path / "f", {"cat": 3, "dog": 2}, "train")
    class_folders(tmp_path / "f", {"cat": 1, "dog": 1}, "test")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "classes.txt").write_text("cat\ndog")
    for split in ("train", "test"):
        paths = sorted((tmp_path / "f" / split).rglob("*.png"))
        labels = [["cat", "dog"].index(path.parent.name) for path in paths]
        images = [path.read_bytes() for path in paths]
        write_parquet(tmp_path / f"p/{split}.parquet", images, labels, ["cat", "dog"])
        members = []
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            members += [(f"{k}.png", image), (f"{k}.cls", str(label).encode())]
        write_tar(tmp_path / f"t/{split}.tar", members)
    prints = {load_real("pets", path=tmp_path / form).fingerprint for form in "fpt"}
    assert len(prints) == 1


def test_alias_with_a_local_copy_uses_the_table(tmp_path: Path) -> None:
    shape = (32, 32, 3)
    images = [png(*shape, seed=k) for k in range(20)]
    labels = [k % 10 for k in range(20)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", images, labels, image_column="img")
    data = load_real("cifar10", path=tmp_path)
    assert data.hub_id == "uoft-cs/cifar10"
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.flip
    assert data.classes[3] == "cat"
    assert data.shape == (3, 32, 32)
    grey = load_real("cifar10", path=tmp_path, channels=1, size=16)
    assert grey.shape == (1, 16, 16)
    assert len(grey.mean) == 1


def test_alias_with_other_data_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(DataError, match="2 classes, but cifar10 has 10"):
        load_real("cifar10", path=tmp_path)


def test_alias_under_another_name() -> None:
    data = load_real("mydigits", path="digits")
    assert data.data == "mydigits"
    assert data.fingerprint == load_real("digits").fingerprint


def test_grey_images_where_three_channels_are_declared(tmp_path: Path) -> None:
    images = [png(32, 32, 1, seed=k) for k in range(20)]
    write_parquet(tmp_path / "train.parquet", images, [k % 10 for k in range(20)], None, "img")
    with pytest.raises(DataError, match=r"train\.parquet row 0' \(and 19 more\) is grey") as raised:
        load_real("cifar10", path=tmp_path)
    assert "--channels 3" in str(raised.value)
    assert raised.value.exit_code == 2
    assert load_real("cifar10", path=tmp_path, channels=3).shape == (3, 32, 32)
    assert load_real("cifar10", path=tmp_path, channels=1).shape == (1, 32, 32)


def test_stray_grey_images_join_colour_where_the_table_expects_them(tmp_path: Path) -> None:
    images = [png(16, 16, 1 if k == 3 else 3, seed=k) for k in range(20)]
    write_parquet(tmp_path / "train.parquet", images, [k % 10 for k in range(20)])
    data = load_real("imagenette", path=tmp_path)
    assert data.shape == (3, 16, 16)
    assert any(note.startswith("1 of 20 train images: grey replicated") for note in data.notes)


def test_conversions_are_counted_in_the_notes(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 4, "b": 4})
    write_tree(tmp_path, {"a/x.png": encoded(noise(8, 8, 4)), "a/y.png": encoded(noise(8, 8, 4))})
    notes = load_real("x", path=tmp_path).notes
    assert "2 of 10 train images: transparency composited on white" in notes


def test_bad_files_stop_or_are_skipped(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 6, "b": 6})
    whole = png(16, 16)
    broken = {f"b/broken{k:02}.png": whole[: len(whole) // 2] for k in range(11)}
    write_tree(tmp_path, {**broken, "a/zero.png": b"", "a/text.png": b"hello"})
    with pytest.raises(DataError) as raised:
        load_real("x", path=tmp_path)
    text = str(raised.value)
    assert text.startswith("13 of 25 images cannot be read: a/text.png (not an image")
    assert "a/zero.png (0 bytes)" in text
    assert text.count("(truncated)") == 8
    assert "and 3 more" in text
    assert "--skip-bad" in text
    data = load_real("x", path=tmp_path, skip_bad=True)
    assert len(data.train) + len(data.test) == 12
    assert any(note.startswith("13 of 25 unreadable images left out") for note in data.notes)


def test_class_that_loses_all_images_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    write_tree(tmp_path, {"c/x.png": b""})
    with pytest.raises(DataError, match="class 'c' has no readable"):
        load_real("x", path=tmp_path, skip_bad=True)


def test_sizes_must_agree_or_be_given(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3}, "train", (16, 16, 3))
    class_folders(tmp_path, {"b": 3}, "train", (16, 20, 3))
    with pytest.raises(DataError, match=r"16x16.*16x20.*--size"):
        load_real("x", path=tmp_path)
    assert load_real("x", path=tmp_path, size=12).shape == (3, 12, 12)
    class_folders(tmp_path / "two", {"a": 3, "b": 3}, "train", (16, 16, 3))
    class_folders(tmp_path / "two", {"a": 3, "b": 3}, "test", (18, 18, 3))
    with pytest.raises(DataError, match="--size"):
        load_real("x", path=tmp_path / "two")


def test_tiny_images_and_sizes(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3}, shape=(7, 16, 3))
    with pytest.raises(DataError, match=r"7x16 .*at least 8x8"):
        load_real("x", path=tmp_path)
    for wrong in ({"size": 7}, {"size": (8, 4)}, {"channels": 2}):
        with pytest.raises(UsageError):
            load_real("x", path=tmp_path, **wrong)  # type: ignore[arg-type]


def test_missing_empty_or_wrong_folders(tmp_path: Path) -> None:
    def refused(path: Path, word: str) -> None:
        with pytest.raises(DataError, match=word) as raised:
            load_real("x", path=path)
        assert "Parquet" in str(raised.value)
        assert raised.value.exit_code == 2

    refused(tmp_path / "missing", "no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is empty")
    refused(write_tree(tmp_path / "wrong", {"a/b.txt": b"x"}), "holds no data")
    refused(write_tree(tmp_path / "flat", {"a.png": png()}), "holds no data")
    refused(tmp_path / "flat" / "a.png", "is a file")
    refused(write_tree(tmp_path / "set", {"moedd.json": b"{}"}), "distilled set")
    refused(class_folders(tmp_path / "one", {"only": 3}), "1 class ")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown data 'cifar11'.*digits, cifar10"):
        load_real("cifar11")


# --- the Hub, without a network


def test_offline_hub_is_a_network_error(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from moedd.realdata import load_real\n"
        "from moedd_loaders.errors import MoeddError\n"
        "try:\n"
        "    load_real('cifar10')\n"
        "except MoeddError as error:\n"
        "    print(type(error).__name__, error)\n"
        "    sys.exit(error.exit_code)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 6, done.stderr
    assert "NetworkError" in done.stdout
    assert "--data FOLDER" in done.stdout


class _Answer(Exception):
    """A client error that carries a response, as huggingface_hub's do."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), NetworkError),
        (TimeoutError("slow"), NetworkError),
        (_Answer(401), AuthError),
        (_Answer(403), AuthError),
        (_Answer(404), DataError),
        (type("DatasetNotFoundError", (FileNotFoundError,), {})("no"), DataError),
        (type("DatasetNotFoundError", (FileNotFoundError,), {})("is a gated data set"), AuthError),
        (ValueError("Config name is missing"), DataError),
        (KeyError("a fault of ours"), None),
    ],
)
def test_hub_errors_are_told_apart(error: Exception, kind: type[MoeddError] | None) -> None:
    told = hub_error(error, "a/b")
    assert type(told) is (kind or type(None))
    assert told is None or "a/b" in str(told)


def test_splits_of_a_loaded_hub_data_set() -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = [{"bytes": png(seed=k), "path": None} for k in range(3)]
    loaded = {
        split: datasets.Dataset.from_dict({"image": rows, "label": labels}, features=features)
        for split, labels in {"train": [1, 0, 1], "validation": [0, 0, 1]}.items()
    }
    opened = open_hub_splits(loaded, "a/b", None)
    assert opened.classes == ("cat", "dog")
    assert [(item.label, item.data) for item in opened.train.items()] == [
        (label, row["bytes"]) for label, row in zip([1, 0, 1], rows, strict=True)
    ]
    assert opened.test is not None
    assert opened.test.count == 3
    with pytest.raises(DataError, match="no train split"):
        open_hub_splits({"test": loaded["train"]}, "a/b", None)


def test_hub_data_set_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets.load_dataset` replaced by its own reading of a local folder of Parquet files."""
    import datasets

    images = [png(28, 28, 1, seed=k) for k in range(20)]
    names = [str(digit) for digit in range(10)]
    for split in ("train", "test"):
        write_parquet(
            tmp_path / f"data/{split}-00000-of-00001.parquet",
            images,
            [k % 10 for k in range(20)],
            names,
        )
    real = datasets.load_dataset
    asked: list[tuple[str, dict[str, Any]]] = []

    def local(name_: str, /, **options: Any) -> Any:
        asked.append((name_, options))
        return real(str(tmp_path), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr("moedd.tablereaders.hub_card", lambda *_: ("abc123", "mit"))
    data = load_real("mnist")
    assert asked == [("ylecun/mnist", {"name": "mnist", "revision": None})]
    assert (data.hub_id, data.revision, data.license) == ("ylecun/mnist", "abc123", "mit")
    assert data.shape == (1, 28, 28)
    other = load_real("x", path="someone/things:small@v1.0")
    assert asked[1] == ("someone/things", {"name": "small", "revision": "v1.0"})
    assert other.fingerprint == data.fingerprint
    assert other.classes == tuple(names)


def test_data_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_real("digits").data = "other"  # type: ignore[misc]
