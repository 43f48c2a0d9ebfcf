"""The images that partners are drawn from."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from moedd_loaders.partners import Groups, Ints

__all__ = ["Pool", "hard_classes", "on_host"]


class Pool:
    """The images that partners are drawn from, with their grouping worked out once.

    Args:
        images: (R, C, H, W) float.
        labels: (R,) int64 or (R, classes) float.
        experts: (R,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor, experts: Tensor) -> None:
        self.images, self.labels, self.experts = images, labels, experts
        self._groups: dict[int, Groups] = {}

    def groups(self, num_classes: int) -> Groups:
        """Rows by expert and class, or by expert alone when `num_classes` is 0."""
        if num_classes not in self._groups:
            classes = hard_classes(self.labels) if num_classes else None
            self._groups[num_classes] = Groups(on_host(self.experts), classes, num_classes)
        return self._groups[num_classes]


def hard_classes(labels: Tensor) -> Ints:
    """(R,) int64 on the host: the labels, or the class of the maximum of soft labels."""
    return on_host(labels if labels.dim() == 1 else labels.argmax(1))


def on_host(values: Tensor) -> Ints:
    """The values as int64 on the host."""
    return values.detach().cpu().numpy().astype(np.int64, copy=False)
