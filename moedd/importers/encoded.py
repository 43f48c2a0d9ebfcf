"""Encoded images (PNG, JPEG) to 8-bit tensors, for the formats that store pictures."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from moedd.imageread import RULES
from moedd.imagescan import Item, ScanProgress, scan
from moedd_loaders.errors import DataError

__all__ = ["read_images"]


def read_images(items: Iterable[Item], count: int, where: str) -> tuple[Tensor, Tensor, list[str]]:
    """(N, C, H, W) uint8, their labels (N,) int64, and what was converted.

    Raises:
        DataError: an image that cannot be read, or images of several sizes.
    """
    with ScanProgress(count, f"Reading {where}") as progress:
        found = scan(items, count, channels=None, convert=False, size=None, progress=progress)
    if found.bad:
        listed = ", ".join(f"{bad.where} ({bad.reason})" for bad in found.bad[:5])
        more = f" and {len(found.bad) - 5} more" if len(found.bad) > 5 else ""
        raise DataError(
            f"{len(found.bad)} of {count} images of {where} cannot be read: {listed}{more}; get "
            "the release again"
        )
    if found.mixed_size is not None:
        first, have, other, differs = found.mixed_size
        raise DataError(
            f"the images of {where} differ in size ('{first}' is {have[0]}x{have[1]}, '{other}' "
            f"{differs[0]}x{differs[1]}, height x width), expected one size in a set"
        )
    if not len(found.labels):
        raise DataError(f"{where} has no image")
    notes = [f"{n} images: {RULES[rule]}" for rule, n in sorted(found.rules.items())]
    return found.images[:], found.labels, notes
