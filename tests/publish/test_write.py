from __future__ import annotations

import errno
import hashlib
import tarfile
from pathlib import Path
from typing import Any

import factories
import pytest
import torch

from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    DataError,
    DiskFullError,
    NonFiniteError,
    UsageError,
)
from moedd_loaders.manifest import NoDecode, Provenance
from moedd_loaders.validate import validate_set
from moedd_publish import check_target
from moedd_publish.rows import encode_png

MUTABLE = ("README.md", "assets/preview.png")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s", rows_per_shard=5)
    files = contents(tmp_path / "s")
    assert sorted(files) == sorted(
        [f"data/train-{shard:05d}-of-00004.parquet" for shard in range(4)]
        + [f"webdataset/train-{shard:05d}.tar" for shard in range(4)]
        + ["webdataset/_info.json", "tensors/distilled.safetensors", "recipe/config.json"]
        + ["recipe/environment.txt", "moedd.json", "checksums.sha256", *MUTABLE]
    )
    assert [entry.shards for entry in manifest.experts] == [[0, 1], [2, 3]]
    payload = set(files) - {"moedd.json", "checksums.sha256", *MUTABLE}
    assert set(manifest.files) == payload
    # `sha256sum -c` form, over payload and manifest, the mutable files left out.
    lines = files["checksums.sha256"].decode().splitlines()
    assert {line[66:]: line[:64] for line in lines} == {
        name: hashlib.sha256(files[name]).hexdigest() for name in payload | {"moedd.json"}
    }
    assert all(line[64:66] == "  " for line in lines)


def test_budget_and_counts(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s", soft=True)
    assert manifest.budget.images == 12
    assert manifest.budget.image_bytes == 12 * 3 * 8 * 8 * 4
    assert manifest.budget.label_bytes == 12 * 8 + 12 * 3 * 4
    assert manifest.labels.kind == "soft"
    assert [entry.decoded_per_class for entry in manifest.experts] == [[8] * 3, [2] * 3]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = factories.make_set(tmp_path / "one" / "s", soft=True)
    second = factories.make_set(
        tmp_path / "two" / "s",
        soft=True,
        created="2027-01-01T00:00:00Z",
        provenance=Provenance(seconds=5.0),
    )
    a, b = contents(tmp_path / "one" / "s"), contents(tmp_path / "two" / "s")
    different = {name for name in a if a[name] != b[name]}
    assert different == {"moedd.json", "checksums.sha256", "README.md"}
    assert first.training_sha256 == second.training_sha256


def test_other_input_gives_other_hashes(tmp_path: Path) -> None:
    one = factories.make_set(tmp_path / "one", name="s")
    two = factories.make_set(tmp_path / "two", name="s", seed=1)
    rule = factories.make_set(tmp_path / "three", name="s", rules=(factories.ROW_TILES, NoDecode()))
    assert one.content_sha256 != two.content_sha256
    assert one.content_sha256 == rule.content_sha256
    assert one.training_sha256 != rule.training_sha256


def test_tars_know_neither_clock_nor_user(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    with tarfile.open(tmp_path / "s" / "webdataset" / "train-00000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_nothing_is_a_pickle(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s", soft=True)
    for name, data in contents(tmp_path / "s").items():
        assert Path(name).suffix in {
            ".parquet", ".tar", ".json", ".txt", ".safetensors", ".sha256", ".md", ".png"
        }  # fmt: skip
        assert not data.startswith(b"\x80"), name
        if name.endswith(".tar"):
            with tarfile.open(tmp_path / "s" / name) as tar:
                suffixes = {Path(member.name).suffix for member in tar}
            assert suffixes == {".png", ".cls", ".json", ".npy"}


def test_png_bytes_are_equal_for_equal_pixels() -> None:
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    strided = pixels.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert encode_png(pixels) == encode_png(strided)
    with pytest.raises(DataError, match="2 channels, expected 1 or 3"):
        encode_png(pixels[:2])


def test_folders_have_ordinary_permissions(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "s").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_relative_folder_and_its_parents(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    factories.make_set(Path("a/b/s"))
    validate_set(tmp_path / "a" / "b" / "s")


# What exists already.


def test_an_existing_set_is_kept_without_overwrite(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(ConflictError, match="--overwrite") as caught:
        factories.make_set(tmp_path / "s", seed=1)
    assert caught.value.exit_code == 4
    assert contents(tmp_path / "s") == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_overwrite_replaces_the_whole_set(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s", rows_per_shard=1)
    manifest = factories.make_set(tmp_path / "s", seed=1, overwrite=True)
    assert validate_set(tmp_path / "s") == manifest
    assert len(list((tmp_path / "s" / "data").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_overwrite_keeps_the_records_of_the_same_rows_only(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    results = tmp_path / "s" / "benchmarks" / "results.jsonl"
    results.parent.mkdir()
    results.write_text("{}\n")
    factories.make_set(tmp_path / "s", overwrite=True)
    assert results.read_text() == "{}\n"
    factories.make_set(tmp_path / "s", overwrite=True, seed=1)
    assert not results.exists()


def test_a_damaged_set_may_be_overwritten(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    (tmp_path / "s" / "benchmarks").mkdir()
    (tmp_path / "s" / "benchmarks" / "results.jsonl").write_text("{}\n")
    (tmp_path / "s" / "moedd.json").write_text("{")
    factories.make_set(tmp_path / "s", overwrite=True)
    validate_set(tmp_path / "s")


def test_a_folder_that_is_not_a_set_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "home"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ConflictError, match="is not a set"):
        factories.make_set(mine, overwrite=True)
    assert contents(mine) == {"thesis.tex": b"years of work"}
    with pytest.raises(ConflictError, match="not a folder"):
        factories.make_set(mine / "thesis.tex", name="s", overwrite=True)
    check_target(tmp_path / "nothing", overwrite=False)


# A full disk, at any file.


class Full:
    """`Path.write_bytes` that writes half of file number `at` and then finds the disk full."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.real = Path.write_bytes

    def __call__(self, path: Path, data: bytes) -> int:
        self.left -= 1
        if self.left < 0:
            self.real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return self.real(path, data)


def fill_up(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    full = Full(at)
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: full(path, data))


@pytest.mark.parametrize("at", range(12))
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    factories.make_set(tmp_path / "s")
    before = contents(tmp_path / "s")
    fill_up(monkeypatch, at)
    for name in ("s", "new"):
        with pytest.raises(DiskFullError, match="the disk is full while writing") as caught:
            factories.make_set(tmp_path / name, seed=1, overwrite=True)
        assert caught.value.exit_code == 1
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert contents(tmp_path / "s") == before


def test_there_are_twelve_files_to_fill_the_disk_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_up(monkeypatch, 12)
    factories.make_set(tmp_path / "s")
    assert len(contents(tmp_path / "s")) == 12


def test_a_full_disk_when_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskFullError):
        factories.make_set(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        factories.make_set(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_failing_rename_brings_the_old_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    factories.make_set(tmp_path / "s")
    before = contents(tmp_path / "s")
    real = os.rename
    calls: list[int] = []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(AuthError, match="no permission while writing"):
        factories.make_set(tmp_path / "s", seed=1, overwrite=True)
    assert contents(tmp_path / "s") == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"File exists while writing.*choose another place"):
        factories.make_set(tmp_path / "file" / "s")


# Rows that do not fit.


def changed(**fields: Any) -> Any:
    rows = factories.make_rows(factories.make_source(), [2, 2, 2])
    return type(rows)(**{**vars(rows), **fields})


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"images": torch.zeros(6, 3, 8, 9)}, DataError, "shape"),
        ({"images": torch.zeros(6, 3, 8, 8).double()}, DataError, "float64"),
        ({"images": torch.full((6, 3, 8, 8), float("nan"))}, NonFiniteError, "NaN"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2])}, DataError, "one int64 label per image"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, DataError, "outside 0..2"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, -1])}, DataError, "outside 0..2"),
        ({"labels": torch.tensor([0, 1, 0, 1, 2, 2])}, DataError, "out of order"),
        (
            {"labels": torch.zeros(0).long(), "images": torch.zeros(0, 3, 8, 8)},
            DataError,
            "at least one image",
        ),
    ],
)
def test_rows_that_do_not_fit(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=r"expert 1 \(idm\).*" + said):
        factories.make_set(tmp_path / "s", experts=[changed(), changed(**fields)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "A set"}, "cannot name a set"),
        ({"experts": []}, "has no experts"),
        ({"rows_per_shard": 0}, "rows_per_shard"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        factories.make_set(tmp_path / "s", **given)


def test_numbers_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        factories.make_set(tmp_path / "s", provenance=Provenance(losses={"0": float("inf")}))
    assert not list(tmp_path.iterdir())
