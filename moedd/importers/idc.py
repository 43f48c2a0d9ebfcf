"""`data.pt`: IDC's [images, labels], in unit space and not clipped, images as stored (tiles).

Nothing in the file says the factor of the tiles, nor the pixel space (IDC notes, sections 1, 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from moedd.importers.labels import label_tensor
from moedd.importers.released import Released, image_tensor, source_files

__all__ = ["is_idc", "read_idc"]


def is_idc(found: Any) -> bool:
    """Whether a loaded file has this form."""
    return (
        isinstance(found, list)
        and len(found) == 2
        and all(isinstance(part, Tensor) for part in found)
    )


def read_idc(path: Path, found: list[Tensor]) -> Released:
    """The set of one `data.pt`. Raises DataError: no images and labels where they should be."""
    images, notes = image_tensor(path, found[0])
    labels, more = label_tensor(path, found[1], len(images))
    return Released(
        format="idc",
        images=images,
        labels=labels,
        files=source_files([path]),
        methods=("idc", "idc_i"),
        hints={
            "method": "IDC stores tiles, IDC-I plain images",
            "space": "IDC stores unit space",
            "decode": "IDC's tiles are counted along rows, 2x2 or, on ImageNet, 3x3",
        },
        notes=tuple(notes + more),
    )
