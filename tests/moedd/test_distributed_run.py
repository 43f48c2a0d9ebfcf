"""One run of many processes makes the set of a single one, and survives the loss of a rank."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import ranks_worker
import torch
from rankfactories import LIVE, difference, finished, kill_rank, run_on, sentences, torchrun
from runfactories import cli, payload, tiny_arguments, tiny_run

from moedd.checkpoint import load_meta
from moedd.runstate import RunFolder
from moedd_loaders.manifest import read_manifest
from moedd_loaders.validate import validate_set

CLOSE = 1e-5
ENDED_WITHIN = 30.0  # seconds; it takes about five on a machine that has nothing else to do
NAME = "digits-idm-1x2"
LONG = ("idm.steps=30", "diversity.every=4", "idm.batch_real=16")
LONGER = (*LONG, "idm.steps=100")

FEW: dict[str, Sequence[str]] = {
    "mixed": ("digits-idm+idc-1x2", "idc.steps=3", *LIVE),
    "dc": ("digits-dc-1x1",),
}
"""Made by default: two methods on two ranks; one expert whose classes and network are spread."""
MANY: dict[str, Sequence[str]] = {
    **FEW,
    "three": ("digits-idm+dm+idc-1x3", *LIVE),
    "mtt": ("digits-mtt+rded-1x2",),
    "live": ("digits-idc-2x1", *LIVE),
    "each": ("digits-idm-1x2", "pool.train_on=part", "diversity.pairs=all"),
    "odd": ("noise-idm+dsa-2x2",),
    "odd-three": ("noise-idc+dm+dc-1x3",),
    "odd-one": ("noise-dsa-1x1",),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What ranks have, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cached(home: Path) -> dict[str, bytes]:
    """Pool networks, trajectories and observers by path."""
    kinds = ("pools", "trajectories")
    files = [path for kind in kinds for path in (home / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def log_of(home: Path, called: str) -> bytes:
    return (home / "runs" / called / "log.jsonl").read_bytes()


def same(one: Path, many: Path, called: str, ranks: int, whole_experts: bool) -> None:
    """The two homes' sets `called` are equal: byte by byte where no expert was shared."""
    a, b = one / "sets" / called, many / "sets" / called
    assert validate_set(b).provenance.ranks == ranks
    if whole_experts:
        assert payload(a) == payload(b)
        assert log_of(one, called) == log_of(many, called)
    assert difference(a, b) <= CLOSE
    left = sorted(path.name for path in (many / "runs" / called).iterdir())
    assert left == ["log.jsonl", "preview.png"]


def compare(home: Path, ranks: int, runs: Mapping[str, Sequence[str]], monkeypatch) -> str:  # type: ignore[no-untyped-def]
    """Make the runs in one process and on `ranks`, and compare; returns what the job said."""
    one, many = home / "one", home / "many"
    monkeypatch.setenv("MOEDD_HOME", str(one))
    for called, spec in runs.items():
        ranks_worker.make(called, *spec)
    said = run_on(many, ranks, runs)
    for called, (name, *_) in runs.items():
        experts = int(name.rpartition("x")[2])
        same(one, many, called, ranks, whole_experts=ranks <= experts)
    assert cached(one) == cached(many)
    return said


def test_two_ranks_make_what_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = compare(tmp_path, 2, FEW, monkeypatch)
    # Only one rank talks.
    assert said.count("2 ranks: ") == 2
    assert "2 ranks: expert 0 on ranks 0-1" in said


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_many_ranks_make_what_one_makes(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(tmp_path, ranks, MANY, monkeypatch)


# ------------------------------------------------------------------------------- lost ranks


def start(home: Path, ranks: int, *more: str, settings=LONGER, **variables: str):  # type: ignore[no-untyped-def]
    arguments = [*tiny_arguments(NAME, *settings), "--checkpoint-seconds", "0", *more]
    return torchrun(home, ranks, ["-m", "moedd", *arguments], **variables)


def rows(home: Path) -> int:
    log = home / "runs" / NAME / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def lose(  # type: ignore[no-untyped-def]
    home: Path, job, rank: int, moment, within: float = ENDED_WITHIN, **given
) -> str:
    """Lose a rank at the moment: the job ends in time, with one sentence that names it."""
    at = kill_rank(job, home, rank, moment, **given)
    code, said = finished(job)
    assert code != 0
    assert time.monotonic() - at < within
    (sentence,) = sentences(said)
    assert f"rank {rank} of " in sentence
    assert "--resume" in sentence
    return said


@pytest.mark.timeout(1000)
def test_a_killed_rank_ends_the_job_and_resume_goes_on(tmp_path: Path) -> None:
    home, whole = tmp_path / "killed", tmp_path / "whole"
    run = RunFolder(home / "runs" / NAME)
    lose(home, start(home, 2, settings=LONG), 1, lambda: rows(home) >= 8)
    assert 0 < load_meta(run.checkpoint)["tick"] < 30
    # On another number of ranks: on one.
    tiny_run(home, NAME, *LONG, called=NAME, resume=True)
    tiny_run(whole, NAME, *LONG, called=NAME)
    assert payload(home / "sets" / NAME) == payload(whole / "sets" / NAME)
    assert log_of(home, NAME) == log_of(whole, NAME)
    assert read_manifest(home / "sets" / NAME).provenance.ranks == 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ranks_killed_again_and_again(tmp_path: Path) -> None:
    home, whole = tmp_path / "killed", tmp_path / "whole"
    run = RunFolder(home / "runs" / NAME)
    # While the pool is trained or just was; at the first checkpoint; while matching, on other
    # numbers of ranks; the one that writes.
    lose(home, start(home, 2), 1, lambda: (home / "pools").exists())
    lose(home, start(home, 3, "--resume"), 2, run.checkpoint.exists)
    lose(home, start(home, 2, "--resume"), 0, lambda: rows(home) >= 60)
    lose(home, start(home, 4, "--resume"), 3, lambda: rows(home) >= 120)
    code, said = finished(start(home, 3, "--resume"))
    assert code == 0, said
    tiny_run(whole, NAME, *LONGER, called=NAME)
    assert difference(home / "sets" / NAME, whole / "sets" / NAME) <= CLOSE
    assert read_manifest(home / "sets" / NAME).provenance.ranks == 3


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_rank_that_hangs_is_missed(tmp_path: Path) -> None:
    """torchrun waits half a minute for a process that does not end when asked to."""
    job = start(tmp_path, 2, MOEDD_LOST_SECONDS="5")
    ended = {"within": 60.0, "sent": signal.SIGSTOP}
    said = lose(tmp_path, job, 1, lambda: rows(tmp_path) >= 40, **ended)
    assert "has not been heard of for 5 seconds" in said


@pytest.mark.slow
def test_a_users_mistake_is_said_once(tmp_path: Path) -> None:
    arguments = tiny_arguments(NAME, "idm.nonsense=1")
    code, said = finished(torchrun(tmp_path, 2, ["-m", "moedd", *arguments]))
    assert code != 0
    (sentence,) = sentences(said)
    assert "nonsense" in sentence


@pytest.mark.slow
def test_an_expert_that_goes_astray_on_another_rank(tmp_path: Path) -> None:
    """The error comes from rank 1 alone; nothing is said of lost ranks."""
    arguments = tiny_arguments("digits-idm+dm-1x2", "dm.lr=1e38", "dm.steps=400", "idm.steps=400")
    code, said = finished(torchrun(tmp_path, 2, ["-m", "moedd", *arguments]))
    assert code != 0
    (sentence,) = sentences(said)
    assert "expert 1 (dm)" in sentence
    assert "the last good snapshot is" in sentence


def test_two_processes_do_not_work_on_one_run(home: Path) -> None:
    other = RunFolder(home / "runs" / "digits-idm-1x1")
    other.take()
    refused = cli(*tiny_arguments("digits-idm-1x1"))
    assert refused.code == 4
    assert "another process is working on the run" in refused.sentence
    other.release()
    assert cli(*tiny_arguments("digits-idm-1x1")).code == 0
