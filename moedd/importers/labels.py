"""Labels of released sets: class numbers, one-hot rows, probabilities, floats of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moedd_loaders.errors import DataError

__all__ = ["SOFT_KINDS", "label_tensor", "soft_kind", "soft_rows"]

SOFT_KINDS = ("probabilities", "logits", "argmax")
"""How float labels can be meant; "argmax" keeps only which number of a row is largest."""
_EXACT = 1e-4


def label_tensor(path: Path, found: Any, images: int) -> tuple[Tensor, list[str]]:
    """(N,) int64 class numbers, or (N, K) float32; and what was converted.

    Rows with one number raised by 1 above all equal others (one-hot, shifted or not, as KIP
    writes them) are class numbers.

    Raises:
        DataError: not one label per image, negative or fractional class numbers, NaN.
    """
    if isinstance(found, np.ndarray) and found.dtype.kind in "fiub":
        found = torch.from_numpy(np.ascontiguousarray(found, found.dtype.newbyteorder("=")))
    if isinstance(found, list) and found and all(type(value) is int for value in found):
        found = torch.tensor(found)
    if not isinstance(found, Tensor) or found.dim() not in (1, 2) or len(found) != images:
        shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        raise DataError(
            f"{path} holds a {type(found).__name__}{shape} where the labels of {images} images "
            f"should be, expected ({images},) class numbers or ({images}, classes) floats"
        )
    if not bool(torch.isfinite(found).all()):
        raise DataError(f"{path} holds NaN or infinity among its labels")
    if found.dim() == 2:
        return _rows(path, found)
    numbers = found.to(torch.int64)
    if not torch.equal(numbers.to(found.dtype), found) or int(numbers.min()) < 0:
        raise DataError(f"{path} holds labels that are not class numbers 0, 1, 2, ...")
    if found.dtype == torch.int64:
        return numbers, []
    return numbers, [f"{str(found.dtype).removeprefix('torch.')} labels converted to int64"]


def _rows(path: Path, found: Tensor) -> tuple[Tensor, list[str]]:
    if found.shape[1] < 2:
        raise DataError(f"{path} holds labels of shape {tuple(found.shape)}, expected 2 classes up")
    rows = found.float()
    best = rows.argmax(1)
    rest = rows.scatter(1, best[:, None], torch.inf).sort(1).values[:, :-1]
    raised = rows.amax(1) - rest.amax(1)
    flat = (rest.amax(1) - rest.amin(1)) <= 1e-6
    if bool((flat & ((raised - 1).abs() <= 1e-5)).all()):
        return best, ["one-hot label rows (up to a shift) converted to class numbers"]
    return rows.contiguous(), []


def soft_kind(rows: Tensor) -> str | None:
    """ "probabilities" where every row (K,) is a distribution; None where the kind must be told."""
    sums = (rows.double().sum(1) - 1).abs()
    return "probabilities" if bool((rows >= 0).all() and (sums <= _EXACT).all()) else None


def soft_rows(rows: Tensor, kind: str) -> Tensor | None:
    """Label probabilities float32 (N, K) of rows of a kind; None for "argmax"."""
    if kind == "argmax":
        return None
    return rows.double().softmax(1).float() if kind == "logits" else rows.float()
