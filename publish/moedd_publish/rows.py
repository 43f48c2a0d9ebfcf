"""The rows of a set as its containers see them: one list of rows and their PNG views."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from moedd_loaders.errors import DataError

__all__ = ["Rows", "encode_png"]


@dataclass(frozen=True)
class Rows:
    """Rows of one expert's shard, in the order of the set.

    Attributes:
        ids: row ids. labels, ks: class number and place within (expert, class) of each row.
        expert, method: the expert they belong to.
        images: (n, C, H, W) float32 in unit space, not clipped.
        views: PNG bytes of each row's clipped and rounded image.
    """

    ids: list[str]
    labels: list[int]
    ks: list[int]
    expert: int
    method: str
    images: Tensor
    views: list[bytes]


def encode_png(pixels: Tensor) -> bytes:
    """PNG bytes of one (C, H, W) uint8 image, grey for one channel; equal for equal pixels."""
    if pixels.shape[0] not in (1, 3):
        raise DataError(f"images have {pixels.shape[0]} channels, expected 1 or 3")
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()
