"""The numbers printed in Tables 1 to 4 of the mixture paper (`paper.csv`), in percent."""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_DATA = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
_NETWORKS = {"ConvNet-3": "convnet3", "VGG11": "vgg11", "ResNet18": "resnet18"}
NETWORKS = ("convnet3", "vgg11", "resnet18", "alexnet")
"""The networks of the paper's tables, in its order."""


class Printed(NamedTuple):
    """Which line of a table: `method` and `variant` as the paper names them.

    `ipc` and `experts` are 0 for the full data set.
    """

    table: int
    method: str
    ipc: int
    experts: int
    variant: str = ""


@cache
def _numbers() -> dict[tuple[Printed, str, str], float]:
    found = {}
    with (files(__package__) / "paper.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            network = _NETWORKS.get(row["network"], row["network"].lower())
            line = Printed(
                int(row["table"]), row["method"], int(row["ipc"] or 0), int(row["experts"] or 0),
                row["variant"],
            )  # fmt: skip
            found[line, _DATA[row["dataset"]], network] = float(row["accuracy_percent"])
    return found


def printed(line: Printed | None, data: str, network: str) -> float | None:
    """The paper's accuracy in percent; None where it prints none."""
    return None if line is None else _numbers().get((line, data, network))


def data_sets(table: int) -> list[str]:
    """The data sets that a table of the paper covers, in its order."""
    names = [data for line, data, _ in _numbers() if line.table == table]
    return list(dict.fromkeys(names))


def printed_lines() -> list[Printed]:
    """All lines of all tables."""
    return list(dict.fromkeys(line for line, _, _ in _numbers()))
