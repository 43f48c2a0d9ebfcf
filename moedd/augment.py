"""Differentiable augmentation (DSA), IDC's combination of it, and CutMix, by explicit parameters.

A *draw* holds the parameters of one augmentation; applying it is a pure, differentiable function of
the images. Siamese augmentation is therefore nothing special: one shared draw is applied to the
real and to the synthetic batch (and equals applying it to their concatenation).

    draw = draw_dsa(generator, 1, (3, 32, 32), DSA_FAMILIES, shared=True)
    real, synthetic = apply_draw(real, draw), apply_draw(synthetic, draw)

Images are (n, C, H, W) in *normalised* space: the 0 that fills vacated places is the data mean.
Formulas and ranges: DSA (Zhao & Bilen, ICML 2021) as published in its repository; IDC (Kim et al.,
ICML 2022) uses the same and combines them differently; CutMix as IDC uses it. Affine sampling is
bilinear with zeros outside and align_corners False (MTT's copy of this code has True).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moedd.ondevice import upload
from moedd_loaders.errors import UsageError, unknown

DSA_FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")

BRIGHTNESS = 1.0  # x + (u - 0.5) * BRIGHTNESS
SATURATION = 2.0  # u * SATURATION scales the distance to the grey of the pixel
CONTRAST = 0.5  # u + CONTRAST scales the distance to the mean of the image
SHIFT = 0.125  # largest translation, of the side
HOLE = 0.5  # side of the cut-out square, of the side
SCALE = 1.2  # factors in [1/SCALE, SCALE]
ANGLE = 15.0  # degrees
FLIP = 0.5  # probability

Op = tuple[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Draw:
    """Parameters of one augmentation.

    Attributes:
        ops: (family, parameters) in the order of application. Every parameter is a CPU tensor of
            shape (1,) if the draw is shared, else (n,):
            color (brightness added, saturation factor, contrast factor) float32;
            crop (rows, columns) int64: output[r, c] = input[r + rows, c + columns];
            cutout (centre row, centre column) int64; flip (mirror?,) bool;
            scale (x factor, y factor) float32; rotate (angle in radians,) float32.
        shared: one parameter for all images, so that the draw fits every batch size.
        size: (height, width) in pixels that it was drawn for.
    """

    ops: tuple[Op, ...]
    shared: bool
    size: tuple[int, int]


def select_families(
    families: Sequence[str], *, flip: bool = True, cutout: bool = True
) -> tuple[str, ...]:
    """The families, without flip where mirror images are other classes, or without cutout.

    Raises UsageError for an unknown family.
    """
    for family in families:
        if family not in DSA_FAMILIES:
            raise unknown("augmentation", family, DSA_FAMILIES)
    keep = {"flip": flip, "cutout": cutout}
    return tuple(family for family in families if keep.get(family, True))


def shift_limit(side: int) -> int:
    """Largest translation of a crop in pixels: 4 at 32, 8 at 64."""
    return int(SHIFT * side + 0.5)


def hole_side(side: int) -> int:
    """Side of the cut-out hole in pixels before it is clipped to the image: 16 at 32."""
    return int(HOLE * side + 0.5)


def draw_family(
    generator: torch.Generator, n: int, shape: tuple[int, int, int], family: str, shared: bool
) -> Draw:
    """Parameters of one named family for n images of ``shape`` (C, H, W)."""
    (family,) = select_families([family])
    return Draw((_draw_op(generator, 1 if shared else n, shape, family),), shared, shape[1:])


def draw_dsa(
    generator: torch.Generator,
    n: int,
    shape: tuple[int, int, int],
    families: Sequence[str],
    shared: bool,
) -> Draw:
    """DSA's mode S: exactly one of the families, chosen uniformly for the whole batch.

    Args:
        generator: CPU generator, the only source of randomness.
        n: number of images (without effect if shared).
        shape: (C, H, W) of one image.
        families: names out of DSA_FAMILIES; none: the draw changes nothing.
        shared: one parameter for all images (siamese) instead of one per image.

    Raises UsageError for an unknown family.
    """
    families = select_families(families)
    if not families:
        return Draw((), shared, shape[1:])
    family = families[_integer(generator, len(families))]
    return draw_family(generator, n, shape, family, shared)


def draw_idc(
    generator: torch.Generator,
    n: int,
    shape: tuple[int, int, int],
    names: Sequence[str],
    shared: bool,
) -> Draw:
    """IDC's combination: flip, color, then one of {crop, scale, rotate}, then cutout.

    Named flip, color and cutout are always applied; of the rest exactly one is chosen for the
    whole batch. Arguments and errors as in :func:`draw_dsa`.
    """
    names = select_families(names)
    pool = [name for name in names if name in ("crop", "scale", "rotate")]
    chosen = [pool[_integer(generator, len(pool))]] if pool else []
    order = [name for name in ("flip", "color") if name in names] + chosen
    order += ["cutout"] if "cutout" in names else []
    rows = 1 if shared else n
    ops = tuple(_draw_op(generator, rows, shape, name) for name in order)
    return Draw(ops, shared, shape[1:])


def _integer(generator: torch.Generator, high: int) -> int:
    return int(torch.randint(high, (), generator=generator))


def _draw_op(generator: torch.Generator, rows: int, shape: tuple[int, int, int], family: str) -> Op:
    _, height, width = shape

    def uniform() -> Tensor:
        return torch.rand(rows, generator=generator)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (rows,), generator=generator)

    if family == "color":
        brightness = (uniform() - 0.5) * BRIGHTNESS
        return family, (brightness, uniform() * SATURATION, uniform() + CONTRAST)
    if family == "crop":
        limits = shift_limit(height), shift_limit(width)
        return family, tuple(integers(-limit, limit + 1) for limit in limits)
    if family == "cutout":
        # An even hole has its centre between pixels, hence one more place for it.
        places = (side + 1 - hole_side(side) % 2 for side in (height, width))
        return family, tuple(integers(0, place) for place in places)
    if family == "flip":
        return family, (uniform() < FLIP,)
    if family == "scale":
        return family, tuple(uniform() * (SCALE - 1 / SCALE) + 1 / SCALE for _ in range(2))
    assert family == "rotate"
    return family, ((uniform() - 0.5) * (2 * math.radians(ANGLE)),)


def apply_draw(x: Tensor, draw: Draw) -> Tensor:
    """Augment images x (n, C, H, W), floating point, any device; same shape and dtype.

    Differentiable in x, and usable inside torch.func transforms: control flow depends on the draw
    only. A shared draw takes any n; else n must be the number of images it was drawn for.

    Raises UsageError if the images do not have the shape that the draw was made for.
    """
    if x.shape[-2:] != draw.size:
        raise UsageError(
            f"the augmentation was drawn for images of {draw.size[0]}x{draw.size[1]} pixels, not "
            f"{x.shape[-2]}x{x.shape[-1]}; draw it for the shape of the batch"
        )
    for family, values in draw.ops:
        if len(values[0]) != (1 if draw.shared else len(x)):
            raise UsageError(
                f"the augmentation was drawn for {len(values[0])} images, not {len(x)}; draw one "
                f"for this batch, or a shared one"
            )
        x = _APPLY[family](x, *values)
    return x


def apply_each(x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Augment groups of images x (groups, n, C, H, W), the images of group g by the shared draw
    `draws[g]`: as `apply_draw` does it one group after the other, in one pass for all groups whose
    draws have the same families."""
    if len(draws) == 1:
        return apply_draw(x[0], draws[0])[None]
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, draw in enumerate(draws):
        alike.setdefault(tuple(family for family, _ in draw.ops), []).append(place)
    if len(alike) == 1:
        return _apply_alike(x, draws)
    pieces = [
        _apply_alike(x.index_select(0, _index(places, x)), [draws[place] for place in places])
        for places in alike.values()
    ]
    lying = [place for places in alike.values() for place in places]
    order = [lying.index(place) for place in range(len(draws))]
    return torch.cat(pieces).index_select(0, _index(order, x))


def _apply_alike(x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """`apply_each` for draws of the same families: one draw with parameters per image."""
    ops: list[Op] = []
    for number, (family, values) in enumerate(draws[0].ops):
        joined = (torch.cat([d.ops[number][1][k] for d in draws]) for k in range(len(values)))
        ops.append((family, tuple(value.repeat_interleave(x.shape[1]) for value in joined)))
    draw = Draw(tuple(ops), False, draws[0].size)
    return apply_draw(x.flatten(0, 1), draw).unflatten(0, x.shape[:2])


def _index(places: Sequence[int], x: Tensor) -> Tensor:
    return upload(torch.tensor(places), x.device)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """(rows,) on the CPU -> (rows, 1, 1, 1) with the device and dtype of x."""
    return upload(values.to(x.dtype), x.device).view(-1, 1, 1, 1)


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    # Brightness b, saturation s and contrast k in one pass. With the grey g of a pixel (its mean
    # over channels) and the mean m of the image, both of x, saturation leaves g and m as they are:
    #   ((x + b - g') s + g' - m') k + m'  with g' = g + b, m' = m + b
    #   = k s x + k (1 - s) g + (1 - k) m + b
    b, s, k = (_per_image(value, x) for value in (brightness, saturation, contrast))
    grey = x.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return torch.addcmul(k * (1 - s) * grey + ((1 - k) * mean + b), x, k * s)


def _crop(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if len(rows) == 1:
        dy, dx = int(rows), int(columns)
        if dy == dx == 0:
            return x
        top, bottom = max(dy, 0), height + min(dy, 0)
        left, right = max(dx, 0), width + min(dx, 0)
        kept = x[..., top:bottom, left:right]
        return F.pad(kept, (max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))
    y, ok_y = _places(upload(rows, x.device), height)
    x_, ok_x = _places(upload(columns, x.device), width)
    index = (y[:, :, None] * width + x_[:, None, :]).flatten(1)[:, None]
    inside = (ok_y[:, :, None] & ok_x[:, None, :])[:, None]
    moved = x.flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).view_as(x)
    return torch.where(inside, moved, torch.zeros((), dtype=x.dtype, device=x.device))


def _places(shift: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Source places (n, side), clamped into the image, and which of them were inside."""
    places = torch.arange(side, device=shift.device) + shift[:, None]
    return places.clamp(0, side - 1), (places >= 0) & (places < side)


def _cutout(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    down, across = (
        _hole(upload(rows, x.device), x.shape[-2]),
        _hole(upload(columns, x.device), x.shape[-1]),
    )
    kept = ~(down[:, :, None] & across[:, None, :])
    return x * kept[:, None].to(x.dtype)


def _hole(centre: Tensor, side: int) -> Tensor:
    """(n,) centres -> (n, side) bool: the places that the hole covers, cut off at the border."""
    hole = hole_side(side)
    first = centre[:, None] - hole // 2
    places = torch.arange(side, device=centre.device)
    return (places >= first) & (places < first + hole)


def _flip(x: Tensor, mirror: Tensor) -> Tensor:
    if len(mirror) == 1:
        return x.flip(-1) if bool(mirror) else x
    return torch.where(upload(mirror, x.device).view(-1, 1, 1, 1), x.flip(-1), x)


def _scale(x: Tensor, sx: Tensor, sy: Tensor) -> Tensor:
    zero = torch.zeros_like(sx)
    return _affine(x, ((sx, zero), (zero, sy)))


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    # The sampling grid runs from -1 to 1 on both sides: sin is scaled by the ratio of the sides,
    # so that images that are not square are turned rather than sheared.
    ratio = x.shape[-2] / x.shape[-1]
    sin, cos = angle.sin(), angle.cos()
    return _affine(x, ((cos, -sin * ratio), (sin / ratio, cos)))


def _affine(x: Tensor, matrix: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Sample x at matrix @ (column, row) in [-1, 1] coordinates: bilinear, zeros outside."""
    # Half precision cannot hold sampling coordinates: sample in float32 and convert back.
    precise = x.dtype if x.dtype == torch.float64 else torch.float32
    rows = [torch.stack([a, b, torch.zeros_like(a)], -1) for a, b in matrix]
    theta = upload(torch.stack(rows, 1).to(precise), x.device)
    grid = F.affine_grid(theta, [len(theta), 1, *x.shape[-2:]], align_corners=False)
    grid = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(x.to(precise), grid, align_corners=False).to(x.dtype)


_APPLY: dict[str, Callable[..., Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


@dataclass(frozen=True)
class CutMixDraw:
    """One CutMix of a batch of n images.

    Attributes:
        perm: (n,) int64 on the CPU: image i receives the box of image perm[i].
        box: (top, bottom, left, right) in pixels, half-open, inside the image; may be empty.
        rho: the share of the image outside the box, in [0, 1]: the weight of its own label.
    """

    perm: Tensor
    box: tuple[int, int, int, int]
    rho: float


def draw_cutmix(
    generator: torch.Generator, n: int, size: tuple[int, int], beta: float = 1.0
) -> CutMixDraw:
    """IDC's CutMix: one permutation and one box for the whole batch.

    lambda ~ Beta(beta, beta); the box has int(side * sqrt(1 - lambda)) of each side (height, width
    of ``size``), its centre is a uniform pixel, it reaches half its side (rounded down) to both
    sides of it and is clipped to the image. With which probability a batch is mixed is the
    caller's business.
    """
    # torch has no Beta sampler that takes a generator: numpy's, seeded from it.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    ratio = math.sqrt(1 - np.random.default_rng(seed).beta(beta, beta))
    edges: list[int] = []
    for side in size:
        centre, half = _integer(generator, side), int(side * ratio) // 2
        edges += [max(centre - half, 0), min(centre + half, side)]
    top, bottom, left, right = edges
    rho = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    return CutMixDraw(torch.randperm(n, generator=generator), (top, bottom, left, right), rho)


def apply_cutmix(x: Tensor, draw: CutMixDraw) -> Tensor:
    """Paste the box of the permuted batch into x (n, C, H, W); a new tensor, differentiable."""
    top, bottom, left, right = draw.box
    if top >= bottom or left >= right:
        return x
    mixed = x.clone()
    box = x[..., top:bottom, left:right]
    mixed[..., top:bottom, left:right] = box[upload(draw.perm, x.device)]
    return mixed


def cutmix_targets(targets: Tensor, draw: CutMixDraw) -> Tensor:
    """Target probabilities (n, classes) of the mixed batch: rho * own + (1 - rho) * received.

    Cross-entropy is linear in its targets, so their loss is IDC's weighted sum of two losses.
    """
    return draw.rho * targets + (1 - draw.rho) * targets[upload(draw.perm, targets.device)]
