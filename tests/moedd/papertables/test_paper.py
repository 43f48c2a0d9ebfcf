"""The paper's numbers, and that every line of them is a row that can be run."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from moedd.papertables.paper import NETWORKS, Printed, data_sets, printed, printed_lines
from moedd.papertables.rows import BUDGETS, TABLES, table_rows


def test_all_numbers_are_read() -> None:
    with (files("moedd.papertables") / "paper.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    found = [
        printed(line, data, network)
        for line in printed_lines()
        for data in ("cifar10", "cifar100")
        for network in NETWORKS
    ]
    given = sorted(float(row["accuracy_percent"]) for row in rows)
    assert sorted(value for value in found if value is not None) == given
    assert len(rows) == 136


@pytest.mark.parametrize(
    ("line", "data", "network", "value"),
    [
        (Printed(1, "IDC", 5, 2), "cifar10", "convnet3", 53.32),
        (Printed(1, "MTT", 20, 1), "cifar100", "alexnet", 27.67),
        (Printed(1, "full dataset", 0, 0), "cifar100", "convnet3", 56.20),
        (Printed(2, "IDM+RDED", 10, 2, "hybrid"), "cifar10", "resnet18", 46.79),
        (Printed(3, "IDC", 5, 2, "vanilla mixup"), "cifar10", "vgg11", 51.34),
        (Printed(4, "MTT", 10, 2, "+dcor+mixup"), "cifar10", "convnet3", 60.14),
        (Printed(4, "MTT", 10, 2, "+dcor"), "cifar10", "vgg11", None),
        (Printed(1, "IDC", 5, 2), "digits", "convnet3", None),
        (None, "cifar10", "convnet3", None),
    ],
)
def test_numbers_stand_where_the_paper_has_them(
    line: Printed | None, data: str, network: str, value: float | None
) -> None:
    assert printed(line, data, network) == value


def test_every_line_of_the_paper_is_one_row() -> None:
    rows = [
        row.paper
        for table in TABLES
        for budget in BUDGETS[table]
        for row in table_rows(table, budget)
        if row.paper is not None
    ]
    full = Printed(1, "full dataset", 0, 0)
    assert rows.count(full) == 2  # with each budget, for the cell is the same
    assert sorted(set(rows)) == sorted(printed_lines())
    assert len(rows) - 1 == len(set(rows))


def test_data_sets_of_the_tables() -> None:
    assert data_sets(1) == ["cifar10", "cifar100"]
    assert [data_sets(table) for table in (2, 3, 4)] == [["cifar10"]] * 3
