"""`moedd tables --ray`: what was asked for and what a cluster has become cells at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from moedd.papertables import onray
from moedd.papertables.asked import Asked
from moedd.papertables.raycluster import Machine, Where
from moedd.progress import Reporter
from moedd_loaders.errors import NetworkError, UsageError


def settle(
    monkeypatch: pytest.MonkeyPatch, found: list[Machine], **given: Any
) -> tuple[Asked, list[int]]:
    """On a cluster of these machines: what is settled, and the CPUs of a Ray started here."""
    started: list[int] = []

    @contextmanager
    def joined(at: Where, cpus: int) -> Iterator[None]:
        started.append(cpus)
        yield

    monkeypatch.setattr(onray, "joined", joined)
    monkeypatch.setattr(onray, "where", lambda asked: Where("10.0.0.1:6379", "--ray 10.0.0.1:6379"))
    monkeypatch.setattr(onray, "machines", lambda: found)
    with onray.on_ray(Asked(ray="auto", **given), Reporter(quiet=True)) as (settled, _):
        return settled, started


CPUS, GPUS, HEAD = Machine(16, 0), Machine(64, 8), Machine(0, 0)


@pytest.mark.parametrize(
    ("found", "given", "threads", "gpus", "at_once"),
    [
        ([CPUS, CPUS], {}, 16, 0, 2),  # a machine each
        ([CPUS, CPUS], {"threads": 4}, 4, 0, 8),
        ([CPUS, CPUS], {"jobs": 4}, 8, 0, 4),
        ([CPUS, CPUS], {"jobs": 100}, 1, 0, 100),
        ([CPUS, Machine(4, 0)], {}, 4, 0, 5),  # none is left out
        ([HEAD, CPUS], {}, 16, 0, 1),
        ([HEAD, GPUS], {}, 8, 1, 8),
        ([CPUS, GPUS, GPUS], {}, 8, 1, 16),
        ([GPUS], {"gpus_per_cell": 0.5}, 4, 0.5, 16),
        ([GPUS], {"gpus_per_cell": 0.0}, 64, 0, 1),
        ([GPUS], {"gpus_per_cell": 2.0, "jobs": 2}, 16, 2, 2),
    ],
)
def test_what_is_not_said_is_settled_by_the_cluster(
    found: list[Machine],
    given: dict[str, Any],
    threads: int,
    gpus: float,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settled, _ = settle(monkeypatch, found, **given)
    assert (settled.threads, settled.gpus_per_cell, settled.at_once) == (threads, gpus, at_once)


def test_a_ray_started_here_has_the_cpus_of_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert settle(monkeypatch, [CPUS], jobs=2)[1] == [8]
    assert settle(monkeypatch, [CPUS], jobs=2, threads=3)[1] == [6]
    assert settle(monkeypatch, [CPUS], jobs=16)[1] == [16]


@pytest.mark.parametrize(
    ("gpus", "profile", "precision"),
    [(1.0, "fast", "bfloat16"), (1.0, None, "float32"), (0.0, "fast", "float32")],
)
def test_cells_are_meant_as_the_machines_compute(
    gpus: float, profile: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here no unit multiplies bfloat16; a GPU does."""
    monkeypatch.setattr("moedd.profile.bfloat16_units", lambda: "none")
    settled, _ = settle(monkeypatch, [GPUS], gpus_per_cell=gpus, profile=profile)
    assert settled.options().distilling.precision == precision
    assert settled.options().evaluating.precision == precision


def test_parts_of_gpus_that_ray_does_not_give() -> None:
    with (
        pytest.raises(UsageError, match=r"--gpus-per-cell 1\.5 given"),
        onray.on_ray(Asked(ray="auto", gpus_per_cell=1.5), Reporter(quiet=True)),
    ):
        pass


def test_without_ray_an_address_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onray, "is_installed", lambda: False)
    with (
        pytest.raises(NetworkError, match=r'not installed here: pip install "moedd\[ray\]"'),
        onray.on_ray(Asked(ray="10.0.0.1:6379"), Reporter(quiet=True)),
    ):
        pass
