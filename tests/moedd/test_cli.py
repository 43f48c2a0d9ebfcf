"""The command line as a person uses it: what is printed, where things lie, how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runfactories import cli, payload, tiny_arguments, tree

from moedd.cli import DEFAULT_SET, parse_size
from moedd.tables import usage_lines
from moedd_loaders import load_distilled
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import read_manifest
from moedd_loaders.records import read_records
from moedd_loaders.validate import validate_set


def test_distil_evaluate_and_load(home: Path) -> None:
    """The whole path by one command, and the lines that it prints at its end."""
    arguments = [a for a in tiny_arguments("digits-idm-1x2") if a != "--no-evaluate"]
    told = cli(*arguments, "--set", "evaluation.width=4")
    assert told.code == 0, told.err
    folder = home / "sets" / "digits-idm-1x2"
    manifest = validate_set(folder)
    assert manifest.name == "digits-idm-1x2"
    assert "2 experts (idm, idm)" in told.err
    assert "1438 images of 1x8x8" in told.err
    for row in ("distilled", "mixup", "random real images", "all real images"):
        assert row in told.out
    records = read_records(manifest, folder)
    assert [(r.variant, r.fuse) for r in records] == [
        ("distilled", "mixup"),
        ("distilled", "none"),
        *[("random", "none")] * 3,
        ("full", "none"),
    ]
    assert len({r.config["draw"] for r in records if r.variant == "random"}) == 3
    assert {r.config["width"] for r in records} == {4}
    assert f"set:     {folder}" in told.out
    preview = re.search(r"preview: (.+)", told.out)
    assert preview is not None
    assert Path(preview[1]).is_file()
    lines = told.out.split("load it:\n")[1]
    assert lines.strip() == usage_lines("digits-idm-1x2", 2)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["images"].shape == (64, 1, 8, 8)
    assert found["labels"].shape == (64, 10)
    assert found["ds"].fuse == "mixup"


def test_the_lines_for_a_single_expert_do_not_fuse(home: Path) -> None:
    told = cli(*tiny_arguments("digits-idm-1x1"))
    assert told.code == 0, told.err
    assert "fuse" not in told.out.split("load it:\n")[1]
    assert "random real images" not in told.out
    assert not (home / "sets" / "digits-idm-1x1" / "benchmarks").exists()


def test_another_name(home: Path) -> None:
    told = cli(*tiny_arguments("digits-idm-1x1"), "--name", "mine_2+x.y")
    assert told.code == 0, told.err
    assert read_manifest(home / "sets" / "mine_2+x.y").name == "mine_2+x.y"
    assert load_distilled("mine_2+x.y").origin == "home"
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["mine_2+x.y"]


def test_the_profile_is_shown_kept_and_evaluated_apart(home: Path) -> None:
    exact = cli(*tiny_arguments("digits-idm-1x2"), "--name", "exact", "--profile", "float32")
    fast = cli(*tiny_arguments("digits-idm-1x2"), "--name", "fast", "--profile", "fast")
    for told, name in ((exact, "float32"), (fast, "fast")):
        assert told.code == 0, told.err
        assert f"profile {name} (" in told.err
    folders = [home / "sets" / name for name in ("exact", "fast")]
    manifests = [read_manifest(folder) for folder in folders]
    assert [m.provenance.profile for m in manifests] == ["float32", "fast"]
    recipe = json.loads((folders[1] / "recipe" / "config.json").read_text())
    assert recipe["profile"]["name"] == "fast"
    same = manifests[0].content_sha256 == manifests[1].content_sha256
    assert same == (recipe["profile"]["precision"] == "float32")
    common = ("evaluate", "exact", "--epochs", "1", "--repeats", "1", "--fuse", "none")
    for name in ("float32", "fast", "fast"):
        assert cli(*common, "--width", "4", "--profile", name).code == 0
    records = read_records(manifests[0], folders[0])
    assert sorted(record.config["profile"] for record in records) == ["fast", "float32"]
    assert "known: auto, fast, float32" in cli(*common, "--profile", "turbo").sentence


def test_no_compiler_is_one_line_of_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    told = cli(*tiny_arguments("digits-idm-1x1"))
    assert told.code == 0, told.err
    lines = [line for line in told.err.splitlines() if "compiler" in line]
    assert len(lines) == 1
    assert lines[0].startswith("moedd: warning: no C++ compiler")


def test_a_name_that_is_no_slug(moedd_home: Path) -> None:
    for name in ("Mine", "../up", "a b"):
        told = cli(*tiny_arguments("digits-idm-1x1"), "--name", name)
        assert told.code == 2
        assert f"--name {name!r} cannot name a set" in told.sentence
    assert not moedd_home.exists()


def test_sizes_and_channels_change_the_images(home: Path) -> None:
    told = cli(
        *tiny_arguments("digits-idm-1x1", "idm.steps=1"),
        *("--size", "10x12", "--channels", "3", "--name", "wide"),
    )
    assert told.code == 0, told.err
    assert read_manifest(home / "sets" / "wide").shape == (3, 10, 12)


@pytest.mark.parametrize(("text", "size"), [("64", 64), ("48x64", (48, 64)), ("9X8", (9, 8))])
def test_size_is_a_side_or_height_by_width(text: str, size: object) -> None:
    assert parse_size(text) == size
    assert parse_size(None) is None


@pytest.mark.parametrize("text", ["x", "3x", "x3", "3x4x5", "big", "-3", "3.5", "", "²"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a side"):
        parse_size(text)


def test_overwriting_makes_the_set_anew(home: Path) -> None:
    arguments = tiny_arguments("digits-idm-1x1", "idm.steps=1")
    assert cli(*arguments).code == 0
    folder = home / "sets" / "digits-idm-1x1"
    before = payload(folder)
    again = cli(*arguments, "--seed", "1", "--overwrite")
    assert again.code == 0, again.err
    assert payload(folder) != before
    assert read_manifest(folder).provenance.seed == 1


def test_print_config_writes_nothing(moedd_home: Path) -> None:
    told = cli("distill", "digits-idm+idc-3x2", "--print-config", "--set", "idm.lr=0.5")
    assert told.code == 0
    config = json.loads(told.out)
    assert config["methods"] == ["idm", "idc"]
    assert config["experts"][0]["lr"] == 0.5
    assert config["experts"][1]["lr_img"] == 0.02
    assert config["pool"]["networks"] == 3
    assert not moedd_home.exists()


def test_validate(finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(finished_home))
    told = cli("validate", "pair")
    digest = read_manifest(finished_home / "sets" / "pair").content_sha256
    assert told.code == 0
    assert "pair is valid (your set " in told.out
    assert digest[:12] in told.out


def test_a_miss_says_where_it_looked(finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(finished_home))
    before = tree(finished_home)
    for command in ("show", "validate", "evaluate"):
        told = cli(command, "pare")
        assert told.code == 2
        assert str(finished_home / "sets") in told.sentence
        assert "did you mean pair" in told.sentence
    assert tree(finished_home) == before


def test_help_answers_without_the_engine() -> None:
    """`moedd --help` and a bare `moedd` must not wait for torch."""
    code = (
        "import sys; from moedd import cli; sys.argv = ['moedd', 'distill', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert made.returncode == 0, made.stderr
    assert DEFAULT_SET in made.stdout
    for option in ("--resume", "--overwrite", "--max-hours", "--schedule", "--set", "--skip-bad"):
        assert option in made.stdout


@pytest.mark.parametrize("arguments", [("distil",), ("show",), ("distill", "--no-such-option")])
def test_wrong_commands_and_options_exit_with_2(arguments: tuple[str, ...]) -> None:
    told = cli(*arguments)
    assert told.code == 2
    assert "Traceback" not in told.err
