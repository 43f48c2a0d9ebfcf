"""`benchmarks.loader`: its rows, and that both sides are given the same work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import loader


def test_rows_and_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "SIZES", (100, 600))
    loader.main(["--quick", "--json", "--rounds", "3"])
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [(row["name"], row["n"]) for row in rows] == [
        ("batches", 100), ("dataloader", 100), ("batches", 600), ("dataloader", 600),
    ]  # fmt: skip
    for row in rows:
        assert row["ratio"] == pytest.approx(row["torchvision_ms"] / row["moedd_ms"], rel=0.05)
        assert row["floor_ms"] > 0
    assert rows[0]["moved_mb"] == pytest.approx(3 * 100 * 12_288 / 1e6, abs=0.1)
    assert "GB/s" in printed.err


@pytest.mark.parametrize("name", ["torchvision", "batches", "dataloader"])
def test_every_side_mixes_all_images_once(name: str) -> None:
    images, _, experts = loader.data(300)
    assert experts.unique().tolist() == [0, 1]
    found = list(loader.sides(300)[name])
    assert [len(x) for x, _ in found] == [256, 44]
    targets = torch.cat([y for _, y in found])
    assert targets.shape == (300, loader.CLASSES)
    torch.testing.assert_close(targets.sum(1), torch.ones(300))
    mixed = torch.cat([x for x, _ in found])
    assert mixed.dtype == torch.float32
    # Each anchor is in it once: the mean over all mixed images is that of the images, on average.
    assert mixed.mean() == pytest.approx(float(images.mean()), abs=2e-3)
    assert mixed.var() < images.var()


def test_small_epochs_are_faster_than_torchvisions_on_a_busy_machine_too() -> None:
    """Far below what a quiet machine gives (4 and more): the best of a few tries counts."""
    ratios: list[float] = []
    while len(ratios) < 5 and max(ratios, default=0) <= 1.5:
        batches, _ = loader.measure(100, rounds=3)
        ratios.append(batches["ratio"])
    assert max(ratios) > 1.5


@pytest.mark.slow
def test_the_ratios_that_are_promised() -> None:
    """`python -m pytest -m slow tests/benchmarks/test_loader.py`, on a machine that is quiet."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--quick", "--json"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    rows = {(row["name"], row["n"]): row["ratio"] for row in json.loads(done.stdout)}
    assert rows["batches", 100] >= 4
    assert rows["batches", 50_000] >= 2.5
    assert rows["dataloader", 100] >= 1
    assert rows["dataloader", 50_000] >= 1
