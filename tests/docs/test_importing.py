"""docs/importing.md: its commands do what it says, its options exist."""

from __future__ import annotations

import re
from pathlib import Path

import releasefactories as made
import torch
import typer.main
from runfactories import cli

from moedd.cli import app
from moedd_loaders.manifest import read_manifest
from moedd_publish.export import LAYOUTS

TEXT = (Path(__file__).parents[2] / "docs" / "importing.md").read_text()


def test_every_option_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = {
        option
        for name in ("import", "merge", "export", "validate")
        for parameter in commands[name].params
        for option in parameter.opts
    }
    mentioned = set(re.findall(r"(--[a-z][a-z-]+)", TEXT))
    assert mentioned
    assert mentioned <= known
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .*\|$", TEXT.split("## Export")[1], re.M)) == set(
        LAYOUTS
    )


def test_the_commands_of_the_page(tmp_path: Path, moedd_home: Path) -> None:
    images, labels = made.pixels(100, (3, 32, 32)), made.by_class(10, 10)
    path = made.make_dc(tmp_path, [images], labels, ipc=10)
    assert path.name in TEXT
    told = cli("import", path)
    assert told.code == 2
    found = [line for line in TEXT.splitlines() if line.startswith("found: ")]
    assert told.out.splitlines()[0] == found[0]
    line = next(line for line in TEXT.splitlines() if line.startswith(f"moedd import {path.name} "))
    told = cli("import", path, *line.split()[3:])
    assert told.code == 0, told.err
    said = ("--method", "idc", "--space", "unit", "--decode", "2", "--data", "cifar10")
    idc = made.make_idc(tmp_path, torch.sigmoid(made.pixels(100, (3, 32, 32), seed=1)), labels)
    assert cli("import", idc, *said).code == 0
    merge = re.search(r"^moedd merge (\S+) (\S+) +# -> (\S+)$", TEXT, re.M)
    assert merge is not None
    assert cli("merge", merge[1], merge[2]).code == 0
    assert read_manifest(moedd_home / "sets" / merge[3]).budget.images == 200
