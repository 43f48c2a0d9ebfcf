"""A killed run goes on to the same bytes, wherever the kill hits it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runfactories import cli, payload, tiny_arguments, tiny_run

from moedd.distill import Effort
from moedd.progress import JsonLog
from moedd.runstate import RunFolder
from moedd_loaders.manifest import read_manifest
from moedd_loaders.validate import validate_set

NAME = "digits-idm-1x2"
LONG = ("idm.steps=40", "diversity.every=4", "idm.batch_real=16")


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


def log_of(home: Path, called: str) -> bytes:
    return (home / "runs" / called / "log.jsonl").read_bytes()


def same(home: Path, called: str, whole: Path, name: str) -> None:
    """The set `called` in `home` and its log equal those of an uninterrupted run."""
    made, wanted = home / "sets" / called, whole / "sets" / name
    assert payload(made) == payload(wanted)
    assert validate_set(made).content_sha256 == read_manifest(wanted).content_sha256
    assert log_of(home, called) == log_of(whole, name)
    assert not RunFolder(home / "runs" / called).checkpoint.exists()


# --------------------------------------------------------------- kills of a real process


def start(home: Path, *more: str) -> subprocess.Popen[bytes]:
    arguments = [*tiny_arguments(NAME, *LONG), "--checkpoint-seconds", "0", *more]
    environment = {**os.environ, "MOEDD_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-m", "moedd", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_when(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> None:
    """SIGKILL as soon as `moment` has come; the run must not be over by then."""
    ends = time.monotonic() + 300  # a start costs seconds, and minutes on a machine that is busy
    try:
        while not moment():
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < ends
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.timeout(1000)
def test_a_process_killed_again_and_again(tmp_path: Path) -> None:
    home, whole = tmp_path / "killed", tmp_path / "whole"
    run = RunFolder(home / "runs" / NAME)

    def rows() -> int:
        return run.log.read_bytes().count(b"\n") if run.log.exists() else 0

    # After the pool, when there is nothing to resume from yet.
    kill_when(start(home), lambda: any(home.glob("pools/*/network-00.safetensors")))
    # At the first checkpoint: --resume without one is a start.
    kill_when(start(home, "--resume"), run.checkpoint.exists)
    # In the middle of matching, 20 to 79 of 90 rows written.
    kill_when(start(home, "--resume"), lambda: rows() >= 20)
    assert rows() < 80
    assert not (home / "sets").exists()
    tiny_run(home, NAME, *LONG, called=NAME, resume=True)
    tiny_run(whole, NAME, *LONG, called=NAME)
    same(home, NAME, whole, NAME)
    # Every step exactly once, in order.
    steps = [
        (row["expert"], row["step"])
        for row in map(json.loads, log_of(home, NAME).splitlines())
        if "expert" in row
    ]
    assert steps == [(e, step) for step in range(1, 41) for e in (0, 1)]


# ------------------------------------------------- kills at chosen points of this process


@pytest.fixture(scope="module")
def mixed() -> tuple[str, ...]:
    """Two methods of different length; IDC trains a live network: the most state there is."""
    return (
        *("digits-idm+idc-1x2", "idm.steps=7", "idc.steps=3", "diversity.every=3"),
        *("idc.networks=live", "idc.inner_loop=2", "idc.train_images=8", "idc.batch_real=4"),
    )


@pytest.fixture(scope="module")
def whole_home(
    mixed: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, pools: Path
) -> Path:
    """The uninterrupted run `mixed`."""
    home = tmp_path_factory.mktemp("whole")
    (home / "pools").symlink_to(pools)
    tiny_run(home, *mixed, called="mixed")
    return home


def test_killed_between_any_two_rows(
    mixed: tuple[str, ...], whole_home: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attempt writes a few rows more than a tick and dies in the middle of the next."""
    write = JsonLog.write
    left = [0]

    def writes_until_killed(log: JsonLog, row: dict[str, object]) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write(log, row)

    monkeypatch.setattr(JsonLog, "write", writes_until_killed)
    kills = 0
    while True:
        left[0] = 0 if kills == 0 else 4
        try:
            tiny_run(
                home, *mixed, called="mixed", resume=kills > 0, effort=Effort(checkpoint_seconds=0)
            )
            break
        except Killed:
            kills += 1
    assert kills >= 4
    same(home, "mixed", whole_home, "mixed")


@pytest.mark.parametrize("sparse", [True, False])
def test_killed_around_the_checkpoint(
    sparse: bool,
    mixed: tuple[str, ...],
    whole_home: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Just after the n-th checkpoint, and (sparse) long after the last one."""
    save = RunFolder.save
    count = [0]

    def save_and_die(run: RunFolder, *given: object) -> None:
        save(run, *given)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] in (1, 3):
            raise Killed

    monkeypatch.setattr(RunFolder, "save", save_and_die)
    effort = Effort(checkpoint_seconds=3600.0 if sparse else 0.0)
    with pytest.raises(Killed):
        tiny_run(home, *mixed, called="mixed", effort=effort)
    if not sparse:
        with pytest.raises(Killed):
            tiny_run(home, *mixed, called="mixed", effort=effort, resume=True)
    tiny_run(home, *mixed, called="mixed", effort=effort, resume=True)
    same(home, "mixed", whole_home, "mixed")


@pytest.mark.parametrize("moment", ["moedd.distill.write_result", "moedd_publish.write.os.rename"])
def test_killed_while_the_set_is_written(
    moment: str,
    mixed: tuple[str, ...],
    whole_home: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*given: object, **named: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(moment, die)
        with pytest.raises(Killed):
            tiny_run(home, *mixed, called="mixed")
    assert not (home / "sets" / "mixed").exists()
    tiny_run(home, *mixed, called="mixed", resume=True)
    same(home, "mixed", whole_home, "mixed")


def test_killed_between_the_set_and_the_end(
    mixed: tuple[str, ...], whole_home: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set is there and the checkpoint is, too: going on ends in the same place."""

    def die(path: Path, missing_ok: bool = False) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("moedd.distill.Path.unlink", die)
        with pytest.raises(Killed):
            tiny_run(home, *mixed, called="mixed")
    tiny_run(home, *mixed, called="mixed", resume=True)
    same(home, "mixed", whole_home, "mixed")


# --------------------------------------------------------------------- the command line


def test_the_command_line_of_resuming(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tiny_arguments("digits-idm-1x1")

    def die(log: JsonLog, row: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JsonLog, "write", die)
        with pytest.raises(Killed):
            cli(*arguments)
    unfinished = cli(*arguments)
    assert unfinished.code == 4
    assert "--resume" in unfinished.sentence
    assert "--overwrite" in unfinished.sentence
    other = cli(*arguments, "--resume", "--set", "width=16")
    assert other.code == 2
    assert "width: was 8, is 16" in other.sentence
    gone_on = cli(*arguments, "--resume")
    assert gone_on.code == 0
    assert "resuming at tick 0" in gone_on.err
    before = payload(home / "sets" / "digits-idm-1x1")
    log = home / "runs" / "digits-idm-1x1" / "log.jsonl"
    stamp = log.stat().st_mtime_ns
    finished = cli(*arguments, "--resume")
    assert finished.code == 0
    assert "finished already" in finished.err
    assert payload(home / "sets" / "digits-idm-1x1") == before
    assert log.stat().st_mtime_ns == stamp
