"""Two gloo processes: every image once over both, equally many batches, streams of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from images_in_memory import memory

from moedd_loaders import draws
from moedd_loaders.batches import shares

SPAWNED = 3
WORKER = Path(__file__).parents[1] / "ddp_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes wrote."""
    folder = tmp_path_factory.mktemp("ddp")
    paths = [str(WORKER.parent), *(p for p in sys.path if p)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment = {k: v for k, v in environment.items() if k not in ("RANK", "WORLD_SIZE")}
    running = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(folder)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_dataloader_with_a_distributed_sampler(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["loader"] for rank in ranks)
    assert first["counts"] == second["counts"] == [4] * 6
    for a, b in zip(first["rows"], second["rows"], strict=True):
        assert sorted(a + b) == list(range(20))


def test_a_sample_that_changes_ranks_is_mixed_anew(ranks: list[dict[str, Any]]) -> None:
    # With one stream for all, a rank would repeat what the other drew for a sample before.
    assert not set(ranks[0]["lam"]) & set(ranks[1]["lam"])
    pixels = [x for rank in ranks for epoch in rank["loader"]["pixels"] for x in epoch]
    assert len(set(pixels)) == len(pixels) == 60


def test_spawned_workers_know_the_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["passes"][SPAWNED][0] == rank["loader"]["pixels"][0]


@pytest.mark.parametrize(("name", "n"), [("odd", 13), ("short", 9)])
def test_resident_batches_cover_all_images_once(
    ranks: list[dict[str, Any]], name: str, n: int
) -> None:
    for a, b in zip(ranks[0][name], ranks[1][name], strict=True):
        assert len(a) == len(b)
        assert sorted(row for batch in a + b for row in batch) == list(range(n))
    assert ranks[0][name][0] != ranks[0][name][1]


def test_where_sizes_cannot_be_equal_otherwise_one_image_comes_twice(
    ranks: list[dict[str, Any]],
) -> None:
    for a, b in zip(ranks[0]["one"], ranks[1]["one"], strict=True):
        assert len(a) == len(b) == 3
        assert {row for batch in a + b for row in batch} == set(range(5))
    for a, b in zip(ranks[0]["dropped"], ranks[1]["dropped"], strict=True):
        assert [len(batch) for batch in a] == [len(batch) for batch in b] == [4]


def test_transforms_and_samplers_differ_by_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["mixed"] != ranks[1]["mixed"]
    rows = [row for rank in ranks for batch in rank["balanced"] for row in batch]
    assert sorted(rows) == list(range(40))


def test_loaders_made_before_the_process_group_serve_their_share(
    ranks: list[dict[str, Any]],
) -> None:
    rows = [row for rank in ranks for batch in rank["early"] for row in batch]
    assert sorted(rows) == list(range(13))
    rows = [row for rank in ranks for batch in rank["early_balanced"] for row in batch]
    assert sorted(rows) == list(range(40))


def test_fusion_ends_after_as_many_passes_as_with_one_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for passes in rank["passes"]:
            whole = [[x == round(x) for x in served] for served in passes]
            assert [any(served) for served in whole[:2]] == [False, False]
            assert [all(served) for served in whole[2:]] == [True, True]


def test_a_network_trains_in_step(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_rank_zero_draws_as_one_process_does(ranks: list[dict[str, Any]]) -> None:
    plan = memory(20, fuse="mixup", seed=3).plan(*torch.tensor([[*range(20)], [0] * 20]).numpy())
    assert ranks[0]["lam"] == plan.weight[:, 0].tolist()
    seeds = [draws.of_rank(5, rank) for rank in range(100)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 100


def test_torchrun_tells_the_rank_before_the_group_does(monkeypatch: pytest.MonkeyPatch) -> None:
    one = memory(fuse="mixup").served_counts.rank
    assert one() == 0
    monkeypatch.setenv("RANK", "3")
    assert one() == 0  # somebody else's variable
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert one() == 3


@given(n=st.integers(1, 60), batch=st.integers(1, 9), world=st.integers(1, 5), drop=st.booleans())
def test_shares(n: int, batch: int, world: int, drop: bool) -> None:
    if n < world:
        return
    sizes = [shares(n, batch, rank, world, drop) for rank in range(world)]
    assert len({len(own) for own in sizes}) == 1
    assert all(1 <= size <= batch for own in sizes for size in own)
    total = sum(map(sum, sizes))
    if drop:
        assert all(size == batch for own in sizes for size in own)
        assert n - world * batch < total <= n
    elif batch > 1:
        assert total == n
    else:
        assert n <= total < n + world
    if world == 1 and not drop:
        assert sizes[0] == [batch] * (n // batch) + ([n % batch] if n % batch else [])
