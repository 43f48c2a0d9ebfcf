"""Initial images of the experts: whole real images, or mosaics of small ones."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moedd.parts import PartData
from moedd.streams import Streams

Order = Literal["row-major", "column-major"]
Shrink = Literal["nearest", "bilinear"]


def cell_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """(height, width) of a mosaic's cells: the sides over the factor, rounded up."""
    return -(-size[0] // factor), -(-size[1] // factor)


def mosaics(cells: list[Tensor], size: tuple[int, int], factor: int, order: Order) -> Tensor:
    """Lay f*f lists of cells out as stored images: the inverse of the decode step's cutting.

    `cells[k]` is (n, C, h, w) with (h, w) = `cell_size(size, factor)`; k counts cells along rows
    (`row-major`) or down columns (`column-major`). Sides that the factor does not divide lose the
    rows and columns that the decode step pads again. Returns (n, C, H, W).
    """
    grid = [cells[k * factor : (k + 1) * factor] for k in range(factor)]
    along, across = (3, 2) if order == "row-major" else (2, 3)
    lines = [torch.cat(line, dim=along) for line in grid]
    return torch.cat(lines, dim=across)[:, :, : size[0], : size[1]].contiguous()


def shrink(images: Tensor, factor: int, how: Shrink) -> Tensor:
    """Real images (n, C, H, W) at the size of a mosaic's cells.

    `nearest` at an exact factor keeps every f-th pixel (IDC); `bilinear` at factor 2 equals 2x2
    average pooling (IDM); both as in the published code.
    """
    height, width = cell_size((images.shape[2], images.shape[3]), factor)
    if how == "nearest":
        return F.interpolate(images, size=(height, width), mode="nearest")
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)


def real_images(part: PartData, ipc: int, streams: Streams) -> Tensor:
    """`ipc` real images of each class in normalised space, class-major.

    Drawn without replacement; a class with fewer is gone through again.
    """
    chosen = []
    for c, rows in enumerate(part.rows):
        order = torch.randperm(len(rows), generator=streams.generator(c))
        chosen.append(rows[order[torch.arange(ipc) % len(rows)]])
    return part.normalized(torch.cat(chosen))
