"""Named random streams: different names, different numbers; nothing else decides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moedd.streams import Streams


def numbers(streams: Streams, *names: str | int) -> list[float]:
    return torch.rand(4, generator=streams.generator(*names)).tolist()


def test_streams_of_different_names_differ() -> None:
    streams = Streams(0)
    names = [("expert", e, p, s) for e in range(4) for p in ("real", "augment") for s in range(50)]
    names += [("expert",), ("pool",), ("pool", 1), ("pool", 11), ("pool", 1, 1), (1,), ()]
    assert len({tuple(numbers(streams, *name)) for name in names}) == len(names)


def test_seeds_make_other_streams_negative_and_large_ones_too() -> None:
    seeds = [0, 1, 2, -1, 2**31, 2**32, 2**32 + 1, 2**63, 2**80]
    assert len({tuple(numbers(Streams(seed), "a")) for seed in seeds}) == len(seeds)


@given(st.permutations(["real", "augment", "init", "network"]), st.integers(0, 3))
def test_the_order_of_use_is_without_effect(order: list[str], taken: int) -> None:
    streams = Streams(5).scope("expert", 1)
    fresh = {name: numbers(Streams(5).scope("expert", 1), name, 7) for name in order}
    for name in order:
        torch.rand(taken, generator=streams.generator(name, 6))
        assert numbers(streams, name, 7) == fresh[name]
        assert numbers(streams, name, 7) == fresh[name]  # asked again, it starts again


def test_a_scope_is_a_prefix_of_names() -> None:
    streams = Streams(3)
    assert numbers(streams.scope("expert", 2).scope("step"), 9) == numbers(
        streams, "expert", 2, "step", 9
    )
    assert streams.scope("a").key("b") == streams.key("a", "b") != streams.key("b", "a")


def test_neither_reading_nor_making_a_stream_touches_the_global_state() -> None:
    before = torch.get_rng_state()
    numbers(Streams(1).scope("x"), "y")
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_are_63_bit_numbers_that_stay_the_same_between_versions() -> None:
    # A changed derivation silently changes every set: this number may never change.
    assert Streams(0).scope("expert", 1).key("step", 5) == 6356137676148432606
    assert all(0 <= Streams(s).key("a") < 2**63 for s in range(100))


@pytest.mark.parametrize("name", [("a",), ("b", 3)])
def test_numbers_of_a_stream_are_uniform(name: tuple[str | int, ...]) -> None:
    first = torch.tensor([numbers(Streams(0), *name, k)[0] for k in range(1000)])
    assert abs(float(first.mean()) - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
    assert float(first.min()) < 0.02
    assert float(first.max()) > 0.98
