"""Local folders in every accepted form, and what is said about those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagefactories import class_folders, png, write_parquet, write_tar, write_tree

from moedd.datatable import DATA
from moedd.readers import Opened, SplitSource, open_image_folder, open_tars, order_classes
from moedd.tablereaders import open_parquet
from moedd_loaders.errors import DataError


def labels(source: SplitSource | None) -> list[int]:
    assert source is not None
    return [item.label for item in source.items()]


def found(opened: Opened | None) -> Opened:
    assert opened is not None
    return opened


# --- order of classes


def test_whole_numbers_are_sorted_by_value_and_words_as_strings() -> None:
    assert order_classes(["1", "10", "2"])[0] == ("1", "2", "10")
    assert "numeric" in order_classes(["1", "10", "2"])[1]
    assert order_classes(["1", "10", "2", "cat"])[0] == ("1", "10", "2", "cat")
    assert "lexicographic" in order_classes(["b", "a"])[1]
    assert order_classes(["n02", "B", "a"])[0] == ("B", "a", "n02")


@given(st.lists(st.text("0123456789ab_", min_size=1), min_size=1))
def test_order_depends_on_the_names_only(names: list[str]) -> None:
    ordered, rule = order_classes(names)
    assert order_classes(reversed(names)) == (ordered, rule)
    assert set(ordered) == set(names)
    if rule.startswith("numeric"):
        values = [int(name) for name in ordered]
        assert values == sorted(values)
    else:
        assert list(ordered) == sorted(set(names))


# --- image folders


def test_image_folder_with_splits(tmp_path: Path) -> None:
    class_folders(tmp_path, {"10": 3, "2": 1, "1": 2}, "train")
    class_folders(tmp_path, {"1": 1, "2": 2}, "val")
    opened = found(open_image_folder(tmp_path))
    assert opened.classes == ("1", "2", "10")
    assert opened.class_order.startswith("numeric")
    assert labels(opened.train) == [0, 0, 1, 2, 2, 2]
    assert labels(opened.test) == [0, 1, 1]
    assert any("'val'" in note for note in opened.notes)
    assert next(iter(opened.train.items())).where == "train/1/0.png"


def test_image_folder_without_splits_searches_below_and_ignores_other_files(tmp_path: Path) -> None:
    class_folders(tmp_path, {"b": 1, "a": 1})
    write_tree(
        tmp_path,
        {
            "a/deep/er/x.JPG": png(),
            "a/notes.txt": b"hello",
            "a/.DS_Store": b"x",
            ".cache/y.png": png(),
            "README.md": b"#",
        },
    )
    opened = found(open_image_folder(tmp_path))
    assert opened.classes == ("a", "b")
    assert opened.test is None
    assert [item.where for item in opened.train.items()] == [
        "a/0.png",
        "a/deep/er/x.JPG",
        "b/0.png",
    ]
    assert any(note.startswith("2 files") for note in opened.notes)


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 2, "dog": 0}, "train")
    with pytest.raises(DataError, match=r"train/dog' has no image"):
        open_image_folder(tmp_path)


def test_test_split_must_not_bring_new_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 2, "dog": 1}, "train")
    class_folders(tmp_path, {"cat": 2, "fox": 1}, "test")
    with pytest.raises(DataError, match="fox"):
        open_image_folder(tmp_path)


def test_folders_without_train_or_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "a", {"cat": 1}, "test")
    with pytest.raises(DataError, match="no train split"):
        open_image_folder(tmp_path / "a")
    write_tree(tmp_path / "b", {"train/x.png": png()})
    with pytest.raises(DataError, match="no class folders"):
        open_image_folder(tmp_path / "b")
    write_tree(tmp_path / "c", {"x.png": png()})
    assert open_image_folder(tmp_path / "c") is None


# --- Parquet folders


def test_parquet_with_class_names_of_its_own(tmp_path: Path) -> None:
    names = ["cat", "dog", "eel"]
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", [png()] * 2, [2, 0], names)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", [png()], [1], names)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [png()], [1], names)
    opened = found(open_parquet(tmp_path, None))
    assert opened.classes == ("cat", "dog", "eel")
    assert labels(opened.train) == [2, 0, 1]
    assert labels(opened.test) == [1]
    assert labels(opened.train) == [2, 0, 1]  # a second pass starts anew
    assert opened.train.count == 3


def test_parquet_columns_come_from_the_table_if_the_alias_is_known(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet",
        [png()] * 2,
        [99, 3],
        image_column="img",
        label_column="fine_label",
        more={"coarse_label": [1, 0]},
    )
    opened = found(open_parquet(tmp_path, DATA["cifar100"]))
    assert labels(opened.train) == [99, 3]
    assert opened.classes == DATA["cifar100"].classes
    assert "cifar100" in opened.class_order
    with pytest.raises(DataError, match=r"found 2 \(fine_label, coarse_label\)"):
        open_parquet(tmp_path, None)


def test_parquet_with_bare_integers_asks_for_class_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [png()] * 2, [0, 1])
    with pytest.raises(DataError, match=r"classes\.txt"):
        open_parquet(tmp_path, None)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert found(open_parquet(tmp_path, None)).classes == ("cat", "dog")


@pytest.mark.parametrize(("label", "given"), [(-1, "label -1"), (2, "label 2"), (None, "no label")])
def test_parquet_labels_out_of_range_name_the_row(
    tmp_path: Path, label: int | None, given: str
) -> None:
    write_parquet(tmp_path / "train.parquet", [png()] * 2, [0, label], ["cat", "dog"])
    with pytest.raises(DataError, match=rf"train\.parquet row 1 has {given}, expected 0\.\.1"):
        open_parquet(tmp_path, None)


def test_parquet_that_is_none_or_lacks_columns(tmp_path: Path) -> None:
    write_tree(tmp_path / "a", {"train.parquet": b"PAR1 nonsense"})
    with pytest.raises(DataError, match=r"train\.parquet' is not a readable Parquet"):
        open_parquet(tmp_path / "a", None)
    write_parquet(tmp_path / "b/test.parquet", [png()], [0], ["x"])
    with pytest.raises(DataError, match="no train split"):
        open_parquet(tmp_path / "b", None)
    assert open_parquet(write_tree(tmp_path / "c", {"x.txt": b""}), None) is None


def test_several_configurations_need_the_table_to_choose(tmp_path: Path) -> None:
    for number, config in enumerate(("full_size", "160px")):
        write_parquet(tmp_path / config / "train" / "0000.parquet", [png()], [number])
        write_parquet(tmp_path / config / "validation" / "0000.parquet", [png()], [number])
    with pytest.raises(DataError, match="160px, full_size"):
        open_parquet(tmp_path, None)
    opened = found(open_parquet(tmp_path, DATA["imagenette"]))
    assert labels(opened.train) == labels(opened.test) == [1]


def test_files_of_other_splits_are_ignored_and_noted(tmp_path: Path) -> None:
    for split in ("train", "test", "extra"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", [png()], [3])
    opened = found(open_parquet(tmp_path, DATA["svhn"]))
    assert opened.train.count == 1
    assert any("no known split" in note for note in opened.notes)


# --- WebDataset tars


def test_tars_with_integer_labels_and_a_class_file(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train-0000.tar",
        [("d.x/a.png", png()), ("d.x/a.cls", b"1"), ("b.PNG", png()), ("b.cls", b"0\n")],
    )
    write_tar(tmp_path / "val-0000.tar", [("c.json", b'{"label": 1}'), ("c.jpg", png())])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    opened = found(open_tars(tmp_path, None))
    assert opened.classes == ("cat", "dog")
    assert labels(opened.train) == [1, 0]
    assert labels(opened.test) == [1]
    assert next(iter(opened.train.items())).where == "train-0000.tar:d.x/a"


def test_tars_with_names_as_labels(tmp_path: Path) -> None:
    members = []
    for k, name in enumerate(["dog", "cat", "dog"]):
        members += [(f"{k}.json", json.dumps({"label": name}).encode()), (f"{k}.png", png())]
    write_tar(tmp_path / "train.tar", members)
    opened = found(open_tars(tmp_path, None))
    assert opened.classes == ("cat", "dog")
    assert labels(opened.train) == [1, 0, 1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], r"'a' lacks a label"),
        ([("a.cls", b"0")], r"'a' lacks an image"),
        ([("a.png", b"x"), ("b.png", b"y"), ("a.cls", b"0")], r"'a' lacks a label"),
        ([("a.png", b"x"), ("a.jpg", b"y"), ("a.cls", b"0")], r"more than one image"),
        ([("a.png", b"x"), ("a.json", b"{")], r"'a' has an unreadable \.json"),
        ([("a.png", b"x"), ("a.cls", b"12")], r"train\.tar:a has label 12, expected 0\.\.9"),
    ],
)
def test_broken_tars_name_the_sample(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=message):
        open_tars(tmp_path, DATA["mnist"])


def test_damaged_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"nonsense" * 200)
    with pytest.raises(DataError, match=r"train\.tar' is not a readable uncompressed tar"):
        open_tars(tmp_path, None)
