"""`moedd import`, `merge`, `export`, `validate` as a person types them; the sets are evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import releasefactories as made
import torch
from runfactories import cli, tree

from moedd.realdata import load_real
from moedd_loaders.manifest import read_manifest
from moedd_loaders.records import read_records
from moedd_loaders.validate import validate_set

NAMES = "cat,dog,owl"
SAID = ("--method", "dm", "--space", "normalized:cifar10", "--classes", NAMES)


def digits_release(folder: Path, seed: int, *, tiles: bool = False) -> Path:
    """Real digits, two a class, normalised, as DM's scripts would save them; tiles are mosaics."""
    real = load_real("digits")
    generator = np.random.default_rng(seed)
    rows = [
        int(row)
        for c in range(10)
        for row in generator.choice(np.flatnonzero(real.train.labels == c), 2, replace=False)
    ]
    images = real.train.images[rows].float() / 255
    if tiles:
        small = torch.nn.functional.avg_pool2d(images, 2)
        images = torch.cat([torch.cat([small, small], 2)] * 2, 3)
    folder.mkdir()
    normalised = (images - real.mean[0]) / real.std[0]
    return made.make_dc(folder, [normalised], made.by_class(10, 2), method="DM", data="digits")


def test_a_refusal_shows_what_was_found_and_writes_nothing(
    tmp_path: Path, moedd_home: Path
) -> None:
    told = cli("import", made.make_dc(tmp_path))
    assert told.code == 2
    assert "found: 6 images of 3x8x8 (float32), dc files" in told.out
    assert "class numbers 0 to 2, 2 per class, order by class" in told.out
    assert "not known: --method dc, dsa, dm, idm or unknown: the name says DM" in told.out
    assert "looks normalised" in told.out
    for option in ("--method", "--space", "--decode", "--data NAME or --classes"):
        assert option in told.sentence
    assert not moedd_home.exists()


def test_json_of_a_refusal_and_of_an_import(tmp_path: Path, moedd_home: Path) -> None:
    path = made.make_dc(tmp_path)
    told = cli("import", path, "--json")
    asked = json.loads(told.out)
    assert told.code == 2
    assert [question["option"] for question in asked["needed"]][:3] == [
        "--method", "--space", "--decode",
    ]  # fmt: skip
    assert asked["detected"]["shape"] == [3, 8, 8]
    told = cli("import", path, *SAID, "--name", "taken", "--json")
    found = json.loads(told.out)
    assert told.code == 0, told.err
    assert found["concluded"]["space"] == "normalized"
    assert found["folder"] == str(moedd_home / "sets" / "taken")
    assert validate_set(found["folder"]).content_sha256 == found["content_sha256"]


def test_an_import_ends_with_lines_that_work(tmp_path: Path, moedd_home: Path) -> None:
    told = cli("import", made.make_dc(tmp_path), *SAID, "--name", "taken")
    assert told.code == 0, told.err
    assert "taken as: method dm, space normalized" in told.out
    found: dict[str, torch.Tensor] = {}
    exec(told.out.split("load it:\n")[1], found)
    assert found["images"].shape == (6, 3, 8, 8)
    shown = cli("show", "taken")
    assert "made elsewhere, brought here by moedd" in shown.out
    assert "seed, machine, time and schedule are not known" in shown.out


def test_existing_sets_are_kept(tmp_path: Path, moedd_home: Path) -> None:
    path = made.make_dc(tmp_path)
    assert cli("import", path, *SAID, "--name", "taken").code == 0
    before = tree(moedd_home)
    told = cli("import", path, *SAID, "--name", "taken")
    assert told.code == 4
    assert "--overwrite" in told.sentence
    assert tree(moedd_home) == before
    assert cli("import", path, *SAID, "--name", "taken", "--overwrite").code == 0


def test_a_warning_is_one_line(tmp_path: Path, moedd_home: Path) -> None:
    said = ("--method", "dm", "--space", "unit", "--classes", NAMES, "--name", "taken")
    told = cli("import", made.make_dc(tmp_path), *said)
    assert told.code == 0
    assert "moedd: warning: the pixels were told to be in unit space" in told.err


@pytest.mark.parametrize("value", ["a,b", "", "0.5,,0.5", "1e9"])
def test_constants_that_are_no_numbers(tmp_path: Path, value: str) -> None:
    told = cli("import", made.make_dc(tmp_path), "--mean", value)
    assert told.code == 2
    assert "expected numbers with commas" in told.sentence


def test_merge_export_and_validate(tmp_path: Path, moedd_home: Path) -> None:
    assert cli("import", made.make_dc(tmp_path), *SAID, "--name", "one").code == 0
    other = made.make_idc(tmp_path)
    said = ("--method", "idc", "--space", "unit", "--decode", "2x2", "--classes", "owl,dog,cat")
    assert cli("import", other, *said, "--name", "two").code == 0
    told = cli("merge", "one", "two")
    assert told.code == 2
    assert "give --name" in told.sentence
    told = cli("merge", "one", "two", "--name", "both")
    assert told.code == 0, told.err
    assert "one (your set " in told.out
    found: dict[str, torch.Tensor] = {}
    exec(told.out.split("load it:\n")[1], found)
    assert found["labels"].shape == (30, 3)
    again = cli("merge", "one", "one", "--name", "twice")
    assert again.code == 2
    assert "the same images twice" in again.sentence

    told = cli("validate", "both", "--json")
    assert json.loads(told.out)["valid"] is True
    told = cli("export", "both", "--to", "ddranking", "--out", tmp_path / "out")
    assert told.code == 2
    assert "give --decoded" in told.sentence
    told = cli("export", "both", "--to", "ddranking", "--out", tmp_path / "out", "--decoded")
    assert told.code == 0, told.err
    assert torch.load(tmp_path / "out" / "images.pt").shape == (30, 3, 8, 8)
    told = cli("export", "two", "--to", "dc", "--out", tmp_path / "dc", "--json")
    assert json.loads(told.out)["decode"]["factor"] == 2
    shown = cli("export", "two", "--to", "imagefolder", "--out", tmp_path / "png")
    assert "cut them for training, or give --decoded" in shown.out
    assert cli("export", "two", "--to", "dc", "--out", tmp_path / "dc").code == 4
    assert cli("export", "two", "--to", "zip", "--out", tmp_path / "z").code == 2


def test_the_default_place_of_an_export(
    tmp_path: Path, moedd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("import", made.make_dc(tmp_path), *SAID, "--name", "one").code == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli("export", "one", "--to", "mtt").code == 0
    assert (tmp_path / "here" / "one-mtt" / "images_best.pt").is_file()


def test_a_broken_set_has_exit_code_5(tmp_path: Path, moedd_home: Path) -> None:
    assert cli("import", made.make_dc(tmp_path), *SAID, "--name", "one").code == 0
    folder = moedd_home / "sets" / "one"
    tensors = folder / "tensors" / "distilled.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    for command in (("validate", "one"), ("evaluate", "one"), ("merge", "one", "one"),
                    ("export", "one", "--to", "dc", "--out", tmp_path / "out")):  # fmt: skip
        told = cli(*command)
        assert told.code == 5, told.err
        assert "distilled.safetensors has" in told.sentence
    told = cli("validate", "one", "--json")
    assert told.code == 5
    assert json.loads(told.out)["valid"] is False
    assert "distilled.safetensors" in json.loads(told.out)["fault"]


@pytest.mark.parametrize("command", ["import", "merge", "export", "validate"])
def test_help_does_not_wait_for_the_engine(command: str) -> None:
    code = (
        f"import sys; from moedd import cli; sys.argv = ['moedd', {command!r}, '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    made_by = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert made_by.returncode == 0, made_by.stderr
    assert "--json" in made_by.stdout


def test_imported_and_merged_sets_are_evaluated(tmp_path: Path, moedd_home: Path) -> None:
    """The whole way: two releases of digits, one of plain images, one of tiles, and both joined."""
    common = ("--space", "normalized", "--data", "digits")
    plain = digits_release(tmp_path / "plain", 0)
    tiles = digits_release(tmp_path / "tiles", 1, tiles=True)
    told = cli("import", plain, "--method", "dm", *common)
    assert told.code == 0, told.err
    told = cli("import", tiles, "--method", "idm", "--decode", "2", *common)
    assert told.code == 0, told.err
    told = cli("merge", "digits-dm-2x1", "digits-idm-2x1")
    assert told.code == 0, told.err
    sizes = {"digits-dm-2x1": 20, "digits-idm-2x1": 80, "digits-dm+idm-2x2": 100}
    for name, images in sizes.items():
        told = cli("evaluate", name, "--epochs", "60", "--repeats", "1", "--width", "16")
        assert told.code == 0, told.err
        assert "the very data that the set was made from are not known" in told.err
        folder = moedd_home / "sets" / name
        records = read_records(read_manifest(folder), folder)
        assert {record.n_train for record in records} == {images}
        fuses = ["none", "mixup"] if name.endswith("x2") else ["none"]
        assert [record.fuse for record in records] == fuses
        # Two real digits a class: three times better than a guess, if labels fit the images.
        assert max(record.accuracy for record in records) > 0.3, name
