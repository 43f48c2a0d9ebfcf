"""How ranks come together, and what is said where they cannot. One process at a time: fast."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from rankfactories import environment, sentences

from moedd.launch import _choose_device, joined
from moedd.ranks import ALONE, world
from moedd.watch import Self, Watch, seconds_from
from moedd_loaders.errors import ConflictError, UsageError


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def lone_rank(home: Path, rank: int) -> subprocess.CompletedProcess[bytes]:
    """One of two ranks, started without the other."""
    variables = {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(), "MOEDD_REACH_SECONDS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "moedd", "distill", "digits-idm-1x1"],
        env=environment(home, **variables), capture_output=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_rank_that_reaches_nobody_says_so(tmp_path: Path) -> None:
    ended = lone_rank(tmp_path, rank=1)
    assert ended.returncode == 6
    (said,) = sentences(ended.stderr.decode())
    assert "rank 1 of 2" in said
    assert "nothing answered at 127.0.0.1:" in said


@pytest.mark.slow
def test_a_rank_to_which_nobody_comes_says_so(tmp_path: Path) -> None:
    ended = lone_rank(tmp_path, rank=0)
    assert ended.returncode == 6
    (said,) = sentences(ended.stderr.decode())
    assert "waited 1 seconds and rank 1 did not come" in said
    assert not (tmp_path / "runs").exists()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("size", [None, "1"])
def test_a_process_of_its_own_joins_nobody(
    size: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    with joined() as ranks:
        assert ranks is ALONE is world()
        assert not dist.is_initialized()


def test_half_of_the_variables_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without RANK, MASTER_ADDR, MASTER_PORT"), joined():
        pass


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "two")])
def test_a_rank_that_is_none_is_a_sentence(
    rank: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="expected a rank from 0"), joined():
        pass


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_seconds_that_are_none_are_a_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEDD_LOST_SECONDS", text)
    with pytest.raises(UsageError, match="MOEDD_LOST_SECONDS"):
        seconds_from("MOEDD_LOST_SECONDS", 30.0)
    assert seconds_from("MOEDD_REACH_SECONDS", 120.0) == 120.0


def test_an_error_of_a_single_process_passes_through() -> None:
    with pytest.raises(ConflictError), joined():
        raise ConflictError("there already")


# ------------------------------------------------------------------------------- the watch


@pytest.fixture
def watch() -> Watch:
    """That of rank 0 of 3; nobody else counts unless a test does."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    for rank in (1, 2):
        store.set(f"where/{rank}", f"host {rank}, process {100 + rank}")
        store.set(f"beat/{rank}", "1")
    return Watch(store, Self(0, 3, "host 0, process 100"))


def aged(watch: Watch, rank: int, seconds: float) -> None:
    """As if the rank had been heard for the last time so long ago."""
    watch.pulse.beat()
    count, when = watch.pulse.heard[rank]
    watch.pulse.heard[rank] = (count, when - seconds)


def test_a_silent_rank_is_named_and_others_are_not(watch: Watch) -> None:
    aged(watch, 2, 10.0)
    assert watch.pulse.silent(5.0) == [2]
    said = watch.explain("")
    assert "rank 2 of 3 (host 2, process 102) is gone" in said
    assert "rank 1" not in said


def test_a_rank_that_was_killed_while_it_started_is_named(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moedd.watch._LOOKING_SECONDS", 0.1)
    watch.store.delete_key("beat/2")
    watch.pulse.beat()
    said = watch.explain("was asked to end (SIGTERM)")
    assert "rank 2 of 3 never came, or was killed while it started" in said
    assert "rank 0" not in said


def test_ranks_of_a_host_with_several_gpus_know_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setenv("RANK", "3")
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"cannot tell which of the 2 GPUs .* set LOCAL_RANK"):
        _choose_device()
    monkeypatch.setenv("SLURM_LOCALID", "1")
    _choose_device()
    monkeypatch.setenv("LOCAL_RANK", "0")
    _choose_device()
    assert taken == [1, 0]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match=r"number 2 \(from 0\) on its host, which has 2 GPU"):
        _choose_device()


def test_a_rank_that_counts_on_is_heard(watch: Watch) -> None:
    aged(watch, 2, 10.0)
    watch.store.set("beat/2", "2")
    watch.pulse.beat()
    assert watch.pulse.silent(5.0) == []


def test_a_rank_that_has_ended_is_not_missed(watch: Watch) -> None:
    watch.store.set("beat/2", "ended")
    aged(watch, 2, 10.0)
    assert watch.pulse.silent(5.0) == []


def test_a_store_that_does_not_answer_is_a_sentence(watch: Watch) -> None:
    watch.pulse.beat()
    watch.pulse.answered -= 10.0
    assert "rank 0 of 3 (host 0, process 100) cannot reach the others any more" in watch.explain("")
    assert watch.may_speak()
    assert watch.may_speak()  # whatever others say, nobody here hears it


def test_only_one_rank_speaks(watch: Watch) -> None:
    assert watch.may_speak()
    assert not watch.may_speak()
    watch.pulse.beat()
    assert watch.explain("") == ""


def test_the_watch_gives_the_signals_back(watch: Watch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    watch.start()
    assert watch.store.get("where/0") == b"host 0, process 100"
    assert signal.getsignal(signal.SIGTERM) is not before
    for rank in (1, 2):  # rank 0 lets the others go first
        watch.store.set(f"beat/{rank}", "ended")
    watch.end()
    assert watch.pulse.silent(0.0) == []
    assert signal.getsignal(signal.SIGTERM) is before
    assert watch.store.get("beat/0") == b"ended"
    watch.join(timeout=30)
    assert not watch.is_alive()
