"""From stored images to training images: the decode rule of an expert, differentiable.

Factor-f methods store f x f small images as the cells of one stored image (IDC's multi-formation,
Kim et al. 2022, section 3.2; IDM's partitioning and expansion, Zhao et al. 2023, section 4.1).
Decoding cuts the cells and enlarges each to the full size. The engine optimises through this
function and the loader applies it, so both always see the same training images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import DecodeRule, TilesDecode

__all__ = ["decode", "decode_cells", "decode_factor", "decode_index", "decode_labels"]


def decode_factor(rule: DecodeRule) -> int:
    """Side of the tile grid: 1 without decoding, f for tiles; each row gives its square."""
    return rule.factor if isinstance(rule, TilesDecode) else 1


def decode(images: Tensor, rule: DecodeRule, fill: Sequence[float] | float = 0.0) -> Tensor:
    """Training images of stored images.

    Args:
        images: (n, C, H, W) float, in any linear space (unit or normalised).
        rule: the expert's decode rule.
        fill: value, or one per channel, of the padding at the right and at the bottom that makes
            each side a multiple of the factor: the source's mean in the space of `images` (0 in
            normalised space). Unused where the sides are multiples already.

    Returns:
        (n * f * f, C, H, W), cell-major: cell 0 of all images, then cell 1 of all images, ...;
        cells are counted along rows ("row-major") or along columns ("column-major"), each enlarged
        bilinearly (align_corners=False). Without decoding, the very same tensor.

    Raises:
        UsageError: a side shorter than the factor, or a fill of another number of channels.
    """
    f = decode_factor(rule)
    if f == 1:
        return images
    padded = _padded(images, f, fill)
    rows, columns = padded.shape[-2] // f, padded.shape[-1] // f
    cut = torch.cat(
        [
            padded[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            for i, j in (_place(cell, rule) for cell in range(f * f))
        ]
    )
    return _enlarged(cut, images)


def decode_cells(
    images: Tensor, cells: Sequence[int], rule: DecodeRule, fill: Sequence[float] | float = 0.0
) -> Tensor:
    """One training image of each stored image: (n, C, H, W), cell `cells[i]` of image i.

    The same pixels as `decode(images, rule, fill)[cells[i] * n + i]`, without the other cells.
    """
    f = decode_factor(rule)
    if f == 1:
        return images
    padded = _padded(images, f, fill)
    rows, columns = padded.shape[-2] // f, padded.shape[-1] // f
    cut = []
    for image, cell in zip(padded, cells, strict=True):
        i, j = _place(cell, rule)
        cut.append(image[:, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns])
    return _enlarged(torch.stack(cut), images)


def decode_index(n: int, rule: DecodeRule) -> Tensor:
    """(n * f * f,) int64: for each decoded row, the stored row that it comes from."""
    return torch.arange(n).repeat(decode_factor(rule) ** 2)


def decode_labels(labels: Tensor, rule: DecodeRule) -> Tensor:
    """Labels of the decoded rows: (n,) -> (n * f * f,), or (n, classes) -> (n * f * f, classes)."""
    return labels.repeat(decode_factor(rule) ** 2, *([1] * (labels.dim() - 1)))


def _place(cell: int, rule: DecodeRule) -> tuple[int, int]:
    """Row and column of a cell in the grid."""
    assert isinstance(rule, TilesDecode)
    major, minor = divmod(cell, rule.factor)
    return (major, minor) if rule.order == "row-major" else (minor, major)


def _enlarged(cut: Tensor, images: Tensor) -> Tensor:
    size = (images.shape[-2], images.shape[-1])
    return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)


def _padded(images: Tensor, f: int, fill: Sequence[float] | float) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) < f:
        raise UsageError(f"images of {height}x{width} cannot be cut into {f}x{f} tiles")
    return _pad(images, -height % f, -width % f, fill)


def _pad(images: Tensor, bottom: int, right: int, fill: Sequence[float] | float) -> Tensor:
    if not bottom and not right:
        return images
    n, channels, height, width = images.shape
    values = [float(fill)] if isinstance(fill, (int, float)) else [float(v) for v in fill]
    if len(values) not in (1, channels):
        raise UsageError(
            f"{len(values)} padding values for images of {channels} channels: give 1 or {channels}"
        )
    colour = torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    # Bars are concatenated, not written in place, so that any torch.func transform may see them.
    if right:
        images = torch.cat([images, colour.expand(n, channels, height, right)], dim=3)
    if bottom:
        images = torch.cat([images, colour.expand(n, channels, bottom, width + right)], dim=2)
    return images
