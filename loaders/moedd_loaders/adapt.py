"""Other sizes, channels and number types for images, the same for training and test images."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moedd_loaders.errors import UsageError

__all__ = [
    "EvalTransform",
    "Form",
    "as_size",
    "check_channels",
    "check_dtype",
    "fit_channels",
    "fit_size",
    "fit_statistics",
]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601), as Pillow's `convert("L")` has them."""

Size = tuple[int, int]


def as_size(size: int | Sequence[int] | None) -> Size | None:
    """(H, W) of what the caller gave: one side of a square, or both.

    Raises:
        UsageError: anything else.
    """
    if size is None:
        return None
    try:
        sides = [operator.index(side) for side in (size if isinstance(size, Sequence) else [size])]
    except TypeError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise UsageError(f"size is {size!r}, expected a side such as 64, or (height, width)")
    return sides[0], sides[-1]


def check_channels(channels: int | None) -> int | None:
    """`channels` if it is 1, 3 or None."""
    if channels not in (None, 1, 3):
        raise UsageError(f"channels is {channels!r}, expected 1 (grey) or 3 (RGB)")
    return channels


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype` if images can be mixed in it."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(
            f"dtype is {dtype!r}, expected a float type such as torch.float32 or torch.bfloat16: "
            "distilled pixels leave [0, 1] and cannot be stored in integers"
        )
    return dtype


def fit_channels(images: Tensor, channels: int) -> Tensor:
    """(..., C, H, W) as 1 or 3 channels: grey repeated, or colour reduced to its luma."""
    have = images.shape[-3]
    if have == channels:
        return images
    if have == 1:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:]).contiguous()
    if (have, channels) != (3, 1):
        raise UsageError(f"images of {have} channels cannot be shown in {channels}")
    luma = images.new_tensor(LUMA)[:, None, None]
    return (images * luma).sum(-3, keepdim=True)


def fit_size(images: Tensor, size: Size) -> Tensor:
    """(n, C, H, W) float scaled to cover `size` at their own aspect ratio, then centre-cropped.

    Bilinear with antialiasing, as real data is read; images of that size are returned as they are.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = max(size[0] / height, size[1] / width)
    covering = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    scaled = F.interpolate(images, covering, mode="bilinear", antialias=True, align_corners=False)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return scaled[..., top : top + size[0], left : left + size[1]].contiguous()


def fit_statistics(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel after `fit_channels`.

    Grey's deviation cannot be known from the colours' alone: the weighted mean of the three is its
    upper bound (reached where they vary together, as they nearly do in photographs).
    """
    if len(mean) == channels:
        return list(mean), list(std)
    if len(mean) == 1:
        return [mean[0]] * channels, [std[0]] * channels
    return [float(np.dot(LUMA, mean))], [float(np.dot(LUMA, std))]


class Form:
    """What images are brought into: channels and size of the set, then those asked for.

    Args:
        shape: (C, H, W) of the set's own images.
        channels, size: asked for; None keeps the set's.
    """

    def __init__(
        self, shape: tuple[int, int, int], channels: int | None = None, size: Size | None = None
    ) -> None:
        self.shape = shape
        self.channels, self.size = channels or shape[0], size or (shape[1], shape[2])

    def __call__(self, images: Tensor) -> Tensor:
        """(n, C, H, W) float in any size, (n, channels, *size) out."""
        images = fit_size(fit_channels(images, self.shape[0]), (self.shape[1], self.shape[2]))
        return fit_size(fit_channels(images, self.channels), self.size)


class EvalTransform(torch.nn.Module):
    """Brings real test images into the form of a set's training images.

    Takes a PIL image, a NumPy array uint8 (H, W) or (H, W, C), or a tensor (C, H, W) or
    (B, C, H, W), uint8 or float in [0, 1]; gives a float tensor (C, H, W) or (B, C, H, W). Images
    go through the set's own size and channels first, as its training images did when they were
    made, then to those asked for on loading, then through the same normalisation and dtype.
    `DistilledDataset.test_transform` makes one.

    Raises:
        UsageError: floats that are not in [0, 1], as those normalised already; other inputs.
    """

    def __init__(
        self,
        form: Form,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.form, self.dtype = form, dtype
        self.mean, self.std = mean, std

    def forward(self, image: Any) -> Tensor:
        images = _unit(image)
        single = images.dim() == 3
        images = self.form(images[None] if single else images)
        if self.mean is not None and self.std is not None:
            mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
            images = (images - mean) / std
        images = images.to(self.dtype)
        return images[0] if single else images

    def extra_repr(self) -> str:
        normalised = f", mean={self.mean}, std={self.std}" if self.mean is not None else ""
        return f"channels={self.form.channels}, size={self.form.size}, {self.dtype}{normalised}"


def _unit(image: Any) -> Tensor:
    """A float tensor (C, H, W) or (B, C, H, W) in [0, 1]."""
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        image = _pil_pixels(image)
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.array(image))
        image = pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, -3)
    if not isinstance(image, Tensor) or image.dim() not in (3, 4):
        shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
        raise UsageError(
            f"a test image is a {type(image).__name__}{shape}, expected a PIL image or a tensor "
            "(C, H, W)"
        )
    image = image.as_subclass(Tensor)
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        raise UsageError(f"a test image is {image.dtype}, expected uint8 or floats in [0, 1]")
    low, high = (float(value) for value in image.aminmax())
    # Resizing with overshoot leaves [0, 1] by a little; normalising or 0..255 by much.
    if low < -0.5 or high > 1.5:
        raise UsageError(
            f"a test image has values from {low:.3g} to {high:.3g}, expected floats in [0, 1]: "
            "leave out other normalisation, this transform does it"
        )
    return image.float()


def _pil_pixels(image: Any) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; transparency is composited on white, as when data is read."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    grey = image.mode in ("1", "L")
    return np.asarray(image.convert("L" if grey else "RGB"))
