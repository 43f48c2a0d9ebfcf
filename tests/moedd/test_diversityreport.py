"""The diversity report against the dcor package: every pair, the mean, the shuffled baseline."""

from __future__ import annotations

from itertools import combinations, permutations, product

import dcor
import numpy as np
import pytest
import torch
from torch import Tensor

from moedd.diversity import DiversityConfig
from moedd.diversityreport import DRAWS, ORDERS, diversity_report
from moedd.streams import Streams
from moedd_loaders.errors import NonFiniteError, UsageError
from moedd_loaders.manifest import Diversity

Side = tuple[Tensor, Tensor]


def expert(classes: int, ipc: int, d: int, seed: int, signal: float = 0.0) -> Side:
    """Class-major random features, with class centres of size `signal` shared by all seeds."""
    labels = torch.arange(classes).repeat_interleave(ipc)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99)).double()
    noise = torch.randn(len(labels), d, generator=torch.Generator().manual_seed(seed)).double()
    return signal * centres[labels] + noise, labels


def report(sides: list[Side], **given: int) -> Diversity:
    found = diversity_report([f for f, _ in sides], [c for _, c in sides], Streams(0), **given)
    assert found is not None
    return found


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA by its own formula, from centred features."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.square(x.T @ y).sum()
    return float(cross / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def oracle(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    return {
        "biased": float(dcor.distance_correlation_sqr(x, y)),
        "unbiased": float(dcor.u_distance_correlation_sqr(x, y)),
        "cka": gram_cka(x, y),
    }


def singles(count: int = 3) -> list[Side]:
    """Experts with one row per class: the pairing has no freedom, so the report is exact."""
    return [expert(9, 1, d, seed=d) for d in range(3, 3 + count)]


def replayed(sides: list[Side], i: int, j: int, orders: int) -> list[dict[str, float]]:
    """The baseline of a pair of `singles`, drawn again from its named stream, by dcor."""
    generator = Streams(0).generator(i, j, "shuffle")
    x, y = sides[i][0].numpy(), sides[j][0].numpy()
    return [oracle(x, y[torch.randperm(9, generator=generator).numpy()]) for _ in range(orders)]


def test_every_pair_and_the_mean_over_pairs() -> None:
    sides = singles()
    found = report(sides, draws=1)
    assert [pair.experts for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    expected = [oracle(a[0].numpy(), b[0].numpy()) for a, b in combinations(sides, 2)]
    for key in ("biased", "unbiased", "cka"):
        values = [pair[key] for pair in expected]
        assert [getattr(pair, key) for pair in found.pairs] == pytest.approx(values, abs=1e-12)
        assert getattr(found, key) == pytest.approx(np.mean(values), abs=1e-12)
    assert found.rows == 9
    assert found.layer == "embedding"


def test_two_experts_are_one_pair_and_list_none() -> None:
    found = report(singles(2))
    assert found.pairs == []
    assert found.shuffled is not None
    assert found.shuffled.orders == DRAWS * ORDERS


def test_a_pair_does_not_depend_on_the_other_experts() -> None:
    sides = [expert(4, 5, 6, seed=seed) for seed in (1, 2, 3)]
    two, three = report(sides[:2]), report(sides)
    first = three.pairs[0]
    for key in ("biased", "unbiased", "floor", "cka", "between", "within", "shuffled"):
        assert getattr(first, key) == getattr(two, key), key


@pytest.mark.parametrize("key", ["biased", "unbiased", "cka"])
def test_the_shuffled_baseline_is_mean_and_spread_over_the_orders_of_its_stream(key: str) -> None:
    sides = singles()
    found = report(sides, draws=1, orders=7)
    columns = []
    for pair in found.pairs:
        values = [row[key] for row in replayed(sides, *pair.experts, orders=7)]
        columns.append(values)
        assert pair.shuffled is not None
        assert pair.shuffled.orders == 7
        assert getattr(pair.shuffled, key) == pytest.approx(np.mean(values), abs=1e-12)
        std = getattr(pair.shuffled, f"{key}_std")
        assert std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert std > 0.01
    # Over all pairs: the spread of their mean, which is what the mean is to be compared with.
    together = np.mean(columns, axis=0)
    assert found.shuffled is not None
    assert getattr(found.shuffled, key) == pytest.approx(together.mean(), abs=1e-12)
    std = getattr(found.shuffled, f"{key}_std")
    assert std == pytest.approx(together.std(ddof=1), abs=1e-12)


def test_the_baseline_estimates_mean_and_spread_over_all_orders() -> None:
    """All 720 orders of six rows by dcor; the mean of the biased value is the floor, exactly."""
    sides = [expert(6, 1, d, seed=d) for d in (3, 4)]
    x, y = (side[0].numpy() for side in sides)
    every = [oracle(x, y[list(order)]) for order in permutations(range(6))]
    found = report(sides, draws=1, orders=600)
    assert found.shuffled is not None
    assert found.floor == pytest.approx(np.mean([row["biased"] for row in every]), abs=1e-12)
    assert np.mean([row["unbiased"] for row in every]) == pytest.approx(0, abs=1e-12)
    for key in ("biased", "unbiased", "cka"):
        values = [row[key] for row in every]
        mean, std = np.mean(values), np.std(values)
        assert getattr(found.shuffled, key) == pytest.approx(mean, abs=4 * std / 600**0.5)
        assert getattr(found.shuffled, f"{key}_std") == pytest.approx(std, rel=0.15)


def test_between_is_the_mean_over_all_re_pairings_within_classes() -> None:
    sides = [expert(2, 3, d, seed=d, signal=1) for d in (3, 4)]
    x, y = (side[0].numpy() for side in sides)
    scale = np.sqrt(dcor.u_distance_covariance_sqr(x, x) * dcor.u_distance_covariance_sqr(y, y))
    every = [
        dcor.u_distance_covariance_sqr(x, y[[*first, *second]]) / scale
        for first, second in product(permutations([0, 1, 2]), permutations([3, 4, 5]))
    ]
    found = report(sides)
    assert found.between == pytest.approx(np.mean(every), abs=1e-12)
    assert found.within is not None
    stored = float(dcor.u_distance_correlation_sqr(x, y))
    assert found.between + found.within == pytest.approx(stored, abs=1e-12)
    assert abs(found.within) > 1e-4


def test_it_tells_label_structure_from_the_floor() -> None:
    sides = [expert(10, 5, 64, seed=seed, signal=1) for seed in (1, 2)]
    found = report(sides)
    assert found.shuffled is not None
    assert found.unbiased > 0.3
    assert found.floor > 0.5
    assert found.shuffled.biased == pytest.approx(found.floor, abs=0.01)
    assert abs(found.shuffled.unbiased) < 0.02
    assert 0 < found.shuffled.unbiased_std < 0.1
    assert found.unbiased > found.shuffled.unbiased + 5 * found.shuffled.unbiased_std
    assert found.within is not None
    assert abs(found.within) < 0.05
    assert report(sides) == found


def test_likeness_of_the_kth_images_shows_in_the_order_they_are_stored_in() -> None:
    """Experts that are alike image by image: random pairs do not show it, the stored order does."""
    x, labels = expert(10, 5, 8, seed=1)
    found = report([(x, labels), (2 * x + 1, labels)])
    assert found.between is not None
    assert found.within is not None
    assert found.between + found.within == pytest.approx(1, abs=1e-12)
    assert abs(found.unbiased - found.between) < 0.02
    assert found.within > 0.9
    other = report([(x, labels), expert(10, 5, 8, seed=2)])
    assert other.within is not None
    assert abs(other.within) < 0.1


def test_with_one_image_per_class_the_value_is_not_split() -> None:
    alone = report([expert(20, 1, 8, seed=1)] * 2)
    assert alone.unbiased == pytest.approx(1, abs=1e-12)
    assert (alone.within, alone.between) == (None, None)
    mixed = report([expert(20, ipc, 8, seed=seed) for seed, ipc in enumerate((1, 2, 3, 3))])
    assert (mixed.within, mixed.between) == (None, None)
    rows = {pair.experts: pair.rows for pair in mixed.pairs}
    assert [rows[0, 1], rows[1, 2], rows[2, 3], mixed.rows] == [20, 40, 60, 20]
    # The k-th meets the k-th only where there are as many of each.
    assert {pair.experts for pair in mixed.pairs if pair.within is not None} == {(2, 3)}
    split = {pair.experts for pair in mixed.pairs if pair.between is not None}
    assert split == {(1, 2), (1, 3), (2, 3)}


def test_settings_of_the_loss_that_count() -> None:
    sides = [expert(4, 20, 6, seed=seed) for seed in (1, 2)]
    features, labels = [f for f, _ in sides], [c for _, c in sides]

    def made(**settings: object) -> Diversity | None:
        config = DiversityConfig.model_validate(settings)
        return diversity_report(features, labels, Streams(0), config)

    plain, capped, logits = made(), made(max_rows=24), made(layer="logits")
    assert plain is not None
    assert capped is not None
    assert logits is not None
    assert (plain.rows, capped.rows) == (80, 24)
    assert logits.layer == "logits"
    assert capped.floor > plain.floor
    # The pairing is random whatever the step does, and the whole of the classes is compared.
    assert made(reshuffle=False, within="block", pairs="all") == plain
    assert made(normalize=True) != plain


def test_it_is_none_where_it_is_undefined() -> None:
    x, labels = expert(3, 1, 6, seed=0)
    assert diversity_report([x], [labels], Streams(0)) is None
    assert diversity_report([x, x], [labels, labels], Streams(0)) is None


def test_what_does_not_fit_is_refused() -> None:
    x, labels = expert(4, 2, 6, seed=0)
    with pytest.raises(UsageError, match="one of each per expert"):
        diversity_report([x, x], [labels], Streams(0))
    with pytest.raises(UsageError, match="no class in common"):
        diversity_report([x, x], [labels, labels + 9], Streams(0))
    with pytest.raises(NonFiniteError):
        diversity_report([x, x * float("nan")], [labels, labels], Streams(0))


def test_images_with_a_graph_leave_none() -> None:
    sides = [expert(4, 5, 6, seed=seed) for seed in (1, 2)]
    features = [f.clone().requires_grad_() for f, _ in sides]
    found = diversity_report(features, [c for _, c in sides], Streams(0))
    assert found == report(sides)
