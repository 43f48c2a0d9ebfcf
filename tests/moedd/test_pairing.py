"""Pairs of experts and pairs of rows for the diversity loss."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moedd.diversity import DiversityConfig, draw_pairs
from moedd.pairing import draw_pair, pair_rows
from moedd_loaders.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draw_pair_is_uniform_over_unordered_pairs() -> None:
    generator = seeded()
    drawn = Counter(draw_pair(4, generator) for _ in range(3000))
    assert set(drawn) == {(i, j) for i in range(4) for j in range(i + 1, 4)}
    assert all(abs(count - 500) < 100 for count in drawn.values())
    assert draw_pair(2, generator) == (0, 1)


def test_draw_pairs_follows_the_setting() -> None:
    assert draw_pairs(DiversityConfig(pairs="all"), 3, seeded()) == [(0, 1), (0, 2), (1, 2)]
    assert draw_pairs(DiversityConfig(), 3, seeded(5)) == [draw_pair(3, seeded(5))]


def test_one_expert_has_no_pair() -> None:
    with pytest.raises(UsageError, match=r"1 expert.*every=0"):
        draw_pair(1, seeded())


label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@given(label_lists, label_lists, st.integers(0, 99), st.booleans(), st.integers(4, 50))
@settings(max_examples=150, deadline=None)
def test_rows_are_paired_within_classes(
    left: list[int], right: list[int], seed: int, reshuffle: bool, max_rows: int
) -> None:
    labels_i, labels_j = torch.tensor(left), torch.tensor(right)
    common = Counter(left) & Counter(right)  # min of the counts
    total = sum(common.values())
    if total == 0:
        with pytest.raises(UsageError, match="no class in common"):
            pair_rows(labels_i, labels_j, seeded(seed))
        return
    rows_i, rows_j = pair_rows(
        labels_i, labels_j, seeded(seed), reshuffle=reshuffle, max_rows=max_rows
    )
    assert torch.equal(labels_i[rows_i], labels_j[rows_j])
    assert len(set(rows_i.tolist())) == len(rows_i) == min(total, max_rows)
    assert len(set(rows_j.tolist())) == len(rows_j)
    assert labels_i[rows_i].tolist() == sorted(labels_i[rows_i].tolist())
    share = min(1.0, max_rows / total)
    taken = Counter(labels_i[rows_i].tolist())
    for label, count in common.items():
        assert math.floor(share * count) <= taken[label] <= math.ceil(share * count)


def test_unequal_counts_reach_every_row_over_time() -> None:
    labels_i, labels_j = torch.tensor([0, 1, 0, 0, 1, 0, 7]), torch.tensor([1, 0, 0, 8])
    generator, seen = seeded(), Counter[int]()
    for _ in range(400):
        rows_i, rows_j = pair_rows(labels_i, labels_j, generator)
        assert labels_i[rows_i].tolist() == labels_j[rows_j].tolist() == [0, 0, 1]
        seen.update(rows_i.tolist())
    assert set(seen) == {0, 1, 2, 3, 4, 5}  # 6 has no partner class
    assert all(abs(seen[row] - 200) < 50 for row in seen)  # half of the calls each


def test_reshuffle_off_pairs_storage_order() -> None:
    labels = torch.tensor([2, 0, 2, 0, 1])
    rows_i, rows_j = pair_rows(labels, labels, seeded(), reshuffle=False)
    assert rows_i.tolist() == rows_j.tolist() == [1, 3, 4, 0, 2]
    many = torch.arange(3).repeat(40)
    rows_i, rows_j = pair_rows(many, many, seeded(), reshuffle=False, max_rows=30)
    assert torch.equal(rows_i, rows_j)
    assert len(rows_i) == 30


def test_reshuffle_redraws_every_call_and_repeats_from_its_seed() -> None:
    labels = torch.zeros(30, dtype=torch.int64)
    generator = seeded(1)
    first, second = (pair_rows(labels, labels, generator) for _ in range(2))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], first[1])
    again = pair_rows(labels, labels, seeded(1))
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])


def test_more_classes_than_rows_gives_every_class_its_turn() -> None:
    labels, generator = torch.arange(50), seeded()
    seen = Counter[int]()
    for _ in range(300):
        seen.update(pair_rows(labels, labels, generator, max_rows=10)[0].tolist())
    assert len(seen) == 50
    assert all(abs(count - 60) < 35 for count in seen.values())
