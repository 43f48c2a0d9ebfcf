"""`moedd show` and `moedd experts`: everything a person wants to know of a set, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import COLUMN_TILES, make_rows, make_set, make_source
from runfactories import cli, tiny_run

from moedd.experts import method_names
from moedd.show import _verdict, describe_experts
from moedd_loaders.manifest import NoDecode, Provenance, Shuffled, read_manifest
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


def test_the_shuffled_baseline_and_the_split_are_told_in_words(own_home: Path) -> None:
    d = read_manifest(own_home / "sets" / "pair").diversity
    assert d is not None
    s = d.shuffled
    assert s is not None
    out = cli("show", "pair").out
    for part in (
        "1 the same, 0 independent",
        f"{d.rows} images of each; features before the classifier",
        f"sharing the same classes explains {d.between:.3f};",
        f"as they are stored, adds {d.within:.3f}",
        f"unbiased {d.unbiased:.3f}; rows paired at random: {s.unbiased:.3f} ± "
        f"{s.unbiased_std:.3f} ({s.orders} times)",
        f"small-sample floor; rows paired at random: {s.biased:.3f} ± {s.biased_std:.3f}",
        f"CKA {d.cka:.3f}; rows paired at random: {s.cka:.3f} ± {s.cka_std:.3f}",
    ):
        assert part in out, part
    assert (d.rows, s.orders) == (40, 64)


@pytest.mark.parametrize(
    ("unbiased", "words"),
    [
        (0.30, "so they are more alike than chance, by 10 standard deviations"),
        (-0.20, "so they are more unlike than chance, by 10 standard deviations"),
        (0.08, "so they cannot be told from independent experts"),
    ],
)
def test_the_verdict_compares_with_the_baseline(unbiased: float, words: str) -> None:
    shuffled = {"biased": 0.7, "unbiased": 0.05, "cka": 0.3, "orders": 64}
    shuffled |= {f"{key}_std": 0.025 for key in ("biased", "unbiased", "cka")}
    assert _verdict(unbiased, Shuffled.model_validate(shuffled)).endswith(words)


def test_each_pair_of_three_experts_has_a_line(home: Path) -> None:
    manifest = tiny_run(home, "digits-idm_plain-1x3", called="three")
    d = manifest.diversity
    assert d is not None
    assert [pair.experts for pair in d.pairs] == [(0, 1), (0, 2), (1, 2)]
    out = cli("show", "three").out
    assert "mean over 3 pairs of experts" in out
    for pair in d.pairs:
        line = next(
            row for row in out.splitlines() if f"{pair.experts[0]}, {pair.experts[1]} " in row
        )
        assert pair.shuffled is not None
        for value in (pair.unbiased, pair.shuffled.unbiased, pair.biased, pair.floor, pair.cka):
            assert f"{value:.3f}" in line


def test_a_set_of_an_earlier_version_shows_what_it_has(tmp_path: Path) -> None:
    make_set(tmp_path / "toy")
    out = cli("show", tmp_path / "toy").out
    for line in (
        "  unbiased 0.100\n",
        "  biased 0.800, of which 0.700 is small-sample floor\n",
        "  linear CKA 0.300\n",
    ):
        assert line in out
    for later in ("paired at random", "sharing the same", "images of each"):
        assert later not in out
    make_set(tmp_path / "unknown", diversity=None)
    assert "not measured for this set" in cli("show", tmp_path / "unknown").out


def test_what_an_expert_had_to_do_without_is_told(own_home: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "toy", provenance=Provenance(notes=["one class was small"]))
    assert "note: one class was small" in cli("show", tmp_path / "toy").out


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
