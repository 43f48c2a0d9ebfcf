"""`images_best.pt`, `labels_best.pt`, `lr_best.pt`: MTT, TESLA, FTD and DATM.

Images lie in the space the run worked in, normalised or whitened, and the whitening is nowhere
saved; `images_zca_*.pt` are, despite their name, mapped back to pixels. MTT and TESLA write no
step size; DATM's and FTD's `lr_*.pt` hold it; DATM's labels are logits (MTT notes, sections 6, 10).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moedd.importers.choice import Choice
from moedd.importers.pairs import NAME, read_labels, read_step_size
from moedd.importers.released import Released, image_tensor, source_files

__all__ = ["read_mtt"]


def read_mtt(path: Path, found: Any, choice: Choice) -> Released:
    """The set of one file of images and its companions.

    Raises:
        UsageError, DataError: as `pairs.read_labels`, `pairs.read_step_size`.
    """
    images, notes = image_tensor(path, found)
    labels, label_files, more = read_labels(path, choice, len(images))
    step_size, step_files = read_step_size(path)
    match = NAME.fullmatch(path.name)
    raw = bool(match and match["raw"])
    return Released(
        format="mtt",
        images=images,
        labels=labels,
        files=source_files([path, *label_files, *step_files]),
        methods=("mtt", "tesla", "ftd", "datm"),
        step_size=step_size,
        hints={
            "space": "files called images_zca_* are mapped back to unit space"
            if raw
            else "normalised, or whitened (ZCA) where the run used it",
            "labels": "DATM's labels are logits",
        },
        notes=tuple(notes + more),
    )
