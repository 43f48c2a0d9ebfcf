"""`images.pt`, `labels.pt`, `lr.pt`: what DD-Ranking's evaluators take, of any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moedd.importers.choice import Choice
from moedd.importers.pairs import read_labels, read_step_size
from moedd.importers.released import Released, image_tensor, source_files

__all__ = ["read_ddranking"]


def read_ddranking(path: Path, found: Any, choice: Choice) -> Released:
    """The set of one file of images and its companions.

    Raises:
        UsageError, DataError: as `pairs.read_labels`, `pairs.read_step_size`.
    """
    images, notes = image_tensor(path, found)
    labels, label_files, more = read_labels(path, choice, len(images))
    step_size, step_files = read_step_size(path)
    return Released(
        format="ddranking",
        images=images,
        labels=labels,
        files=source_files([path, *label_files, *step_files]),
        methods=("dc", "dsa", "dm", "mtt", "datm"),
        step_size=step_size,
        hints={"space": "DD-Ranking trains on the tensor as it is, so normalised for most methods"},
        notes=tuple(notes + more),
    )
