"""Augmentation: every formula against a slow loop per pixel, siamese use, draws."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from moedd.augment import (
    DSA_FAMILIES,
    Draw,
    apply_cutmix,
    apply_draw,
    apply_each,
    draw_cutmix,
    draw_dsa,
    draw_family,
    draw_idc,
    select_families,
)
from moedd_loaders.errors import UsageError

SHAPE = (3, 6, 8)
both_modes = pytest.mark.parametrize("shared", [True, False])
every_family = pytest.mark.parametrize("family", DSA_FAMILIES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(n, *shape, generator=seeded(7), dtype=torch.float64) + 0.3


# ---- the formulas, one image and one pixel at a time ----

Image = list[list[list[float]]]


def slow_color(x: Image, brightness: float, saturation: float, contrast: float) -> Image:
    channels, height, width = len(x), len(x[0]), len(x[0][0])
    places = [(r, c) for r in range(height) for c in range(width)]
    x = [[[v + brightness for v in row] for row in plane] for plane in x]
    for r, c in places:
        grey = sum(x[k][r][c] for k in range(channels)) / channels
        for k in range(channels):
            x[k][r][c] = (x[k][r][c] - grey) * saturation + grey
    mean = sum(x[k][r][c] for k in range(channels) for r, c in places) / (channels * len(places))
    return [[[(v - mean) * contrast + mean for v in row] for row in plane] for plane in x]


def pixel(plane: list[list[float]], r: int, c: int) -> float:
    return plane[r][c] if 0 <= r < len(plane) and 0 <= c < len(plane[0]) else 0.0


def slow_crop(x: Image, rows: float, columns: float) -> Image:
    return [
        [
            [pixel(p, r + int(rows), c + int(columns)) for c in range(len(p[0]))]
            for r in range(len(p))
        ]
        for p in x
    ]


def slow_cutout(x: Image, row: float, column: float) -> Image:
    """As published: the coordinates of a whole square are clamped into the image, then zeroed."""
    x = [[list(line) for line in plane] for plane in x]
    sides = len(x[0]), len(x[0][0])
    holes = [int(0.5 * side + 0.5) for side in sides]
    for i in range(holes[0]):
        for j in range(holes[1]):
            r = min(max(int(row) - holes[0] // 2 + i, 0), sides[0] - 1)
            c = min(max(int(column) - holes[1] // 2 + j, 0), sides[1] - 1)
            for plane in x:
                plane[r][c] = 0.0
    return x


def slow_flip(x: Image, mirror: float) -> Image:
    return [[line[::-1] if mirror else line for line in plane] for plane in x]


def sample(plane: list[list[float]], r: float, c: float) -> float:
    """Bilinear between pixel centres, zero outside."""
    r0, c0 = math.floor(r), math.floor(c)
    total = 0.0
    for i in (0, 1):
        for j in (0, 1):
            weight = abs(1 - i - (r - r0)) * abs(1 - j - (c - c0))
            total += weight * pixel(plane, r0 + i, c0 + j)
    return total


def slow_warp(x: Image, source: Callable[[float, float], tuple[float, float]]) -> Image:
    """``source``: offset (right, down) from the image's centre in pixels -> where to sample."""
    height, width = len(x[0]), len(x[0][0])
    mid_r, mid_c = (height - 1) / 2, (width - 1) / 2
    out = [[[0.0] * width for _ in range(height)] for _ in x]
    for r in range(height):
        for c in range(width):
            right, down = source(c - mid_c, r - mid_r)
            for k, plane in enumerate(x):
                out[k][r][c] = sample(plane, mid_r + down, mid_c + right)
    return out


def slow_scale(x: Image, sx: float, sy: float) -> Image:
    return slow_warp(x, lambda right, down: (sx * right, sy * down))


def slow_rotate(x: Image, angle: float) -> Image:
    sin, cos = math.sin(angle), math.cos(angle)
    return slow_warp(x, lambda right, down: (cos * right - sin * down, sin * right + cos * down))


SLOW = {
    "color": slow_color,
    "crop": slow_crop,
    "cutout": slow_cutout,
    "flip": slow_flip,
    "scale": slow_scale,
    "rotate": slow_rotate,
}


def slow(x: Tensor, draw: Draw) -> Tensor:
    done = []
    for i, image in enumerate(x.tolist()):
        for family, values in draw.ops:
            given = [float(value[0 if draw.shared else i]) for value in values]
            image = SLOW[family](image, *given)
        done.append(image)
    return torch.tensor(done, dtype=x.dtype)


@every_family
@both_modes
@pytest.mark.parametrize("shape", [(3, 6, 8), (1, 7, 5)])
def test_every_family_equals_the_slow_formula(
    family: str, shared: bool, shape: tuple[int, int, int]
) -> None:
    x = images(3, shape)
    for seed in range(6):
        draw = draw_family(seeded(seed), 3, shape, family, shared)
        torch.testing.assert_close(apply_draw(x, draw), slow(x, draw), rtol=1e-6, atol=1e-6)


@both_modes
def test_idc_combination_equals_the_slow_formulas_in_its_order(shared: bool) -> None:
    for seed in range(4):
        draw = draw_idc(seeded(seed), 3, SHAPE, DSA_FAMILIES, shared)
        x = images()
        torch.testing.assert_close(apply_draw(x, draw), slow(x, draw), rtol=1e-6, atol=1e-6)


def test_square_affine_families_equal_the_librarys_affine_grid() -> None:
    """The published matrices: diag(sx, sy) and [[cos, -sin], [sin, cos]], align_corners False."""
    x = images(2, (3, 8, 8))
    scale = draw_family(seeded(3), 2, (3, 8, 8), "scale", False)
    turn = draw_family(seeded(3), 2, (3, 8, 8), "rotate", False)
    (sx, sy), (angle,) = scale.ops[0][1], turn.ops[0][1]
    zero = torch.zeros(2)
    matrices = {
        scale: (sx, zero, zero, zero, sy, zero),
        turn: (angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero),
    }
    for draw, entries in matrices.items():
        theta = torch.stack(entries, 1).view(2, 2, 3).double()
        grid = F.affine_grid(theta, [2, 3, 8, 8], align_corners=False)
        expected = F.grid_sample(x, grid, mode="bilinear", align_corners=False)
        torch.testing.assert_close(apply_draw(x, draw), expected, rtol=1e-6, atol=1e-6)


# ---- siamese use and other ways of calling ----


@every_family
def test_a_shared_draw_on_two_batches_equals_the_draw_on_both_together(family: str) -> None:
    draw = draw_family(seeded(5), 1, SHAPE, family, True)
    real, synthetic = images(5), images(2) * 2
    together = apply_draw(torch.cat([real, synthetic]), draw)
    apart = torch.cat([apply_draw(real, draw), apply_draw(synthetic, draw)])
    torch.testing.assert_close(apart, together)


@every_family
def test_a_shared_draw_equals_the_same_parameters_for_every_image(family: str) -> None:
    for seed in range(4):
        draw = draw_family(seeded(seed), 1, SHAPE, family, True)
        repeated = tuple((f, tuple(v.expand(3) for v in values)) for f, values in draw.ops)
        apart = apply_draw(images(), Draw(repeated, False, draw.size))
        torch.testing.assert_close(apply_draw(images(), draw), apart)


@pytest.mark.parametrize("draws", [draw_dsa, draw_idc])
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_groups_by_their_own_draws_are_the_groups_one_by_one(
    draws: Callable[..., Draw], groups: int
) -> None:
    for seed in range(4):
        generator = seeded(seed)
        own = [draws(generator, 1, SHAPE, DSA_FAMILIES, shared=True) for _ in range(groups)]
        x = torch.stack([images() * (g + 1) for g in range(groups)]).requires_grad_()
        together = apply_each(x, own)
        apart = torch.stack([apply_draw(x[g], own[g]) for g in range(groups)])
        torch.testing.assert_close(together, apart)
        weights = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        torch.testing.assert_close(
            torch.autograd.grad((together * weights).sum(), x),
            torch.autograd.grad((apart * weights).sum(), x),
        )


@every_family
@both_modes
def test_differentiable_in_the_images(family: str, shared: bool) -> None:
    x = images(2, (2, 5, 4)).requires_grad_()
    draw = draw_family(seeded(2), 2, (2, 5, 4), family, shared)
    assert torch.autograd.gradcheck(lambda x: apply_draw(x, draw), (x,))


@every_family
@both_modes
def test_inside_function_transforms(family: str, shared: bool) -> None:
    draw = draw_family(seeded(2), 3, SHAPE, family, shared)
    stack = torch.stack([images(), images() * 2])

    def total(x: Tensor) -> Tensor:
        return apply_draw(x, draw).square().sum()

    x = images().requires_grad_()
    (expected,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(grad(total)(images()), expected)
    torch.testing.assert_close(vmap(grad(total))(stack)[0], expected)
    torch.testing.assert_close(
        vmap(lambda x: apply_draw(x, draw))(stack),
        torch.stack([apply_draw(x, draw) for x in stack]),
    )


@every_family
@both_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_dtype_and_is_close_in_lower_precision(
    family: str, shared: bool, dtype: torch.dtype
) -> None:
    draw = draw_family(seeded(2), 3, SHAPE, family, shared)
    x = images().to(dtype)
    out = apply_draw(x, draw)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    expected = apply_draw(x.double(), draw)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_leaves_the_given_images_alone() -> None:
    x = images()
    for seed in range(10):
        apply_draw(x, draw_idc(seeded(seed), 3, SHAPE, DSA_FAMILIES, False))
        apply_cutmix(x, draw_cutmix(seeded(seed), 3, SHAPE[1:]))
    assert torch.equal(x, images())


def test_a_draw_for_another_batch_is_refused() -> None:
    draw = draw_family(seeded(), 3, SHAPE, "color", False)
    with pytest.raises(UsageError, match="drawn for 3 images, not 4"):
        apply_draw(images(4), draw)
    with pytest.raises(UsageError, match="drawn for images of 6x8 pixels, not 8x6"):
        apply_draw(images(3, (3, 8, 6)), draw)


# ---- what is drawn ----


def many(family: str, shape: tuple[int, int, int] = (3, 32, 32), n: int = 20_000) -> list[Tensor]:
    ((_, values),) = draw_family(seeded(), n, shape, family, False).ops
    return list(values)


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """Against the uniform law on [low, high]: range, and the largest gap to its distribution."""
    unit = (values.double() - low) / (high - low)
    assert unit.min() >= 0
    assert unit.max() <= 1
    steps = torch.arange(1, len(unit) + 1) / len(unit)
    assert (unit.sort().values - steps).abs().max() < 2 / len(unit) ** 0.5


def test_continuous_parameters_are_uniform_on_the_published_ranges() -> None:
    brightness, saturation, contrast = many("color")
    assert_uniform(brightness, -0.5, 0.5)
    assert_uniform(saturation, 0.0, 2.0)
    assert_uniform(contrast, 0.5, 1.5)
    for factor in many("scale"):
        assert_uniform(factor, 1 / 1.2, 1.2)
    (angle,) = many("rotate")
    assert_uniform(angle, -math.pi / 12, math.pi / 12)


@pytest.mark.parametrize(("side", "limit"), [(32, 4), (64, 8), (8, 1), (28, 4), (20, 3)])
def test_crops_shift_by_every_whole_number_up_to_an_eighth(side: int, limit: int) -> None:
    rows, columns = many("crop", (3, side, 64))
    assert_equally_often(rows, range(-limit, limit + 1))
    assert_equally_often(columns, range(-8, 9))


@pytest.mark.parametrize(("side", "places"), [(32, 33), (64, 65), (8, 9), (10, 10), (7, 8), (5, 5)])
def test_cutout_centres(side: int, places: int) -> None:
    """Even holes (16 at 32, 4 at 7) have their centre on {0..side}, odd ones on {0..side-1}."""
    rows, columns = many("cutout", (3, side, 32))
    assert_equally_often(rows, range(places))
    assert_equally_often(columns, range(33))


def assert_equally_often(values: Tensor, expected: range) -> None:
    counts = Counter(values.tolist())
    assert sorted(counts) == list(expected)
    mean = len(values) / len(expected)
    assert all(abs(c - mean) < 5 * mean**0.5 for c in counts.values())


def test_flips_half_of_the_images_and_parameters_are_independent() -> None:
    (mirror,) = many("flip")
    assert abs(mirror.float().mean() - 0.5) < 0.02
    for family in ("color", "crop", "cutout", "scale"):
        values = torch.stack(many(family)).double()
        off_diagonal = torch.corrcoef(values) - torch.eye(len(values))
        assert off_diagonal.abs().max() < 0.03


def test_dsa_applies_exactly_one_family_uniformly() -> None:
    generator = seeded()
    drawn = [draw_dsa(generator, 2, SHAPE, DSA_FAMILIES, False).ops for _ in range(3000)]
    assert {len(ops) for ops in drawn} == {1}
    counts = Counter(ops[0][0] for ops in drawn)
    assert set(counts) == set(DSA_FAMILIES)
    assert all(400 < c < 600 for c in counts.values())


def test_idc_always_applies_flip_color_cutout_and_one_of_the_rest() -> None:
    generator = seeded()
    orders = Counter(
        tuple(family for family, _ in draw_idc(generator, 1, SHAPE, DSA_FAMILIES, True).ops)
        for _ in range(600)
    )
    expected = {("flip", "color", f, "cutout") for f in ("crop", "scale", "rotate")}
    assert set(orders) == expected
    assert all(140 < c < 260 for c in orders.values())


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ("color_crop_cutout", ["color", "crop", "cutout"]),  # IDC's matching
        ("crop_color", ["color", "crop"]),  # IDC's network training
        ("cutout_flip", ["flip", "cutout"]),
        ("rotate", ["rotate"]),
        ("", []),
    ],
)
def test_idc_with_fewer_names(names: str, order: list[str]) -> None:
    draw = draw_idc(seeded(), 4, SHAPE, names.split("_") if names else [], False)
    assert [family for family, _ in draw.ops] == order
    assert all(len(value) == 4 for _, values in draw.ops for value in values)


def test_no_families_change_nothing() -> None:
    for draw in (draw_dsa, draw_idc):
        assert torch.equal(apply_draw(images(), draw(seeded(), 3, SHAPE, (), False)), images())


def test_flip_and_cutout_can_be_removed() -> None:
    assert select_families(DSA_FAMILIES) == DSA_FAMILIES
    assert select_families(DSA_FAMILIES, flip=False) == (
        "color",
        "crop",
        "cutout",
        "scale",
        "rotate",
    )
    assert select_families(("flip", "cutout", "crop"), cutout=False) == ("flip", "crop")
    with pytest.raises(UsageError, match=r"unknown augmentation 'colour'.*did you mean 'color'"):
        draw_dsa(seeded(), 1, SHAPE, ("colour",), True)


def test_draws_come_from_the_generator_only() -> None:
    before = torch.get_rng_state()
    for draw in (draw_dsa, draw_idc):
        same = [draw(seeded(4), 3, SHAPE, DSA_FAMILIES, False) for _ in range(2)]
        other = draw(seeded(5), 3, SHAPE, DSA_FAMILIES, False)
        assert torch.equal(apply_draw(images(), same[0]), apply_draw(images(), same[1]))
        assert not torch.equal(apply_draw(images(), same[0]), apply_draw(images(), other))
    one, two = (draw_cutmix(seeded(4), 9, (6, 8)) for _ in range(2))
    assert (one.box, one.rho) == (two.box, two.rho)
    assert torch.equal(one.perm, two.perm)
    assert torch.equal(before, torch.get_rng_state())
