"""What a batch of images, labels and expert ids must look like."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from moedd_loaders.errors import UsageError

__all__ = ["HasShape", "check_batch"]


class HasShape(Protocol):
    """A tensor, or what stands for one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...


def check_batch(
    images: HasShape, labels: Tensor, experts: Tensor, num_classes: int | None, what: str
) -> int:
    """Refuse a batch, pool or data set that cannot be meant; returns the number of classes.

    Args:
        images: should be (B, C, H, W) float, B >= 1; only shape and dtype are read.
        labels: should be (B,) integers in [0, num_classes) or (B, num_classes) floats.
        experts: should be (B,) integers.
        num_classes: None if only the labels know.
        what: what to call it in the message.

    Raises:
        UsageError: it is not so.
    """
    if not images.dtype.is_floating_point:
        raise UsageError(
            f"the {what} holds {images.dtype} images, expected floats in [0, 1]: divide by 255"
        )
    count = images.shape[0] if images.shape else 0
    if len(images.shape) != 4 or count == 0:
        raise UsageError(
            f"the {what}'s images have shape {tuple(images.shape)}, expected (B, C, H, W), B >= 1"
        )
    if labels.dim() not in (1, 2) or len(labels) != count:
        raise UsageError(
            f"the {what}'s labels have shape {tuple(labels.shape)} for {count} images, "
            "expected (B,) integers or (B, classes) floats"
        )
    if tuple(experts.shape) != (count,) or experts.is_floating_point():
        raise UsageError(
            f"the {what}'s expert ids have shape {tuple(experts.shape)} and dtype {experts.dtype}, "
            f"expected ({count},) integers"
        )
    if labels.dim() == 2:
        if not labels.is_floating_point() or num_classes not in (None, labels.shape[1]):
            raise UsageError(
                f"the {what}'s labels are {labels.dtype} of shape {tuple(labels.shape)}, expected "
                f"floats of shape ({count}, {num_classes or 'classes'})"
            )
        return labels.shape[1]
    if labels.is_floating_point() or num_classes is None:
        raise UsageError(
            f"the {what}'s labels are one {labels.dtype} per image and num_classes is "
            f"{num_classes}, expected integers and a known num_classes: "
            "pass ExpertMix(num_classes=...)"
        )
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise UsageError(
            f"the {what} has labels from {low} to {high}, expected 0 to {num_classes - 1}: "
            "is num_classes right?"
        )
    return num_classes
