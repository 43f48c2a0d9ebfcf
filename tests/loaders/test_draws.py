"""Counter-based draws: the published generator, independence of the batch, the laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moedd_loaders.draws import LAM, Draws, dirichlet

GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The reference generator in plain Python integers."""
    out = []
    for _ in range(count):
        state = (state + GOLDEN) & MASK
        x = state
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(x ^ (x >> 31))
    return out


def draws(n: int, seed: int = 0, served: int = 0) -> Draws:
    return Draws(seed, np.arange(n), np.full(n, served))


def test_reference_generator_gives_the_published_numbers() -> None:
    # The widely published vector of SplitMix64 for the seed 1234567.
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize(("seed", "row", "served"), [(0, 0, 0), (7, 3, 2), (-1, 49_999, 10**6)])
def test_numbers_are_nested_splitmix64(seed: int, row: int, served: int) -> None:
    key = splitmix64(seed & MASK, 1)[0]
    state = splitmix64((key + row * GOLDEN) & MASK, 1)[0]
    state = splitmix64((state + served * GOLDEN) & MASK, 1)[0]
    want = [((x >> 12) + 0.5) / 2**52 for x in splitmix64(state, 4)]
    got = Draws(seed, np.array([row]), np.array([served])).uniform(0, 1, 2, 3)
    assert got[:, 0].tolist() == want


def test_a_row_draws_the_same_whatever_batch_it_is_in() -> None:
    batch = draws(1000, seed=5, served=3)
    for alpha in (0.2, 1.0, 3.0):
        together = dirichlet(batch, alpha, 3)
        for row in (0, 17, 999):
            alone = dirichlet(Draws(5, np.array([row]), np.array([3])), alpha, 3)
            np.testing.assert_array_equal(alone[:, 0], together[:, row])


def test_uniform_and_independent_over_rows_counts_and_slots() -> None:
    n = 4000
    rows = draws(n).uniform(0)[0]
    counts = Draws(0, np.zeros(n, np.int64), np.arange(n)).uniform(0)[0]
    slots = draws(1).uniform(*range(n))[:, 0]
    for sample in (rows, counts, slots):
        assert sample.min() > 0
        assert sample.max() < 1
        assert stats.kstest(sample, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(rows, draws(n, served=1).uniform(0)[0])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(rows, draws(n, seed=1).uniform(0)[0])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 2.5])
def test_two_parts_are_beta(alpha: float) -> None:
    n = 20_000
    lam = dirichlet(draws(n), alpha, 2)[0]
    assert np.isfinite(lam).all()
    # Rounded to float64, most of Beta(0.05, 0.05) is 0 or 1 exactly: compare away from the ends.
    inner = (lam > 1e-3) & (lam < 1 - 1e-3)
    low, high = stats.beta(alpha, alpha).cdf([1e-3, 1 - 1e-3])
    assert inner.mean() == pytest.approx(high - low, abs=0.015)
    squeezed = (stats.beta(alpha, alpha).cdf(lam[inner]) - low) / (high - low)
    assert stats.kstest(squeezed, "uniform").pvalue > 1e-3
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_more_parts_are_dirichlet(alpha: float) -> None:
    parts = 4
    weights = dirichlet(draws(20_000), alpha, parts)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-12)
    for part in weights:  # every marginal is Beta(alpha, (parts - 1) * alpha)
        assert stats.kstest(part, stats.beta(alpha, (parts - 1) * alpha).cdf).pvalue > 1e-3
    cov = np.cov(weights)
    np.testing.assert_allclose(cov, stats.dirichlet([alpha] * parts).cov(), atol=0.003)


def test_alpha_zero_and_tiny_alpha() -> None:
    assert (dirichlet(draws(50), 0.0, 3)[0] == 1).all()
    tiny = dirichlet(draws(5000), 1e-3, 2)
    assert np.isfinite(tiny).all()
    assert tiny[0].mean() == pytest.approx(0.5, abs=0.03)
    assert np.isfinite(dirichlet(draws(100), 1e6, 2)).all()


def test_slots_do_not_overlap_with_lam() -> None:
    assert draws(3).uniform(LAM).tolist() != draws(3).uniform(0).tolist()
