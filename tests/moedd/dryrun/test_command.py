"""`moedd distill --dry-run`: what is printed, that nothing is written, what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dryrunfactories import arguments, command_line, estimate_of, truth_of
from runfactories import cli, tiny_settings, tree

from moedd.dryrun import command
from moedd.dryrun.command import mirror
from moedd.dryrun.estimate import Estimate, Stage
from moedd.dryrun.shown import print_estimate
from moedd.ranks import Ranks
from moedd_loaders.errors import DataError, MoeddError

NAME = "digits-idm+random-1x2"
TINY = arguments(NAME, *tiny_settings(NAME), schedule="paper", evaluate_after=False)


def test_a_small_run_is_estimated_from_start_to_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates: list[Estimate] = []

    def keep(estimate: Estimate) -> None:
        estimates.append(estimate)
        print_estimate(estimate)

    monkeypatch.setattr(command, "print_estimate", keep)
    told = cli(*command_line(TINY), "--dry-run")
    assert told.code == 0, told.err
    assert not list(home.iterdir())
    for text in ("experts (schedule 1)", "4 of 4", "the whole run", "reading the data", "in all:"):
        assert text in told.out
    found = estimates[0]
    seconds, peak = truth_of(home, TINY)
    # Nearly all of it is the start of Python, whose time is not the same twice.
    assert found.seconds == pytest.approx(seconds, rel=1.0)
    assert found.peak == pytest.approx(peak, rel=0.25)
    assert (home / "sets" / NAME / "moedd.json").is_file()


def test_the_timing_process_ends_with_the_one_that_waits_for_it() -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    waiting = subprocess.Popen(
        [sys.executable, "-c", command._WAITING, *sleeping],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    said, _ = waiting.communicate(timeout=60)  # which closes its standard input first
    code, peak = map(int, said.split())
    assert code == -signal.SIGKILL
    assert peak > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "asked",
    [
        arguments("digits-idm-2x2", "evaluation.epochs=20", schedule="0.005"),
        arguments(
            "digits-idc-2x2",
            *("width=64", "pool.networks=1", "pool.steps=60", "diversity.every=4"),
            size=32,
            schedule="0.00005",
            evaluate_after=False,
        ),
        arguments(
            "digits-mtt-1x2",
            *("mtt.trajectories=4", "mtt.max_start_epoch=6", "diversity.every=0"),
            schedule="0.006",
            evaluate_after=False,
        ),
    ],
    ids=["idm, evaluated", "idc, 32 pixels, diversity", "mtt"],
)
def test_time_and_memory_are_within_a_quarter(
    asked: dict[str, object], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that does nothing else: `pytest -m slow tests/moedd/dryrun -s`."""
    found = estimate_of(asked)
    assert not list(home.iterdir())
    seconds, peak = truth_of(home, asked)
    with capsys.disabled():
        print(
            f"\n{asked['name']}: estimated {found.seconds:.1f} s, {found.peak / 1e6:.0f} MB; took "
            f"{seconds:.1f} s, {peak / 1e6:.0f} MB"
        )
    assert found.seconds == pytest.approx(seconds, rel=0.25)
    assert found.peak == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("option", ["--resume", "--print-config"])
def test_options_without_meaning_are_refused(option: str, home: Path) -> None:
    told = cli(*command_line(TINY), "--dry-run", option)
    assert told.code == 2
    assert f"--dry-run and {option} are both given" in told.sentence
    assert not list(home.iterdir())


def test_disk_counts_what_is_there_all_the_time_and_the_most_that_passes() -> None:
    stages = [Stage(title="a", kept=5, passing=30), Stage(title="b", kept=2, passing=10)]
    found = Estimate(name="x", machine="y", fraction=1.0, experts=[], stages=stages, scratch=1000)
    assert found.kept == 7
    assert found.disk == 7 + 1000 + 30


def test_torchrun_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "world", lambda: Ranks(0, (0, 1)))
    told = cli(*command_line(TINY), "--dry-run")
    assert told.code == 2
    assert "torchrun" in told.sentence


def test_what_the_run_would_refuse_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = (
        "import json, pathlib, sys; pathlib.Path(sys.argv[1], 'found.json').write_text("
        "json.dumps({'error': 'DataError', 'message': 'class 3 is empty'}))"
    )
    monkeypatch.setattr(command, "_WORKER", ("-c", says))
    with pytest.raises(DataError, match=r"^class 3 is empty$"):
        estimate_of(TINY)


def test_a_killed_process_is_told_with_its_stage(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'stage').write_text('matching'); "
        "os.kill(os.getpid(), 9)"
    )
    monkeypatch.setattr(command, "_WORKER", ("-c", dies))
    with pytest.raises(MoeddError, match=r"killed by signal 9 while timing matching.*memory"):
        estimate_of(TINY)


def test_a_mirror_is_read_and_never_written(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "mirror"
    for name in ("pools/k/network-00", "pools/k/lock", "pools/observers/a.lock", "sets/s/x"):
        path = real / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = tree(real)
    mirror(real, folder)
    assert set(tree(folder)) == {"pools", "pools/k", "pools/k/network-00", "pools/observers"}
    assert (folder / "pools/k/network-00").read_text() == "mine"
    # Files are replaced, not written into: so is the link.
    (tmp_path / "new").write_text("other")
    (tmp_path / "new").replace(folder / "pools/k/network-00")
    (folder / "pools/k/lock").write_text("held")
    assert tree(real) == before
    assert (real / "pools/k/network-00").read_text() == "mine"


def test_an_existing_set_is_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "sets" / NAME).mkdir(parents=True)
    monkeypatch.setattr(command, "estimated", lambda asked: _nothing())
    assert "the run needs --overwrite" in cli(*command_line(TINY), "--dry-run").out
    told = cli(*command_line(TINY), "--dry-run", "--overwrite")
    assert "the run needs --overwrite" not in told.out


def _nothing() -> Estimate:
    cost = {"steps": 0, "schedule": 0, "step_seconds": 0, "seconds": 0, "peak": 0, "checkpoint": 0}
    formats = {"tensors": 1, "parquet": 1, "webdataset": 1}
    expert = {"method": "random", **cost, "stored": 1, "decoded": 1, "formats": formats}
    plain = {"name": NAME, "machine": "cpu", "fraction": 1, "experts": [expert]}
    return Estimate.model_validate({**plain, "stages": [{"title": "start"}]})
