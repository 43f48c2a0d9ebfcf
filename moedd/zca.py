"""ZCA whitening: an optional pixel space of MTT, and its matrix, which travels with a set.

Fitted on all training images in unit space, without any other normalisation before or after: with
the covariance `U diag(s) U'` of the flattened images, `W = U diag((s + eps)^-1/2) U'`,
`z = (x - mean) W` and back `x = z W^-1 + mean` (MTT notes, section 6). At eps = 0.1 it is a soft
high-pass filter, not a full whitening, and exactly invertible.

Whitened values have a standard deviation of about 0.26 (CIFAR-10), so DSA's brightness, whose
range is not rescaled in the references either, weighs five times more than in normalised space.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moedd.checkpoint import load_checkpoint, save_checkpoint
from moedd.parts import PartData
from moedd_loaders.errors import InvalidSetError, UsageError
from moedd_loaders.manifest import Manifest
from moedd_loaders.read import check_file

EPS = 0.1
MOST_VALUES = 64 * 64 * 3
_BATCH = 1000


@dataclass(frozen=True, eq=False)
class Whitening:
    """Unit space to whitened space and back: `mean` (d,), `matrix` and `inverse` (d, d), float32,
    d = C*H*W; both matrices are symmetric. As read from a set it has no inverse: evaluation goes
    one way only."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor | None = None

    def to(self, device: str) -> "Whitening":
        """The same on `device`."""
        inverse = None if self.inverse is None else self.inverse.to(device)
        return Whitening(self.mean.to(device), self.matrix.to(device), inverse)

    def whiten(self, images: Tensor) -> Tensor:
        """Unit-space images (n, C, H, W), float, to whitened space."""
        flat = (images.flatten(1) - self.mean.to(images.dtype)) @ self.matrix.to(images.dtype)
        return flat.view_as(images)

    def unit(self, images: Tensor) -> Tensor:
        """Whitened images (n, C, H, W), float, back to unit space; differentiable, not clipped."""
        assert self.inverse is not None
        flat = images.flatten(1) @ self.inverse.to(images.dtype) + self.mean.to(images.dtype)
        return flat.view_as(images)

    def file(self) -> tuple[str, bytes]:
        """(path inside a set, bytes) of the matrix: mean and matrix; its name is its hash."""
        plain = {"mean": self.mean.cpu(), "matrix": self.matrix.cpu().contiguous()}
        data = save(plain, metadata={"format": "pt"})
        return f"tensors/zca-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data


def check_zca(shape: tuple[int, int, int]) -> None:
    """Raise UsageError where the matrix would be too large: more than 64x64 pixels in colour."""
    values = shape[0] * shape[1] * shape[2]
    if values > MOST_VALUES:
        raise UsageError(
            f"zca=true on images of {shape[0]}x{shape[1]}x{shape[2]} needs a matrix of {values} x "
            f"{values} numbers ({4 * values**2 / 1e9:.1f} GB); expected at most 3x64x64: leave zca "
            "off, or make the images smaller with --size"
        )


def fit_zca(part: PartData, eps: float = EPS) -> Whitening:
    """The whitening of all images of a part; a function of the set of images, not of their order
    (up to rounding)."""
    check_zca(part.shape)
    values, n = part.images[0].numel(), len(part.images)
    mean = torch.zeros(values, dtype=torch.float64)
    second = torch.zeros(values, values, dtype=torch.float64)
    for rows in torch.arange(n).split(_BATCH):
        flat = part.images[rows].cpu().double().flatten(1) / 255
        mean += flat.sum(0)
        second += flat.T @ flat
    mean /= n
    covariance = (second - n * torch.outer(mean, mean)) / max(n - 1, 1)
    spectrum, basis = torch.linalg.eigh(covariance)
    # Rounding leaves eigenvalues a little below zero.
    root = (spectrum.clamp(min=0) + eps).sqrt()
    return Whitening(
        mean.float(), ((basis / root) @ basis.T).float(), ((basis * root) @ basis.T).float()
    )


def save_zca(path: Path, whitening: Whitening) -> None:
    """Keep a whitening on disk, atomically."""
    save_checkpoint(path, vars(whitening), {"format": 1})


def load_zca(path: Path) -> Whitening:
    """Read what `save_zca` wrote."""
    return Whitening(**load_checkpoint(path)[0])


def space_of(manifest: Manifest, folder: Path) -> Whitening | None:
    """The whitened space in which networks see a set: where all of its experts were optimised in
    one and the same; else None, and they see normalised images.

    Raises InvalidSetError: the matrix is missing or damaged.
    """
    names = {
        entry.trained_in.matrix if entry.trained_in.space == "zca" else None
        for entry in manifest.experts
    }
    name = names.pop()
    if names or name is None:
        return None
    check_file(folder, name, manifest)
    path = folder / name
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InvalidSetError(f"{path} is damaged: {error}") from None
    d = math.prod(manifest.shape)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found != {"mean": (d,), "matrix": (d, d)}:
        raise InvalidSetError(f"{path} holds {found}, expected mean ({d},) and matrix ({d}, {d})")
    return Whitening(tensors["mean"], tensors["matrix"])
