"""The expert-balanced batch sampler."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moedd_loaders.errors import UsageError
from moedd_loaders.samplers import ExpertBatchSampler


def owners(*sizes: int) -> torch.Tensor:
    """Expert ids 0, 3, 6, ... of so many images each, interleaved."""
    ids = torch.cat([torch.full((size,), 3 * e) for e, size in enumerate(sizes)])
    return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))]


@given(
    sizes=st.lists(st.integers(1, 23), min_size=1, max_size=4),
    batch=st.integers(1, 13),
    world=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_laws(sizes: list[int], batch: int, world: int) -> None:
    experts = owners(*sizes)
    if batch < len(sizes):
        with pytest.raises(UsageError, match="one image of each"):
            ExpertBatchSampler(experts, batch)
        return
    ranks = [ExpertBatchSampler(experts, batch, rank=r, world=world) for r in range(world)]
    epochs = [list(rank) for rank in ranks]
    counts = {len(batches) for batches in epochs}
    total = -(-max(sizes) * len(sizes) // batch)
    assert counts == {len(ranks[0])} == {-(-total // world)}
    for rows in [rows for batches in epochs for rows in batches]:
        assert len(rows) == batch
        per_expert = Counter(experts[rows].tolist())
        assert len(per_expert) == len(sizes)
        assert max(per_expert.values()) - min(per_expert.values()) <= 1
    # Every image at least once, over all ranks; no image of an expert twice before all came once.
    seen = Counter(row for batches in epochs for rows in batches for row in rows)
    assert set(seen) == set(range(len(experts)))


def test_equal_experts_have_every_image_exactly_once() -> None:
    sampler = ExpertBatchSampler(owners(12, 12), 8)
    for _ in range(3):
        batches = list(sampler)
        assert sorted(row for rows in batches for row in rows) == list(range(24))
        assert len(batches) == len(sampler) == 3


def test_a_smaller_expert_is_recycled_evenly() -> None:
    experts = owners(30, 4)
    seen = Counter(row for rows in ExpertBatchSampler(experts, 6) for row in rows)
    small = [seen[row] for row in torch.nonzero(experts == 3)[:, 0].tolist()]
    assert sum(small) == 30
    assert max(small) - min(small) <= 1
    assert {seen[row] for row in torch.nonzero(experts == 0)[:, 0].tolist()} == {1}


def test_classes_take_turns_within_an_expert() -> None:
    experts = torch.arange(40) % 2
    labels = torch.arange(40) // 2 % 5
    for rows in ExpertBatchSampler(experts, 10, labels=labels):
        for expert in (0, 1):
            own = [row for row in rows if experts[row] == expert]
            assert sorted(labels[own].tolist()) == [0, 1, 2, 3, 4]


def test_epochs_differ_seeds_repeat_and_epochs_can_be_resumed() -> None:
    a, b = (ExpertBatchSampler(owners(9, 9), 6, seed=4) for _ in range(2))
    first, second = list(a), list(a)
    assert first != second
    assert list(b) == first
    assert list(ExpertBatchSampler(owners(9, 9), 6, seed=5)) != first
    b.set_epoch(1)
    assert list(b) == second
    state = torch.get_rng_state()
    list(a)
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_use() -> None:
    for given_, message in (
        ({"experts": torch.zeros(2, 2), "batch_size": 4}, r"shape \(2, 2\)"),
        ({"experts": [0, 1], "batch_size": 2, "labels": [0]}, r"labels \(1,\)"),
        ({"experts": [], "batch_size": 2}, "N >= 1"),
        ({"experts": [0, 1], "batch_size": 2, "rank": 2, "world": 2}, "rank is 2 of 2"),
    ):
        with pytest.raises(UsageError, match=message):
            ExpertBatchSampler(**given_)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="epoch is -1"):
        ExpertBatchSampler([0, 1], 2).set_epoch(-1)
