"""docs/tables.md: its commands are accepted as they stand there, its options and rows exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from runfactories import cli
from tablefactories import cifar_facts

from moedd.papertables import command
from moedd.papertables.asked import Asked, data_paths
from moedd.papertables.cells import SetCell
from moedd.papertables.plan import plan_cells
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
def test_its_commands_are_plans_that_can_be_made(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the data (DIR), whose shapes are known."""
    given: list[Asked] = []
    for runs in ("run_plan", "run_tables"):
        monkeypatch.setattr(command, runs, lambda asked, *more: given.append(asked))
    told = cli(*words)
    assert told.code == 0, told.err
    (asked,) = given
    options = asked.options()
    (name,) = data_paths(asked.on, asked.data, options.tables)
    shape = (3, *asked.size) if asked.size else (3, 32, 32)
    planned = plan_cells(options, [cifar_facts(data=name, shape=shape)])
    assert {item.cell.evaluation.epochs for item in planned} <= {300, 1000}
    sets = [item.cell.on for item in planned if isinstance(item.cell.on, SetCell)]
    assert {(on.ipc, on.experts) for on in sets} & {(5, 2), (10, 2)}


def test_the_counts_of_its_runs_are_those_of_the_plan() -> None:
    """Sets and networks of the first run, Table 3: one set, 3 ways x (5 + 3 + 2 + 3) networks."""
    assert "| 1 Table 3, IDC | 1 | 39 |" in PAGE.read_text()
    (words,) = [line for line in commands() if "idc=0.002,idm=0.018,mtt=0.008" in line][:1]
    value = dict(pairwise(words))
    options = Asked(
        table=value["--table"], only=value["--only"], rows=value["--rows"],
        seeds=int(value["--seeds"]), repeats=value["--repeats"], schedule=value["--schedule"],
    ).options()  # fmt: skip
    planned = plan_cells(options, [cifar_facts()])
    assert (len({item.cell.on for item in planned}), len(planned)) == (1, 39)


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
