"""The augmentation that RDED's students see (Sun et al., CVPR 2024; notes, section 4).

Of each image, a mosaic of f x f crops, the columns of crops are permuted, then the rows; a random
crop of an area between 1/f and all of it, of aspect ratio 3/4 to 4/3, is brought to full size; it
is mirrored with probability 1/2. With f = 1 nothing is shuffled, and the crop is the whole image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)
_FLIP = 0.5

Box = tuple[int, int, int, int]


def augment_rded(images: Tensor, generator: torch.Generator, factor: int, flip: bool) -> Tensor:
    """Augment each of the images (n, C, H, W), any float type, with draws of its own.

    `flip`: mirror images are of the same class. Nothing outside an image is ever sampled, so
    images may be normalised before or after.
    """
    if factor > 1:
        rows = [
            _cropped(_shuffled(image, factor, generator), factor, generator) for image in images
        ]
        images = torch.stack(rows)
    if not flip:
        return images
    mirrored = torch.rand(len(images), generator=generator) < _FLIP
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def _shuffled(image: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """(C, H, W) with its `factor` columns of crops permuted, then its rows."""
    for dim in (2, 1):
        pieces = image.tensor_split(factor, dim)
        order = torch.randperm(factor, generator=generator).tolist()
        image = torch.cat([pieces[place] for place in order], dim)
    return image


def _cropped(image: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """A random crop of (C, H, W) at the size of the whole: bilinear, antialiased."""
    height, width = image.shape[1:]
    top, left, tall, wide = crop_box(height, width, 1 / factor, generator)
    crop = image[None, :, top : top + tall, left : left + wide]
    resized = F.interpolate(
        crop.float(), (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].to(image.dtype)


def crop_box(height: int, width: int, smallest: float, generator: torch.Generator) -> Box:
    """(top, left, height, width) in pixels of a crop, as torchvision's RandomResizedCrop draws it.

    Its share of the area is uniform in [smallest, 1], the logarithm of its aspect ratio in
    log [3/4, 4/3]; what does not fit is drawn anew, at most ten times, then the largest centred box
    of an allowed ratio is taken.
    """
    low, high = map(math.log, _RATIO)
    for _ in range(_ATTEMPTS):
        u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (smallest + (1 - smallest) * u)
        ratio = math.exp(low + (high - low) * v)
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(torch.randint(height - tall + 1, (), generator=generator))
            left = int(torch.randint(width - wide + 1, (), generator=generator))
            return top, left, tall, wide
    tall, wide = height, width
    if width / height < _RATIO[0]:
        tall = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        wide = round(height * _RATIO[1])
    return (height - tall) // 2, (width - wide) // 2, tall, wide
