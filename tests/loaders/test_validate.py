from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from brokensets import PARQUET, TAR, flip, repaint, reparquet, retar, sign
from safetensors.numpy import load_file, save_file

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import TENSORS
from moedd_loaders.validate import validate_set


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "toy-idm-2x2"
    factories.make_set(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "toy-idm-2x2"))


def fault(folder: Path, said: str) -> None:
    with pytest.raises(InvalidSetError, match=said) as caught:
        validate_set(folder)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shape": (1, 9, 13)},
        {"soft": True},
        {"rows_per_shard": 4},
        {"rules": (factories.ROW_TILES,) * 3},
    ],
)
def test_what_was_written_is_valid(tmp_path: Path, given: dict[str, Any]) -> None:
    manifest = factories.make_set(tmp_path / "toy-x-2x2", **given)
    assert validate_set(tmp_path / "toy-x-2x2") == manifest


def test_signing_alone_keeps_a_set_valid(folder: Path) -> None:
    sign(folder)
    validate_set(folder)


def test_card_records_and_preview_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "assets" / "preview.png").unlink()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "results.jsonl").write_text("")
    (folder / ".git").mkdir()
    validate_set(folder)


@pytest.mark.parametrize("name", [TAR, PARQUET, TENSORS, "recipe/config.json"])
def test_a_flipped_byte_names_the_file(folder: Path, name: str) -> None:
    flip(folder / name, (folder / name).stat().st_size // 2)
    fault(folder, f"{name}.*sha256 differs")


@pytest.mark.parametrize("name", [TAR, PARQUET, TENSORS])
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    fault(folder, f"{name} has .* bytes")


@pytest.mark.parametrize("name", [TAR, "checksums.sha256", "moedd.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    fault(folder, name)


def test_an_edited_manifest_is_seen(folder: Path) -> None:
    text = (folder / "moedd.json").read_text()
    (folder / "moedd.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    fault(folder, r"moedd\.json was edited")


def test_a_newer_major_is_refused(folder: Path) -> None:
    text = (folder / "moedd.json").read_text()
    (folder / "moedd.json").write_text(text.replace("moedd/1", "moedd/2"))
    fault(folder, "pip install -U moedd")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "data/../../x", "data//x", "data\\x"])
def test_paths_stay_inside(folder: Path, name: str) -> None:
    (folder.parent / "evil").write_bytes(b"")
    raw = json.loads((folder / "moedd.json").read_text())
    raw["files"][name] = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    (folder / "moedd.json").write_text(json.dumps(raw))
    fault(folder, "leaves the folder")


def test_payload_lies_in_the_payload_folders(folder: Path) -> None:
    (folder / "x.pkl").write_bytes(b"")
    raw = json.loads((folder / "moedd.json").read_text())
    raw["files"]["x.pkl"] = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    (folder / "moedd.json").write_text(json.dumps(raw))
    fault(folder, r"x\.pkl.*expected files in")


@pytest.mark.parametrize("name", [TAR, "assets"])
def test_links_are_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    os.symlink(outside, folder / name)
    fault(folder, f"{name} is a symbolic link")


def test_a_stray_shard_is_refused(folder: Path) -> None:
    shutil.copy(folder / PARQUET, folder / "data" / "train-00002-of-00003.parquet")
    fault(folder, "00002-of-00003.parquet is not listed")


def test_checksums_must_list_everything(folder: Path) -> None:
    path = folder / "checksums.sha256"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    fault(folder, r"checksums\.sha256 does not list data/train-00000")
    path.write_text("hello\n")
    fault(folder, "line 1 is not")


# From here on every checksum fits: only the content tells.


def test_not_finite_pixels(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors["images"][0, 0, 0, 0] = np.nan
    save_file(tensors, folder / TENSORS)
    sign(folder)
    fault(folder, r"distilled\.safetensors: 'images' holds NaN")


def test_npy_must_have_the_bits_of_the_tensors(folder: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        hit = name == "e01-c0002-k0001.npy"
        return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:] if hit else data

    retar(folder / TAR, change)
    sign(folder)
    fault(folder, r"train-00001\.tar, row e01-c0002-k0001: the \.npy pixels differ")


def test_png_in_a_tar_must_be_the_view(folder: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return repaint(data) if name == "e01-c0000-k0000.png" else data

    retar(folder / TAR, change)
    sign(folder)
    fault(folder, r"train-00001\.tar, row e01-c0000-k0000: the PNG is not")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("e01-c0000-k0001.cls", b"2", "bad .json or .cls"),
        ("e01-c0000-k0001.json", b"[", "bad .json or .cls"),
        ("e01-c0000-k0001.png", b"PNG?", "bad PNG"),
        ("e01-c0000-k0001.npy", b"\x80\x04K\x01.", "bad .npy"),
        ("e01-c0000-k0001.npy", None, "unexpected member"),
    ],
)
def test_members_of_a_tar_are_checked(
    folder: Path, name: str, value: bytes | None, said: str
) -> None:
    retar(folder / TAR, lambda found, data: value if found == name else data)
    sign(folder)
    fault(folder, f"train-00001.tar.*{said}")


def test_a_tar_with_fewer_rows(folder: Path) -> None:
    retar(folder / TAR, lambda name, data: None if "c0002-k0001" in name else data)
    sign(folder)
    fault(folder, r"train-00001\.tar ends 1 rows too early")


def test_a_tar_cut_in_the_middle(folder: Path) -> None:
    (folder / TAR).write_bytes((folder / TAR).read_bytes()[:3000])
    sign(folder)
    fault(folder, r"train-00001\.tar is not a whole tar")


def test_an_array_of_objects_is_never_unpickled(folder: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    evil = buffer.getvalue()
    retar(folder / TAR, lambda name, data: evil if name.endswith(".npy") else data)
    sign(folder)
    fault(folder, r"bad \.npy")


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("label", lambda v: [v[-1], *v[1:]], "label is 2, the tensors say 0"),
        ("expert", lambda v: [0] * len(v), "expert is 0"),
        ("method", lambda v: ["idc"] * len(v), "method is 'idc'"),
        ("id", lambda v: v[::-1], "id is"),
        ("k", lambda v: [7] * len(v), "k is 7"),
        ("image", lambda v: [{**x, "bytes": repaint(x["bytes"])} for x in v], "the PNG is not"),
        ("image", lambda v: [{"bytes": None, "path": "/a"}] * len(v), "names the image file '/a'"),
        ("image", lambda v: [{"bytes": None, "path": None}] * len(v), "bad PNG: no bytes"),
    ],
)
def test_parquet_rows_are_checked(
    folder: Path, column: str, change: Callable[[list[Any]], list[Any]], said: str
) -> None:
    reparquet(folder / PARQUET, column, change)
    sign(folder)
    fault(folder, f"train-00001-of-00002.parquet, row .*{said}")


def test_what_is_no_parquet(folder: Path) -> None:
    (folder / PARQUET).write_bytes(b"PAR1")
    sign(folder)
    fault(folder, "not a readable Parquet file")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: raw["experts"][0].update(decoded_per_class=[1, 1, 1]), "decodes to"),
        (lambda raw: raw["experts"][1].update(shards=[0]), "shards are"),
        (lambda raw: raw["experts"][1].update(stored_per_class=[2, 2, 3]), "decodes to"),
        (lambda raw: raw["budget"].update(images=11), "the budget"),
        (lambda raw: raw["source"].update(mean=[0.5]), "do not fit"),
        (lambda raw: raw["source"].update(classes=["a", "b", "c"]), "names other classes"),
        (lambda raw: raw.update(content_sha256="0" * 64), "content_sha256 is 0000"),
        (lambda raw: raw.update(view_sha256="0" * 64), "view_sha256 is 0000"),
        (lambda raw: raw["experts"][0].update(step_size=0.5), "training_sha256 is"),
        (lambda raw: raw["experts"][0]["decode"].update(order="row-major"), "training_sha256 is"),
        (lambda raw: raw["experts"][0]["trained_in"].update(matrix="x"), "does not list x"),
    ],
)
def test_the_manifest_must_fit_the_rows(
    folder: Path, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    sign(folder, edit)
    fault(folder, said)


def test_not_a_folder(tmp_path: Path) -> None:
    fault(tmp_path / "nothing", "is not a folder")
