"""Distance correlation against the dcor package, closed forms, and its invariances."""

import math
from collections.abc import Callable
from itertools import permutations

import dcor
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moedd.distcorr import (
    distance_correlation,
    distance_covariance,
    linear_cka,
    pairing_floor,
)
from moedd_loaders.errors import UsageError

BOTH = pytest.mark.parametrize("unbiased", [False, True])


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def v7() -> tuple[Tensor, Tensor]:
    rows = range(12)
    x = [[5 * i % 12, i**2 % 7, (3 * i + 1) % 5] for i in rows]
    return tensor(x), tensor([[7 * i % 11, (i**2 + 2) % 9] for i in rows])


V5X = [[1, 2, 0], [0, 1, 3], [2, 2, 1], [4, 0, 1], [1, 3, 2], [0, 0, 5]]
V5Y = [[0, 1], [2, 1], [1, 3], [5, 2], [0, 4], [3, 3]]
PAIRS = {
    "V1": (tensor([0, 1]), tensor([0, 3])),
    "V2": (tensor([0, 1, 2]), tensor([0, 1, 4])),
    "V3": (tensor([0, 1, 2, 3, 4]), tensor([4, 1, 0, 1, 4])),
    "V4": (tensor([[0, 0], [1, 0], [0, 1], [1, 1]]), tensor([[0, 0], [2, 0], [0, 1], [3, 1]])),
    "V5": (tensor(V5X), tensor(V5Y)),
    "V6": (tensor([0, 0, 0, 1, 1, 1]), tensor([[0, 0], [0, 1], [1, 0], [2, 2], [2, 3], [3, 2]])),
    "V7": v7(),
    "V8": (tensor([0, 1, 2, 3]), tensor([0, 1, 1, 0])),
}
# dCov^2, dVar^2 X, dVar^2 Y, dCor^2
BIASED = {
    "V1": (0.75, 0.25, 2.25, 1),
    "V2": (0.987654320988, 0.493827160494, 2.271604938272, 0.932504808240),
    "V3": (0.448, 1.216, 2.3296, 0.266177013337),
    "V4": (0.514052978771, 0.271446609407, 1.246553941287, 0.883710736338),
    "V5": (1.604881817122, 2.525861776091, 1.930598886494, 0.726762048822),
    "V6": (0.546240224327, 0.25, 1.404563113692, 0.921813457358),
    "V7": (2.167380365115, 6.420743061257, 6.321190476555, 0.340206847444),
    "V8": (0.125, 0.8125, 0.25, 0.277350098113),
}
UNBIASED = {
    "V3": (-0.8, 1.066666666667, 3.6, -0.408248290464),
    "V4": (0.233511357189, 0.114381916836, 1.312501249239, 0.602669842728),
    "V5": (0.099525353452, 1.085063694581, 0.903612273266, 0.100511337413),
    "V6": (0.722241533928, 0.4, 1.380953261838, 0.971768850779),
    "V7": (0.030189143382, 5.274577437563, 5.399824055963, 0.005656752130),
    "V8": (-0.333333333333, 0.666666666667, 0.666666666667, -0.5),
}
CKA = {  # biased, debiased
    "V2": (0.923076923077, None),
    "V3": (0, -0.551204096945),
    "V4": (0.773052108045, 0.628618557094),
    "V5": (0.408198176764, -0.022364061469),
    "V6": (0.935775440838, 0.952751063874),
    "V7": (0.156805661668, 0.025398869749),
}
CASES = [(name, False, v) for name, v in BIASED.items()]
CASES += [(name, True, v) for name, v in UNBIASED.items()]


def near(value: float) -> object:
    """Twelve decimals, as the vectors are printed."""
    return pytest.approx(value, rel=0, abs=6e-13)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed))[0]


@pytest.mark.parametrize(("name", "unbiased", "expected"), CASES)
def test_vectors(name: str, unbiased: bool, expected: tuple[float, ...]) -> None:
    x, y = PAIRS[name]
    assert float(distance_covariance(x, y, unbiased)) == near(expected[0])
    assert float(distance_covariance(x, x, unbiased)) == near(expected[1])
    assert float(distance_covariance(y, y, unbiased)) == near(expected[2])
    assert float(distance_correlation(x, y, unbiased)) == near(expected[3])
    if not unbiased:
        root = distance_correlation(x, y, squared=False)
        assert root.item() == pytest.approx(math.sqrt(expected[3]), abs=1e-12)


@pytest.mark.parametrize("name", CKA)
def test_exponent_two_is_linear_cka(name: str) -> None:
    x, y = PAIRS[name]
    biased, unbiased = CKA[name]
    assert float(linear_cka(x, y)) == near(biased)
    assert float(distance_correlation(x, y, exponent=2)) == near(biased)
    if unbiased is not None:
        assert float(linear_cka(x, y, unbiased=True)) == near(unbiased)
        assert float(distance_correlation(x, y, True, exponent=2)) == near(unbiased)


def hsic1(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, Eq. 5, written out."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))


def test_cka_equals_its_own_definition() -> None:
    x, y = randn(15, 6, seed=1), randn(15, 4, seed=2) + randn(15, 6, seed=1)[:, :4]
    cx, cy = x - x.mean(0), y - y.mean(0)
    plain = (cy.T @ cx).norm() ** 2 / ((cx.T @ cx).norm() * (cy.T @ cy).norm())
    assert float(linear_cka(x, y)) == pytest.approx(float(plain), abs=1e-12)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    debiased = hsic1(k, m) / math.sqrt(hsic1(k, k) * hsic1(m, m))
    assert float(linear_cka(x, y, unbiased=True)) == pytest.approx(debiased, abs=1e-12)


def test_unbiased_covariance_is_four_times_hsic_of_the_distance_kernel() -> None:
    x, y = PAIRS["V7"]
    a, b = torch.cdist(x, x).numpy(), torch.cdist(y, y).numpy()
    value = float(distance_covariance(x, y, unbiased=True))
    assert value == pytest.approx(4 * hsic1(-a / 2, -b / 2), abs=1e-12)


def test_reversed_and_normalised_rows_of_v5() -> None:
    x, y = PAIRS["V5"]
    assert float(distance_correlation(x, y.flip(0))) == near(0.718855200777)
    assert float(distance_correlation(x, y.flip(0), True)) == near(0.434015748853)
    unit_x, unit_y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    assert float(distance_correlation(unit_x, unit_y)) == near(0.641634518983)


@pytest.mark.parametrize(("n", "d", "e"), [(5, 1, 1), (12, 3, 7), (40, 30, 2), (90, 8, 200)])
def test_agrees_with_dcor(n: int, d: int, e: int) -> None:
    x = randn(n, d, seed=n)
    y = randn(n, e, seed=n + 1) + 0.5 * x[:, :1]
    p, q = x.numpy(), y.numpy()
    for exponent in (0.5, 1.0, 1.5):
        biased = dcor.distance_correlation_sqr(p, q, exponent=exponent)
        unbiased = dcor.u_distance_correlation_sqr(p, q, exponent=exponent)
        ours = distance_correlation(x, y, exponent=exponent)
        assert float(ours) == pytest.approx(biased, abs=1e-11)
        ours = distance_correlation(x, y, True, exponent=exponent)
        assert float(ours) == pytest.approx(unbiased, abs=1e-11)
    assert float(distance_covariance(x, y)) == pytest.approx(
        dcor.distance_covariance_sqr(p, q), rel=1e-11
    )
    assert float(distance_covariance(x, y, True)) == pytest.approx(
        dcor.u_distance_covariance_sqr(p, q), rel=1e-10, abs=1e-12
    )


# Rows from a coarse grid: duplicates and ties are frequent, rounding is not the subject.
grids = st.integers(4, 9).flatmap(
    lambda n: st.tuples(
        *(
            st.lists(
                st.lists(st.integers(-3, 3), min_size=d, max_size=d), min_size=n, max_size=n
            ).map(tensor)
            for d in (3, 2)
        )
    )
)


@given(grids, st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_invariances(
    pair: tuple[Tensor, Tensor], scale: float, shift: float, seed: int, unbiased: bool
) -> None:
    x, y = pair
    value = float(distance_correlation(x, y, unbiased))
    moved = scale * x @ rotation(3, seed) + shift
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    wide = torch.cat([x, torch.full((len(x), 2), shift, dtype=x.dtype)], 1)
    same = [(moved, y), (x[order], y[order]), (wide, y), (x, -scale * y), (y, x)]
    for other_x, other_y in same:
        assert float(distance_correlation(other_x, other_y, unbiased)) == pytest.approx(
            value, abs=1e-6
        )
    assert (-1 if unbiased else 0) - 1e-12 <= value <= 1 + 1e-12


@given(grids, st.booleans())
@settings(max_examples=60, deadline=None)
def test_agrees_with_dcor_on_tied_rows(pair: tuple[Tensor, Tensor], unbiased: bool) -> None:
    x, y = pair
    oracle = dcor.u_distance_correlation_sqr if unbiased else dcor.distance_correlation_sqr
    own = dcor.u_distance_covariance_sqr if unbiased else dcor.distance_covariance_sqr
    p, q = x.numpy(), y.numpy()
    # A degenerate side is rounding divided by rounding in the oracle; ours is 0 by definition.
    degenerate = min(own(p, p), own(q, q)) < 1e-12
    expected = 0.0 if degenerate else oracle(p, q)
    assert float(distance_correlation(x, y, unbiased)) == pytest.approx(expected, abs=1e-9)


def test_scaling_one_feature_is_no_invariance() -> None:
    x, y = PAIRS["V5"]
    stretched = x * tensor([10, 1, 1])
    assert abs(float(distance_correlation(stretched, y)) - BIASED["V5"][3]) > 0.01


@BOTH
def test_similar_rows_reach_one_and_the_gradient_vanishes(unbiased: bool) -> None:
    x = randn(12, 5, seed=3).requires_grad_()
    y = (2.5 * x.detach() @ rotation(5, 4) + 7).requires_grad_()
    value = distance_correlation(x, y, unbiased)
    assert value.item() == near(1)
    for gradient in torch.autograd.grad(value, (x, y)):
        assert gradient.abs().max() < 1e-14


@BOTH
def test_gradient_sums_to_zero_and_is_orthogonal_to_scaling(unbiased: bool) -> None:
    x = (randn(14, 5, seed=5) + 2).requires_grad_()
    value = distance_correlation(x, randn(14, 3, seed=6), unbiased)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.norm() > 1e-3
    assert gradient.sum(0).abs().max() < 1e-15
    assert abs((x * gradient).sum().item()) < 1e-14


def test_gradient_equals_its_formula() -> None:
    x, y = randn(9, 4, seed=7).requires_grad_(), randn(9, 3, seed=8)
    value = distance_correlation(x, y)
    (gradient,) = torch.autograd.grad(value, x)

    n, rows = 9, x.detach().numpy()
    a = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    b = np.linalg.norm(y.numpy()[:, None] - y.numpy()[None], axis=2)
    h = np.eye(n) - 1 / n
    ca, cb = h @ a @ h, h @ b @ h
    va, vb = (ca**2).mean(), (cb**2).mean()
    slope = (cb / math.sqrt(va * vb) - value.item() * ca / va) / n**2
    expected = np.zeros_like(rows)
    for p in range(n):
        for q in range(n):
            if p != q:
                expected[p] += 2 * slope[p, q] * (rows[p] - rows[q]) / a[p, q]
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("function", [distance_correlation, distance_covariance, linear_cka])
@BOTH
def test_gradcheck(function: Callable[..., Tensor], unbiased: bool) -> None:
    x, y = randn(6, 3, seed=9).requires_grad_(), randn(6, 2, seed=10).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: function(a, b, unbiased), (x, y))
    torch.autograd.gradgradcheck(lambda a, b: function(a, b, unbiased), (x, y))


def test_floor_is_the_mean_over_all_pairings() -> None:
    x, y = PAIRS["V5"]
    orders = [list(order) for order in permutations(range(6))]
    covariance = [float(distance_covariance(x, y[order])) for order in orders]
    assert np.mean(covariance) == near(1.468629883841)
    biased = [float(distance_correlation(x, y[order])) for order in orders]
    assert np.mean(biased) == near(0.665061097929)
    assert float(pairing_floor(x, y)) == near(0.665061097929)
    unbiased = [float(distance_correlation(x, y[order], True)) for order in orders]
    assert np.mean(unbiased) == near(0)


def test_independent_rows_are_near_zero_unbiased_and_at_the_floor_biased() -> None:
    x, y = randn(500, 5, seed=19), randn(500, 5, seed=20)
    assert abs(float(distance_correlation(x, y, True))) < 0.01
    biased = float(distance_correlation(x, y))
    assert biased == pytest.approx(0.036, abs=0.01)
    assert float(pairing_floor(x, y)) == pytest.approx(biased, abs=0.01)


def test_features_are_flattened() -> None:
    x, y = randn(8, 3, 2, 2), randn(8, 5)
    assert distance_correlation(x, y) == distance_correlation(x.flatten(1), y)
    assert distance_correlation(x[:, 0, 0, 0], y) == distance_correlation(x[:, 0, 0, :1], y)


@pytest.mark.parametrize(
    ("x", "y", "options", "says"),
    [
        (randn(1, 2), randn(1, 2), {}, "1 row.* at least 2"),
        (randn(3, 2), randn(3, 2), {"unbiased": True}, "3 row.* at least 4"),
        (randn(5, 2), randn(6, 2), {}, "x has 5 rows and y has 6"),
        (torch.arange(6), randn(6), {}, "int64"),
        (randn(6), torch.zeros(6, dtype=torch.complex64), {}, "complex64"),
        (randn(0, 3), randn(0, 3), {}, "shape"),
        (randn(6), randn(6), {"unbiased": True, "squared": False}, "squared=True"),
        (randn(6), randn(6), {"exponent": 0.0}, "exponent"),
        (randn(6), randn(6), {"exponent": 2.5}, "exponent"),
    ],
)
def test_wrong_input_is_one_clear_sentence(
    x: Tensor, y: Tensor, options: dict[str, float], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        distance_correlation(x, y, **options)  # type: ignore[arg-type]
