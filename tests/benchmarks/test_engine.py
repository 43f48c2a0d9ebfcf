"""The benchmark command: its rows, and that its plain side computes what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import jobs, reference
from benchmarks.workers import Here, Timed, Worker
from moedd.profile import Profile

ROOT = Path(__file__).resolve().parents[2]


def test_rows_have_the_stated_keys() -> None:
    command = ["-m", "benchmarks.engine", "--quick", "--json", "--only", "diversity_step"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)
    assert [row["profile"] for row in rows] == ["float32", "fast"]
    for row in rows:
        assert set(row) == {
            "name", "profile", "baseline_ms", "baseline_tuned_ms", "engine_ms", "ratio", "gflops",
            "peak_mb", "scaled",
        }  # fmt: skip
        assert row["name"] == "diversity_step"
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["engine_ms"], rel=0.01)
        assert row["peak_mb"] > 50
    assert "threads" in done.stderr


@pytest.mark.parametrize("name", [*jobs.NAMES, *jobs.EXTRA])
def test_both_sides_of_every_row_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, value in {"WIDTH": 8, "PER_CLASS": 20, "QUICK_BATCH": 2, "TRAIN_BATCH": 8}.items():
        monkeypatch.setattr(jobs, what, value)
    quick = jobs.Setting("engine", quick=True, ipc=1)
    for parts in (
        jobs._engine(name, quick, Profile(compiled=False)),
        jobs._baseline(name, jobs.Setting("baseline", quick=True, ipc=1)),
    ):
        assert all(count > 0 for count, _ in parts)
        assert jobs._run(parts, True, "cpu") > 0


def test_unknown_names_are_listed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--only", "sorting"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "idc_inner_step" in done.stderr


def test_a_failing_job_is_an_error_here() -> None:
    def make(name: str) -> Timed:
        raise ValueError(f"no such shape: {name}")

    with Worker(make) as worker, pytest.raises(RuntimeError, match="no such shape: square"):
        worker.turn("square")


@pytest.mark.parametrize("kind", [Worker, Here])
def test_a_worker_makes_each_job_once_and_runs_it_by_name(kind: type[Worker]) -> None:
    made: list[str] = []

    def make(name: str) -> Timed:
        made.append(name)
        return lambda: len(made) + len(name) / 10

    with kind(make) as worker:
        worker.begin("one")
        worker.begin("three")
        worker.ready()
        worker.forget_peak()
        assert worker.turn("three") == 2.5
        assert worker.turn("one") == worker.turn("one") == 2.3
        assert worker.turn("seventeen") == 3.9
        assert worker.peak_mb() > 1


def test_plain_distance_correlation_is_dcors() -> None:
    import dcor

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = y + x
    expected = dcor.distance_correlation_sqr(x.numpy(), y.numpy())
    assert float(reference.distance_correlation(x, y)) == pytest.approx(expected, rel=1e-9)
