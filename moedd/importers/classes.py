"""Which class number is which class: from the data's table, a list, folders, or the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moedd.datatable import DATA
from moedd.importers.answers import Answers
from moedd.importers.released import Released
from moedd_loaders.errors import DataError, UsageError

__all__ = ["Named", "class_file", "name_classes", "told_classes"]


@dataclass(frozen=True)
class Named:
    """Class names in label order, by which rule, and the new number of each old one."""

    classes: tuple[str, ...]
    rule: str
    index: Tensor | None = None

    def labels(self, labels: Tensor) -> Tensor:
        """Labels in this order: (N,) numbers, or columns of (N, K) rows moved."""
        if self.index is None:
            return labels
        if labels.dim() == 1:
            return self.index[labels]
        moved = labels.new_zeros(len(labels), len(self.classes))
        moved[:, self.index] = labels
        return moved


def told_classes(said: Answers) -> tuple[tuple[str, ...], str] | None:
    """Names that the person gave, by list or by data set, and the rule in words.

    Raises:
        UsageError: an empty list, a name twice, or a list and data set of different lengths.
    """
    spec = DATA.get(said.data or "")
    if spec is None and said.data is not None and said.data.lower() in DATA:
        raise UsageError(f"--data {said.data} given, did you mean {said.data.lower()}?")
    if said.classes is None:
        return None if spec is None else (spec.classes, f"as in moedd's table for {spec.name}")
    file = class_file(said.classes)
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"--classes {file} is not text, expected a name a line") from None
    else:
        lines = said.classes.split(",")
    names = tuple(line.strip() for line in lines if line.strip())
    twice = next((name for name in names if names.count(name) > 1), None)
    if len(names) < 2 or twice is not None:
        what = f"{twice!r} twice" if twice else f"{len(names)} name{'s' * (len(names) != 1)}"
        raise UsageError(
            f"--classes {said.classes!r} gives {what}, expected a file with a name a line or names "
            "with commas between, in label order"
        )
    if spec is not None and len(names) != len(spec.classes):
        raise UsageError(
            f"--classes gives {len(names)} names and {spec.name} has {len(spec.classes)} classes: "
            "leave --data out, or give its classes"
        )
    return names, "as told with --classes"


def class_file(text: str) -> Path | None:
    """The file that an answer names; None where it is a list, which may be too long for a path."""
    try:
        return path if (path := Path(text).expanduser()).is_file() else None
    except OSError:
        return None


def name_classes(released: Released, told: tuple[tuple[str, ...], str] | None) -> Named | None:
    """Names for the labels of a release, in which order; None where nobody says.

    Raises:
        DataError: names of the files that are not among those told, or too few names.
    """
    own = released.folders or released.classes
    if told is None:
        if own is None:
            return None
        rule = released.class_rule or "folder names in plain string order"
        return _checked(Named(own, rule), released)
    names, rule = told
    if own is None:
        return _checked(Named(names, rule), released)
    _checked(Named(own, rule), released)
    missing = [name for name in own if name not in names]
    if missing:
        raise DataError(
            f"the files name the classes {_few(own)} and you {_few(names)}: {missing[0]!r} is not "
            "among yours, so the order would be a guess; give --classes with the files' own names"
        )
    index = torch.tensor([names.index(name) for name in own])
    return Named(names, f"{rule}; files matched by name", index)


def _checked(named: Named, released: Released) -> Named:
    labels = released.labels
    count = labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1
    n = len(named.classes)
    if count > n or (labels.dim() == 2 and count != n):
        raise DataError(
            f"the labels are of {count} classes and {n} are named ({_few(named.classes)}): give "
            "the --classes or --data that the set was made of"
        )
    return named


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
