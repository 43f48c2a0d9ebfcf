"""Coresets: which real images they choose, against slow versions and a guarantee."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from enginefactories import digits, make_expert, make_parts, make_pool, random_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from moedd.experts.coreset import FeatureCoreset, herding, kcenter
from moedd_loaders.errors import DataError, UsageError

METHODS = ("random", "herding", "kcenter")


# -- slow versions, in NumPy's float64, written from the definitions ---------------------------
def slow_herding(x: np.ndarray, k: int) -> list[int]:
    mean, chosen = x.mean(axis=0), []
    for _ in range(k):
        gaps = {
            i: float(np.linalg.norm(mean - x[[*chosen, i]].mean(axis=0)))
            for i in range(len(x))
            if i not in chosen
        }
        chosen.append(min(gaps, key=lambda i: (gaps[i], i)))
    return chosen


def slow_kcenter(x: np.ndarray, k: int) -> list[int]:
    central = [float(np.linalg.norm(row - x.mean(axis=0))) for row in x]
    chosen = [central.index(min(central))]
    while len(chosen) < k:
        gaps = {
            i: min(float(np.linalg.norm(x[i] - x[j])) for j in chosen)
            for i in range(len(x))
            if i not in chosen
        }
        chosen.append(max(gaps, key=lambda i: (gaps[i], -i)))
    return chosen


def radius(x: np.ndarray, centers: Any) -> float:
    """How far the farthest row is from its nearest centre."""
    distances = np.linalg.norm(x[:, None] - x[list(centers)][None], axis=2)
    return float(distances.min(axis=1).max())


def cloud(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


@given(st.integers(1, 25), st.integers(1, 6), st.integers(0, 10_000), st.data())
@settings(max_examples=40, deadline=None)
def test_choices_equal_a_slow_float64_version(n: int, d: int, seed: int, data: Any) -> None:
    k = data.draw(st.integers(1, n))
    x = cloud(n, d, seed)
    ours = kcenter(x, k).tolist()
    # Two rows are equally far from their mean, but for rounding.
    assert n == 2 or ours == slow_kcenter(x.numpy(), k)
    # The last choice of herding among all rows, and any choice among two, can be a draw of
    # distances that are equal but for rounding: compare how well it follows the mean instead.
    ours, theirs = herding(x, k).tolist(), slow_herding(x.numpy(), k)
    gaps = [
        np.linalg.norm(x.mean(0).numpy() - x.numpy()[rows[: j + 1]].mean(0))
        for rows in (ours, theirs)
        for j in range(k)
    ]
    np.testing.assert_allclose(gaps[:k], gaps[k:], atol=1e-12)
    if n > 2 and k < n:
        assert ours == theirs


@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 10_000), st.data())
@settings(max_examples=40, deadline=None)
def test_kcenter_covers_within_twice_the_smallest_radius(
    n: int, d: int, seed: int, data: Any
) -> None:
    k = data.draw(st.integers(1, min(n, 4)))
    x = cloud(n, d, seed).numpy()
    best = min(radius(x, centers) for centers in combinations(range(n), k))
    assert radius(x, kcenter(torch.from_numpy(x), k).tolist()) <= 2 * best + 1e-12


def test_herding_follows_the_mean_far_better_than_a_random_choice() -> None:
    x = cloud(200, 8, 5)
    chosen = (x[herding(x, 10)].mean(0) - x.mean(0)).norm()
    drawn = [(x[cloud(200, 1, s).argsort(0)[:10, 0]].mean(0) - x.mean(0)).norm() for s in range(20)]
    assert chosen < 0.5 * min(drawn)


@pytest.mark.parametrize("select", [herding, kcenter])
def test_copies_of_one_image_are_chosen_once_each(select: Any) -> None:
    x = torch.ones(5, 3, dtype=torch.float64)
    assert sorted(select(x, 5).tolist()) == [0, 1, 2, 3, 4]


# -- the experts -------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11)])
def test_stored_images_are_different_real_images_of_the_expert_s_part(
    method: str, shape: tuple[int, int, int]
) -> None:
    for part in make_parts(random_data((20, 13), shape), 2, ipc=3):
        expert = make_expert(method, part, ipc=3)
        assert expert.images.shape == (6, *shape)
        assert (expert.steps, expert.decode_rule.kind, expert.soft_labels) == (0, "none", None)
        for c in range(2):
            own = part.unit(part.rows[c]).flatten(1)
            stored = expert.images[expert.rows(c)].flatten(1)
            places = (stored[:, None] == own[None]).all(2).nonzero()
            assert len(places) == len(places[:, 1].unique()) == 3
        assert torch.equal(expert.unit_images(), expert.images)


@pytest.mark.parametrize("method", METHODS)
def test_choices_depend_on_the_seed_alone_where_anything_is_drawn(method: str) -> None:
    real = digits(3, 30)
    state = torch.get_rng_state()
    one, same, other = (make_expert(method, real, seed=s, pool=make_pool(real)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.images, other.images) is (method != "random")


@pytest.mark.parametrize(("method", "slow"), [("herding", slow_herding), ("kcenter", slow_kcenter)])
@pytest.mark.parametrize("age", [None, 0, 100])
def test_features_are_those_of_the_pool_s_network_of_the_stated_age(
    method: str, slow: Any, age: int | None
) -> None:
    real = digits(2, 30)
    pool = make_pool(real, 3)  # of 0, 100 and 200 steps
    if age == 0:
        with pytest.raises(ValueError, match="age"):
            make_expert(method, real, pool=pool, age=age)
        return
    expert = make_expert(method, real, pool=pool, ipc=4, age=age)
    network = pool.stored[2 if age is None else 1]
    for c, rows in enumerate(expert.part.rows):
        features, _ = functional_call(
            pool.network, network.parameters, (expert.part.normalized(rows),), {"features": True}
        )
        wanted = rows[slow(features.double().numpy(), 4)]
        assert torch.equal(expert.images[expert.rows(c)], expert.part.unit(wanted))
    assert expert.measured == {
        "feature_network_steps": network.steps,
        "feature_network_accuracy": network.accuracy_percent / 100,
    }


def test_the_choice_changes_with_the_age() -> None:
    real = digits(3, 60)
    pool = make_pool(real, 3)
    first, last = (make_expert("kcenter", real, pool=pool, ipc=5, age=a) for a in (100, 200))
    assert isinstance(first, FeatureCoreset)
    assert not torch.equal(first.images, last.images)


def test_an_age_that_the_pool_does_not_keep_lists_those_it_does() -> None:
    with pytest.raises(UsageError, match=r"kcenter.age is 150 .* 0, 100, 200 training steps"):
        make_expert("kcenter", digits(2, 8), age=150)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 3])
def test_a_class_with_too_few_images_is_named(method: str, count: int) -> None:
    with pytest.raises(DataError, match=f"class 'class 1' has {count} images .* at least 4"):
        make_expert(method, random_data((9, count)), ipc=4)


@pytest.mark.parametrize("method", METHODS)
def test_there_is_nothing_to_optimise(method: str) -> None:
    with pytest.raises(ValueError, match="steps"):
        make_expert(method, digits(2, 8), steps=5)
