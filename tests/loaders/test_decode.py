from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moedd_loaders.decode import decode, decode_factor, decode_index, decode_labels
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import NoDecode, TilesDecode


def bilinear(cell: np.ndarray, height: int, width: int) -> np.ndarray:
    """Independent float64 loop version of bilinear enlarging with align_corners=False."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * cell.shape[0] / height - 0.5, 0), cell.shape[0] - 1)
            u = min(max((x + 0.5) * cell.shape[1] / width - 0.5, 0), cell.shape[1] - 1)
            v0, u0 = math.floor(v), math.floor(u)
            v1, u1 = min(v0 + 1, cell.shape[0] - 1), min(u0 + 1, cell.shape[1] - 1)
            a, b = v - v0, u - u0
            out[y, x] = (1 - a) * ((1 - b) * cell[v0, u0] + b * cell[v0, u1]) + a * (
                (1 - b) * cell[v1, u0] + b * cell[v1, u1]
            )
    return out


def loop_decode(x: np.ndarray, f: int, order: str, fill: list[float]) -> np.ndarray:
    n, c, h, w = x.shape
    rows, columns = math.ceil(h / f), math.ceil(w / f)
    out = []
    for cell in range(f * f):
        i, j = divmod(cell, f) if order == "row-major" else divmod(cell, f)[::-1]
        for image in range(n):
            planes = []
            for channel in range(c):
                padded = np.full((rows * f, columns * f), fill[channel])
                padded[:h, :w] = x[image, channel]
                piece = padded[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                planes.append(bilinear(piece, h, w))
            out.append(np.stack(planes))
    return np.stack(out)


@pytest.mark.parametrize("order", ["row-major", "column-major"])
@pytest.mark.parametrize(("f", "h", "w"), [(2, 8, 8), (2, 9, 7), (3, 8, 11), (3, 5, 6), (1, 5, 4)])
def test_agrees_with_a_float64_loop(order: str, f: int, h: int, w: int) -> None:
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0)).double()
    fill = [0.1, 0.5, -2.0]
    rule = TilesDecode(factor=f, order=order)
    found = decode(x, rule, fill)
    expected = loop_decode(x.numpy(), f, order, fill)
    assert found.shape == (2 * f * f, 3, h, w)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(decode(x.float(), rule, fill).numpy(), expected, atol=1e-5)


def test_no_decode_is_the_identity() -> None:
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert decode(x, NoDecode()) is x
    assert decode_factor(NoDecode()) == 1


def test_cells_come_first_and_labels_follow() -> None:
    # Image i has the constant value 10 i + cell in each of its cells.
    x = torch.zeros(2, 1, 4, 4)
    for image in range(2):
        for cell, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            x[image, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 10 * image + cell
    row, column = TilesDecode(factor=2), TilesDecode(factor=2, order="column-major")
    assert decode(x, row)[:, 0, 0, 0].tolist() == [0, 10, 1, 11, 2, 12, 3, 13]
    assert decode(x, column)[:, 0, 0, 0].tolist() == [0, 10, 2, 12, 1, 11, 3, 13]
    assert decode_labels(torch.tensor([7, 8]), row).tolist() == [7, 8] * 4
    assert decode_index(2, row).tolist() == [0, 1] * 4
    soft = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert torch.equal(decode_labels(soft, row), soft[decode_index(2, row)])


@given(st.integers(1, 3), st.integers(3, 9), st.integers(3, 9), st.floats(-2, 2, width=32))
@settings(max_examples=30, deadline=None)
def test_a_constant_image_stays_constant(f: int, h: int, w: int, value: float) -> None:
    x = torch.full((1, 2, h, w), value)
    found = decode(x, TilesDecode(factor=f), value)
    torch.testing.assert_close(found, torch.full_like(found, value))


def test_gradients_pass() -> None:
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rule = TilesDecode(factor=2, order="column-major")
    assert torch.autograd.gradcheck(lambda v: decode(v, rule, [0.3, 0.4]), x.requires_grad_())
    through = torch.func.grad(lambda v: decode(v, rule, 0.5).square().sum())(x.detach())
    assert bool(through.abs().gt(0).all())


def test_fill_and_size_that_do_not_fit_are_named() -> None:
    with pytest.raises(UsageError, match="2 padding values for images of 3 channels"):
        decode(torch.zeros(1, 3, 5, 5), TilesDecode(factor=2), [0.0, 0.0])
    with pytest.raises(UsageError, match="2x9 cannot be cut into 3x3"):
        decode(torch.zeros(1, 3, 2, 9), TilesDecode(factor=3))
