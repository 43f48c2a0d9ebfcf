"""docs/tables.md: its commands are accepted as they stand there, its options and rows exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from runfactories import cli

from moedd.papertables.rows import GROUPS
from moedd.protocols import PROTOCOLS, own_epochs, protocol_recipe

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def commands() -> list[list[str]]:
    """The `moedd tables` commands of the page, as words."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:2] == ["moedd", "tables"]]


@pytest.mark.parametrize("words", [line for line in commands() if "--report" not in line])
def test_its_commands_are_plans_that_can_be_made(words: list[str], moedd_home: Path) -> None:
    """Without the data (DIR): CIFAR-10's shapes are known."""
    words = [word for word in words if word not in ("--data", "DIR", "--plan")]
    told = cli(*words, "--plan")
    assert told.code == 0, told.err
    assert "cifar10-idc_i-5x2" in told.out


def test_every_option_it_names_exists() -> None:
    text = PAGE.read_text()
    known = cli("tables", "--help").out + cli("evaluate", "--help").out
    shown = set(re.findall(r"--[a-z][a-z-]+", known))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named <= shown, named - shown


def test_its_rows_and_recipes_are_those_of_the_code() -> None:
    text = PAGE.read_text()
    assert re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE) == list(GROUPS)
    header = next(line for line in text.splitlines() if "`common` (DC" in line)
    assert re.findall(r"`([a-z]+)`", header) == list(PROTOCOLS)
    passes = next(line for line in text.splitlines() if line.startswith("| epochs |"))
    numbers = [int(n) for n in re.findall(r"\d+", passes)]
    assert numbers == [protocol_recipe(name).passes for name in PROTOCOLS]
    assert own_epochs("rded") == 300
