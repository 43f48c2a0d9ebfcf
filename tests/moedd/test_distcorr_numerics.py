"""Distance correlation where arithmetic is hard: duplicates, constants, offsets, few bits."""

import dcor
import pytest
import torch
from torch import Tensor

from moedd.distcorr import distance_correlation, distance_matrix, linear_cka, pairing_floor
from moedd_loaders.errors import NonFiniteError

BOTH = pytest.mark.parametrize("unbiased", [False, True])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@BOTH
def test_duplicate_rows_have_finite_gradients(unbiased: bool, dtype: torch.dtype) -> None:
    base = randn(4, 300, seed=11, dtype=dtype) + 3
    x = base.repeat(3, 1).requires_grad_()
    y = randn(12, 3, seed=12, dtype=dtype)
    assert torch.equal(distance_matrix(x) == 0, torch.eye(4).repeat(3, 3).bool())
    value = distance_correlation(x, y, unbiased)
    expected = dcor.u_distance_correlation_sqr if unbiased else dcor.distance_correlation_sqr
    p, q = x.detach().double().numpy(), y.double().numpy()
    assert value.item() == pytest.approx(expected(p, q), abs=1e-6)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@BOTH
@pytest.mark.parametrize("fill", [0.0, 0.1, 1e20])
def test_a_constant_side_gives_zero_with_zero_gradient(unbiased: bool, fill: float) -> None:
    x = torch.full((7, 33), fill, requires_grad=True)
    y = randn(7, 4, dtype=torch.float32).requires_grad_()
    for function in (distance_correlation, linear_cka):
        for sides in ((x, y), (y, x)):
            value = function(*sides, unbiased)
            assert value.item() == 0
            for gradient in torch.autograd.grad(value, sides):
                assert torch.equal(gradient, torch.zeros_like(gradient))
    assert pairing_floor(x, y).item() == 0
    root = distance_correlation(x, y, squared=False)
    assert root.item() == 0
    assert torch.autograd.grad(root, x)[0].abs().max() == 0


def test_constant_up_to_float32_rounding_is_constant() -> None:
    x = torch.nextafter(torch.full((8, 16), 5.0), randn(8, 16).float() * 100)
    assert float(distance_correlation(x, randn(8, 2).float())) == 0


def test_equally_distant_rows_have_no_unbiased_variance() -> None:
    x = torch.eye(20, dtype=torch.float64)
    assert float(distance_correlation(x, randn(20, 3), unbiased=True)) == 0
    assert float(distance_correlation(x, randn(20, 3))) > 0


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e12])
def test_scale_of_float32_features_does_not_matter(scale: float) -> None:
    x, y = randn(20, 50, seed=13).float(), randn(20, 6, seed=14).float()
    expected = float(distance_correlation(x, y))
    assert float(distance_correlation(scale * x, y)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("offset", [0, 10, 100, 1000])
def test_float32_with_a_large_offset(offset: float) -> None:
    x, y = randn(50, 64, seed=15), randn(50, 64, seed=16)
    expected = dcor.distance_correlation_sqr(x.numpy(), y.numpy())
    value = distance_correlation((x + offset).float(), (y - offset).float())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_a_device_without_float64_relies_on_the_centring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moedd.distcorr._working_dtype", lambda device: torch.float32)
    x, y = randn(50, 64, seed=15), randn(50, 64, seed=16)
    expected = dcor.distance_correlation_sqr(x.numpy(), y.numpy())
    for offset in (0, 100, 1000):
        value = distance_correlation((x + offset).float(), (y - offset).float())
        assert float(value) == pytest.approx(expected, abs=1e-4)
    doubled = x.float().repeat(2, 1).requires_grad_()
    assert int((distance_matrix(doubled) == 0).sum()) == 200
    value = distance_correlation(doubled, y.float().repeat(2, 1))
    assert torch.autograd.grad(value, doubled)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    x = (300 * randn(30, 40, seed=17)).to(dtype).requires_grad_()  # squares overflow float16
    y = randn(30, 40, seed=18).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance_correlation(x, y)
    assert value.dtype == torch.float32
    expected = dcor.distance_correlation_sqr(x.detach().double().numpy(), y.double().numpy())
    assert value.item() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_non_finite_features_stop() -> None:
    x = randn(6, 2)
    x[2, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="x holds 1 NaN"):
        distance_correlation(x, randn(6, 2))
