"""Parts of the real data: disjoint, stratified, equal to within one image, reproducible."""

from dataclasses import replace

import pytest
import torch
from enginefactories import digits, random_data
from hypothesis import given, settings
from hypothesis import strategies as st

from moedd.parts import PartData, PartRule, denormalize, normalize, split_parts, whole
from moedd.realdata import RealData
from moedd.streams import Streams
from moedd_loaders.errors import DataError


def numbered(counts: list[int]) -> RealData:
    """Every image says which row of the training split it is: its first two pixels."""
    real = random_data(counts)
    rows = torch.arange(len(real.train))
    real.train.images[:, 0, 0, 0] = (rows // 256).to(torch.uint8)
    real.train.images[:, 0, 0, 1] = (rows % 256).to(torch.uint8)
    return real


def rows_of(part: PartData) -> list[int]:
    first, second = part.images[:, 0, 0, 0].long(), part.images[:, 0, 0, 1].long()
    return (first * 256 + second).tolist()


def split(
    real: RealData, experts: int, *, rule: PartRule = "stratified", seed: int = 0, ipc: int = 1
) -> list[PartData]:
    return split_parts(real, experts, rule, Streams(seed), ipc)


@given(st.lists(st.integers(5, 40), min_size=2, max_size=5), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_parts_are_disjoint_and_complete_and_as_equal_as_can_be(
    counts: list[int], experts: int, seed: int
) -> None:
    real = numbered(counts)
    parts = split(real, experts, seed=seed)
    assert sorted(row for part in parts for row in rows_of(part)) == list(range(sum(counts)))
    for c, count in enumerate(counts):
        sizes = [len(part.rows[c]) for part in parts]
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
    for e, part in enumerate(parts):
        assert (part.of, part.index, part.rule) == (experts, e, "stratified")
        for c, rows in enumerate(part.rows):
            assert part.labels[rows].unique().tolist() == [c]
        assert torch.cat(part.rows).tolist() == list(range(len(part.labels)))
        assert torch.equal(real.train.labels[rows_of(part)], part.labels)
        assert torch.equal(real.train.images[rows_of(part)], part.images)
    assert len({part.fingerprint for part in parts}) == experts


def test_odd_images_go_to_different_parts() -> None:
    parts = split(random_data([11] * 6), 2)
    assert [len(part.labels) for part in parts] == [33, 33]


def test_parts_are_a_function_of_data_and_seed() -> None:
    real = numbered([20, 20])
    one, same, other = (split(real, 2, seed=seed) for seed in (1, 1, 2))
    assert [rows_of(p) for p in one] == [rows_of(p) for p in same]
    assert [p.fingerprint for p in one] == [p.fingerprint for p in same]
    assert [p.fingerprint for p in one] != [p.fingerprint for p in other]
    assert set(rows_of(one[0])) != set(rows_of(other[0]))
    # The shares are shuffled: they are no stretches of the data.
    assert rows_of(one[0])[:10] != sorted(rows_of(one[0])[:10])
    edited = replace(real, fingerprint="sha256:other")
    assert split(edited, 2, seed=1)[0].fingerprint != one[0].fingerprint


def test_the_rule_all_gives_everybody_everything_in_an_order_of_its_own() -> None:
    parts = split(numbered([15, 12]), 3, rule="all")
    for part in parts:
        assert sorted(rows_of(part)) == list(range(27))
        assert [len(rows) for rows in part.rows] == [15, 12]
        assert part.rule == "all"
    assert len({tuple(rows_of(part)[:5]) for part in parts}) == 3
    assert len({part.fingerprint for part in parts}) == 3


def test_a_class_too_small_for_its_parts_is_named() -> None:
    real = random_data([20, 5, 20])
    with pytest.raises(DataError, match="class 'class 1' has 5 training images") as caught:
        split(real, 3, ipc=2)
    assert "at least 6" in str(caught.value)
    assert caught.value.exit_code == 2
    split(real, 2, ipc=2)  # 5 images are parts of 3 and 2
    with pytest.raises(DataError, match="class 'class 1'"):
        split(real, 1, rule="all", ipc=6)
    split(real, 7, rule="all", ipc=5)


def test_the_whole_is_one_part_in_the_order_of_the_data() -> None:
    real = numbered([6, 9])
    part = whole(real)
    assert (part.of, part.index, part.rule) == (1, 0, "all")
    for c, rows in enumerate(part.rows):
        of_class = torch.nonzero(real.train.labels == c).flatten()
        assert torch.equal(part.images[rows], real.train.images[of_class])
    assert part.source_fingerprint == real.fingerprint
    assert part.fingerprint == whole(real).fingerprint != real.fingerprint


def test_a_part_carries_what_experts_need_to_know() -> None:
    real = digits(3)
    part = split(real, 2)[1]
    assert (part.data, part.classes, part.flip) == ("digits", ("0", "1", "2"), real.flip)
    assert (part.mean, part.std, part.shape) == (real.mean, real.std, (1, 8, 8))
    assert part.images.dtype == torch.uint8


def test_unit_and_normalised_pixels() -> None:
    real = random_data([4, 4], (3, 8, 9))
    part = whole(real)
    rows = torch.tensor([5, 1])
    unit = part.unit(rows)
    assert unit.dtype == torch.float32
    assert torch.equal(unit, part.images[[5, 1]].float() / 255)
    torch.testing.assert_close(part.normalized(rows), real.normalized(part.images[rows]))
    back = denormalize(normalize(unit * 9 - 4, part.mean, part.std), part.mean, part.std)
    torch.testing.assert_close(back, unit * 9 - 4, rtol=1e-5, atol=1e-5)  # nothing is clipped
