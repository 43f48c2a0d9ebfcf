"""`moedd show` and `moedd experts`: everything a person wants to know of a set, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import COLUMN_TILES, make_rows, make_set, make_source
from runfactories import cli

from moedd.experts import method_names
from moedd.show import describe_experts
from moedd_loaders.manifest import NoDecode, read_manifest
from moedd_loaders.records import Record, append_records


@pytest.fixture
def own_home(finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the finished runs, read only."""
    monkeypatch.setenv("MOEDD_HOME", str(finished_home))
    return finished_home


def record(set_hash: str, accuracy: float, **fields: object) -> Record:
    plain = {
        "data": "toy", "set_name": "toy", "methods": ["idm"], "ipc": 2, "experts": 2,
        "variant": "distilled", "fuse": "none", "network": "convnet3", "protocol": "common",
        "epochs": 1000, "seed": 0, "accuracy": accuracy, "chance": 1 / 3, "set_hash": set_hash,
        "created": "2026-12-01T00:00:00Z", "n_train": 30, "test_images": 100,
    }  # fmt: skip
    return Record.model_validate({**plain, **fields})


def test_show_tells_it_all(own_home: Path) -> None:
    told = cli("show", "pair")
    assert told.code == 0
    folder = own_home / "sets" / "pair"
    manifest = read_manifest(folder)
    diversity = manifest.diversity
    assert diversity is not None
    for part in (
        "pair 1.0.0",
        f"(your set {folder})",
        "source: digits",
        "10 classes, 1x8x8",
        "budget: 20 stored images, 5,120 bytes of pixels, 160 bytes of labels",
        "labels: hard",
        f"unbiased {diversity.unbiased:.3f}",
        f"biased {diversity.biased:.3f}",
        f"{diversity.floor:.3f} is small-sample floor",
        f"CKA {diversity.cka:.3f}",
        f"preview: {folder / 'assets' / 'preview.png'}",
        "stratified 1/2",
        "stratified 2/2",
        "tiles 2x2",
        "normalized",
        "4 (1)",
        "no records yet: moedd evaluate pair",
    ):
        assert part in told.out, part
    assert told.out.count("idm") >= 2
    assert (folder / "assets" / "preview.png").is_file()


def test_a_single_expert_has_no_line_on_diversity(own_home: Path) -> None:
    assert "diversity" not in cli("show", "single").out


def test_show_says_which_set_it_used(own_home: Path, tmp_path: Path) -> None:
    assert "(your set " in cli("show", "pair").out
    folder = own_home / "sets" / "pair"
    assert f"(folder {folder})" in cli("show", folder).out
    make_set(tmp_path / "[odd] name", name="odd")
    told = cli("show", tmp_path / "[odd] name")
    assert told.code == 0
    assert f"moedd evaluate {tmp_path / '[odd] name'}" in told.out


def test_unequal_classes_and_mixed_rules(tmp_path: Path) -> None:
    source = make_source(3)
    experts = [make_rows(source, [1, 2, 3], COLUMN_TILES), make_rows(source, [2, 2, 2], NoDecode())]
    make_set(tmp_path / "toy", experts=experts)
    out = cli("show", tmp_path / "toy").out
    for part in ("1-3", "4-12", "tiles 2x2", "none"):
        assert part in out


def test_records_become_a_table(tmp_path: Path, moedd_home: Path) -> None:
    """Records beside the set and in `$MOEDD_HOME/records` are merged."""
    manifest = make_set(tmp_path / "toy")
    digest = manifest.training_sha256
    for repeat, accuracy in enumerate((0.60, 0.64)):
        made = record(digest, accuracy, config={"repeat": repeat})
        append_records(tmp_path / "toy", [made], digest)
    random = record(digest, 0.333, variant="random", config={"draw": 0})
    append_records(None, [random], digest)
    append_records(None, [record("of another set", 0.99)], digest)
    out = cli("show", tmp_path / "toy").out
    assert "3 records" in out
    # Mean and standard deviation over networks (n - 1): 62 and 2.83.
    assert "62.0 ± 2.8" in out
    assert "33.3 (at chance)" in out
    assert "99" not in out
    assert "no records yet" not in out


def test_show_json_is_the_manifest(own_home: Path) -> None:
    told = cli("show", "pair", "--json")
    assert told.code == 0
    assert told.out == (own_home / "sets" / "pair" / "moedd.json").read_text()
    assert json.loads(told.out)["schema"] == "moedd/1"


def test_experts_lists_the_methods() -> None:
    told = cli("experts")
    assert told.code == 0
    for name in ("idm", "idm_plain", "idc", "idc_i"):
        assert name in method_names()
        assert name in told.out


def test_experts_json_has_settings_with_help() -> None:
    rows = json.loads(cli("experts", "--json").out)
    assert rows == describe_experts()
    assert [row["name"] for row in rows] == method_names()
    idm = next(row for row in rows if row["name"] == "idm")
    assert idm["space"] == "normalized"
    assert idm["settings"]["lr"] == {"default": 0.2, "help": "image step size, per class step"}
    for row in rows:
        assert row["summary"]
        assert "ipc" not in row["settings"]
        assert all(setting["help"] for setting in row["settings"].values())


def test_one_method_shows_the_keys_that_set_takes() -> None:
    told = cli("experts", "idc")
    assert told.code == 0
    assert "idc.lr_img" in told.out
    assert "0.005" in told.out
    assert json.loads(cli("experts", "idc", "--json").out) == describe_experts("idc")


def test_an_unknown_method_lists_the_known() -> None:
    told = cli("experts", "idmm")
    assert told.code == 2
    assert "unknown method 'idmm'; known: " in told.sentence
    assert "did you mean 'idm'" in told.sentence
