"""The whitening matrix that a set carries for experts optimised in whitened (ZCA) space."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import Manifest

__all__ = ["check_whitening", "read_whitening"]


def check_whitening(folder: Path, manifest: Manifest) -> None:
    """Check every matrix that the manifest names: its shapes and that it is finite."""
    for name in sorted({entry.trained_in.matrix or "" for entry in manifest.experts} - {""}):
        read_whitening(folder / name, math.prod(manifest.shape))


def read_whitening(path: Path, values: int) -> tuple[Tensor, Tensor]:
    """Mean (values,) and matrix (values, values), float32, of a whitening `z = (x - mean) W`.

    Raises:
        InvalidSetError: the file is missing, damaged, of other shapes, or not finite.
    """
    expected = {"mean": [values], "matrix": [values, values]}
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            if found != expected:
                raise InvalidSetError(f"{path} holds {found}, expected {expected}")
            mean, matrix = file.get_tensor("mean"), file.get_tensor("matrix")
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InvalidSetError):
            raise
        raise InvalidSetError(f"{path} is damaged: {error}") from None
    for tensor in (mean, matrix):
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise InvalidSetError(f"{path} holds {tensor.dtype} or non-finite numbers")
    return mean, matrix
