"""The training rows of a set: decoded by their experts' rules, brought into the form asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moedd_loaders.adapt import Form
from moedd_loaders.decode import decode as training_images
from moedd_loaders.decode import decode_index
from moedd_loaders.manifest import NoDecode

if TYPE_CHECKING:
    from moedd_loaders.read import StoredSet
    from moedd_loaders.serving import ImageSource

__all__ = ["TrainingRows", "training_rows"]


class TrainingRows(NamedTuple):
    """Images (N, C, H, W) float32 in unit space, or a source of them; labels and experts (N,)
    int64; soft labels (N, classes) float32 or None."""

    images: Tensor | ImageSource
    labels: Tensor
    experts: Tensor
    soft_labels: Tensor | None


def training_rows(
    stored: StoredSet, experts: Sequence[int], decode: bool, form: Form
) -> TrainingRows:
    """All training rows of the chosen experts, in memory."""
    images, labels, ids, soft = [], [], [], []
    for entry in stored.manifest.experts:
        if entry.id not in experts:
            continue
        own = stored.experts == entry.id
        rule = entry.decode if decode else NoDecode()
        index = decode_index(int(own.sum()), rule)
        images.append(form(training_images(stored.images[own], rule, stored.manifest.source.mean)))
        labels.append(stored.labels[own][index])
        ids.append(torch.full((len(index),), entry.id))
        if stored.soft_labels is not None:
            soft.append(stored.soft_labels[own][index])
    return TrainingRows(
        torch.cat(images), torch.cat(labels), torch.cat(ids), torch.cat(soft) if soft else None
    )
