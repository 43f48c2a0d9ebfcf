"""Which part of a release is meant, where it holds more than one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moedd_loaders.errors import UsageError

__all__ = ["BY_CLASS", "Choice", "only"]

BY_CLASS = "by-class"
"""Instead of a file of labels: equal numbers of images per class, in the order of the classes."""


@dataclass(frozen=True)
class Choice:
    """Options that decide what is read.

    Attributes:
        experiment: number of the set within a file of several (DC's result files).
        labels: the file of labels, or `BY_CLASS`; by default the one beside the images.
        count: number of classes, where it was told.
    """

    experiment: int | None = None
    labels: str | None = None
    count: int | None = None


def only(folder: Path, found: Sequence[Path]) -> Path:
    """The one candidate, or the error that lists all of them."""
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found[:8]) + (", ..." if len(found) > 8 else "")
    raise UsageError(
        f"{folder} holds {len(found)} released sets ({names}): give the path of the one that is "
        "meant"
    )
