"""Mosaics are what the decode step cuts apart again, in both orders and for every side."""

import pytest
import torch
import torch.nn.functional as F
from enginefactories import random_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moedd.experts.mosaic import cell_size, mosaics, real_images, shrink
from moedd.parts import whole
from moedd.streams import Streams
from moedd_loaders.decode import decode
from moedd_loaders.manifest import TilesDecode


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@given(st.integers(8, 13), st.integers(8, 13), st.integers(2, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_decoding_a_mosaic_gives_its_cells_back_enlarged(
    height: int, width: int, factor: int, by_rows: bool
) -> None:
    order = "row-major" if by_rows else "column-major"
    h, w = cell_size((height, width), factor)
    cells = list(noise(factor**2, 2, 3, h, w))
    stored = mosaics(cells, (height, width), factor, order)
    assert stored.shape == (2, 3, height, width)
    decoded = decode(stored, TilesDecode(factor=factor, order=order), 0.7)
    for k, cell in enumerate(cells):
        i, j = divmod(k, factor) if by_rows else divmod(k, factor)[::-1]
        # Of the last row and column of cells, what lies outside of the image is lost.
        kept = cell.clone()
        kept[:, :, max(0, height - i * h) :] = 0.7
        kept[:, :, :, max(0, width - j * w) :] = 0.7
        enlarged = F.interpolate(kept, (height, width), mode="bilinear", align_corners=False)
        torch.testing.assert_close(decoded[2 * k : 2 * k + 2], enlarged)


def test_cells_of_constant_images_come_back_exactly_where_the_factor_divides_the_sides() -> None:
    cells = [torch.full((1, 1, 4, 6), float(k)) for k in range(4)]
    for order in ("row-major", "column-major"):
        stored = mosaics(cells, (8, 12), 2, order)
        decoded = decode(stored, TilesDecode(factor=2, order=order))
        assert [image.unique().tolist() for image in decoded] == [[0], [1], [2], [3]]
    by_rows, by_columns = (mosaics(cells, (8, 12), 2, o) for o in ("row-major", "column-major"))
    assert by_rows[0, 0, 0].tolist() == [0] * 6 + [1] * 6
    assert by_columns[0, 0, 0].tolist() == [0] * 6 + [2] * 6


def test_factor_1_is_the_image_itself() -> None:
    images = noise(2, 3, 9, 11)
    assert torch.equal(mosaics([images], (9, 11), 1, "row-major"), images)
    for how in ("nearest", "bilinear"):
        assert torch.equal(shrink(images, 1, how), images)


def test_nearest_keeps_every_second_pixel_and_bilinear_averages_four() -> None:
    images = noise(2, 3, 8, 12)
    assert torch.equal(shrink(images, 2, "nearest"), images[:, :, ::2, ::2])
    torch.testing.assert_close(shrink(images, 2, "bilinear"), F.avg_pool2d(images, 2))


@pytest.mark.parametrize("how", ["nearest", "bilinear"])
def test_odd_sides_are_rounded_up(how: str) -> None:
    assert cell_size((9, 12), 2) == (5, 6)
    assert shrink(noise(1, 1, 9, 12), 2, how).shape == (1, 1, 5, 6)
    flat = shrink(torch.full((1, 1, 9, 11), 0.25), 2, how)
    assert flat.unique().tolist() == [0.25]


def test_first_images_are_different_real_images_of_their_class() -> None:
    part = whole(random_data((7, 5)))
    images = real_images(part, 4, Streams(0))
    for c in range(2):
        of_class = part.normalized(part.rows[c])
        found = [
            next(k for k, x in enumerate(of_class) if torch.equal(x, image))
            for image in images[4 * c : 4 * c + 4]
        ]
        assert len(set(found)) == 4
    assert torch.equal(images, real_images(part, 4, Streams(0)))
    assert not torch.equal(images, real_images(part, 4, Streams(1)))
    # A class with fewer images than asked for is gone through again.
    many = real_images(part, 6, Streams(0))[6:]
    assert torch.equal(many[5], many[0])
