"""`moedd tables` end to end: plan, run, kill, go on, report; and what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runfactories import cli
from tablefactories import SETTINGS, method_settings, record

from moedd.papertables.rows import Identity
from moedd.papertables.store import append_cell, read_cells
from moedd.tablescommand import with_ray_value
from moedd_loaders.records import Record


def arguments(*more: str, methods: tuple[str, ...] = ("idc_i",), table: str = "3") -> list[str]:
    """A tiny table on digits."""
    given = ["tables", "--table", table, "--on", "digits", "--budget", "4", "--rows", "paper"]
    given += ["--networks", "convnet1", "--width", "4", "--epochs", "1", "--seeds", "1"]
    given += ["--repeats", "1", "--schedule", "paper", "--threads", "1"]
    for setting in (*SETTINGS, *method_settings(*methods)):
        given += ["--set", setting]
    return [*given, *more]


def kept(home: Path) -> list[Record]:
    return list(read_cells(home / "records" / "tables").values())


# ----------------------------------------------------------------------------------- run


def test_a_table_is_run_shown_and_done(home: Path) -> None:
    told = cli(*arguments("--only", "idc"))
    assert told.code == 0, told.err
    assert "3 networks, 0 done" in told.err
    assert "[3/3] digits: idc_i 2x2, no mixup, set 0, convnet1 1: " in told.err
    assert "Table 3: mixup across experts" in told.out
    assert "idc_i 2x2, vanilla mixup" in told.out
    assert "one set" in told.out
    first = kept(home)
    assert [(r.fuse, r.network, r.protocol) for r in first] == [
        ("mixup", "convnet1", "common-1"),
        ("vanilla", "convnet1", "common-1"),
        ("none", "convnet1", "common-1"),
    ]
    # Again: nothing to do, the same table.
    again = cli(*arguments("--only", "idc"))
    assert again.code == 0
    assert "3 networks, 3 done" in again.err
    assert again.out == told.out
    assert kept(home) == first
    # Another table takes over what it shares with this one.
    more = cli(*arguments("--only", "idc", table="1"))
    assert "2 networks, 1 done" in more.err
    assert len(kept(home)) == 4
    assert len(list((home / "sets").iterdir())) == 2


def test_records_lie_where_they_are_wanted(home: Path, tmp_path: Path) -> None:
    told = cli(*arguments("--only", "idc", "--records", str(tmp_path / "mine")))
    assert told.code == 0, told.err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["tables-digits-idc_i-2x2.jsonl"]
    assert kept(home) == []


def test_every_method_of_the_paper(home: Path) -> None:
    """Tables 1 and 2 in one go: paper-shaped rows of IDC, IDM, MTT and RDED."""
    told = cli(*arguments(methods=("idc_i", "idm_plain", "mtt", "rded"), table="1,2"))
    assert told.code == 0, told.err
    records = kept(home)
    assert {"+".join(dict.fromkeys(r.methods)) for r in records} == {
        "idc_i", "idm_plain", "mtt", "idm_plain+rded", "rded",
    }  # fmt: skip
    assert len(records) == 6 + 2
    assert {(r.ipc, r.experts) for r in records} == {(2, 2), (4, 1)}


def test_a_cell_that_fails_is_told_and_decides_the_exit_code(home: Path) -> None:
    """Within classes needs two images per class: at a budget of 2 an expert has one."""
    given = arguments("--only", "idc", "--rows", "diversity,paper", table="4")
    given[given.index("--budget") + 1] = "2"
    told = cli(*given)
    assert told.code == 2
    assert "failed: set digits-idc_i-1x2, diversity.estimator=unbiased, " in told.err
    assert "of the tables' sets and networks could not be made" in told.sentence
    done = {tuple(r.config["set"]["row"]) for r in kept(home)}
    assert ("diversity.estimator=unbiased",) in done
    assert () in done


# ----------------------------------------------------------------------------------- ray


def test_without_ray_the_same_cells_run_one_after_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    told = cli(*arguments("--only", "idc", "--ray", "--networks", "convnet1"))
    assert told.code == 0, told.err
    (said,) = [line for line in told.err.splitlines() if line.startswith("Ray ")]
    assert said == (
        'Ray is not installed (pip install "moedd[ray]"): the cells run one after another on this '
        "machine"
    )
    assert len(kept(home)) == 3


def test_a_ray_that_does_not_answer_is_one_sentence(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    told = cli(*arguments("--only", "idc", "--ray", address))
    assert told.code == 6
    assert f"--ray {address} cannot be reached" in told.sentence
    assert not (home / "sets").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--ray"], ["--ray", "auto"]),
        (["--ray", "--jobs", "2"], ["--ray", "auto", "--jobs", "2"]),
        (["--ray", "a:1", "--jobs", "2"], ["--ray", "a:1", "--jobs", "2"]),
        (["--ray=a:1", "--plan"], ["--ray=a:1", "--plan"]),
        (["--jobs", "2"], ["--jobs", "2"]),
    ],
)
def test_ray_may_stand_alone(given: list[str], wanted: list[str]) -> None:
    assert with_ray_value(given) == wanted


# ---------------------------------------------------------------------------------- kill


@pytest.mark.timeout(1000)
def test_a_killed_table_goes_on(home: Path, tmp_path: Path, pools: Path) -> None:
    """SIGKILL while the set is matched. (Of a network: `test_run.py`, in one process.)"""
    long = ["--only", "idc", "--checkpoint-seconds", "0", "--set", "idc_i.steps=6"]
    given = arguments(*long)
    logs = home / "runs"

    def matched() -> int:
        return sum(p.read_bytes().count(b"\n") for p in logs.glob("*/log.jsonl"))

    kill_when(given, home, lambda: matched() >= 4)
    assert matched() < 12
    assert not (home / "sets").exists()
    assert kept(home) == []
    told = cli(*given)
    assert told.code == 0, told.err
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "pools").symlink_to(pools)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOEDD_HOME", str(whole))
        assert cli(*given).code == 0
    found = {r.config["cell"]: (r.accuracy, r.set_hash) for r in kept(home)}
    assert found == {r.config["cell"]: (r.accuracy, r.set_hash) for r in kept(whole)}
    assert len(found) == 3


def kill_when(given: list[str], home: Path, moment: object) -> None:
    """Run the command in a process of its own; SIGKILL as soon as `moment` has come."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moedd", *given],
        env={**os.environ, "MOEDD_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    ends = time.monotonic() + 300
    try:
        while not moment():  # type: ignore[operator]
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < ends
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


# ---------------------------------------------------------------------------------- plan


def test_a_plan_runs_nothing(moedd_home: Path) -> None:
    told = cli(*arguments("--only", "idc", "--plan", "--hours", "0.5"))
    assert told.code == 0, told.err
    assert "digits-idc_i-2x2: 1 of the schedule, 4 steps" in told.out
    assert "digits: idc_i 2x2, cross-expert mixup at 1, convnet1" in told.out
    assert "pool of 1 convnet2 on digits" in told.out
    assert "in all:" in told.out
    assert "are assumed" in told.out
    assert "--schedule idc=1" in told.out
    assert {path.name for path in moedd_home.rglob("*")} <= {"compiled"}  # torch's empty folder


def test_a_plan_counts_what_is_done_and_measures_rates(home: Path) -> None:
    assert cli(*arguments("--only", "idc")).code == 0
    for made in kept(home):  # all of this takes less than the tenths of seconds that are kept
        made.config["set"]["seconds"] = 2.0
        append_cell(home / "slower", "x", made.model_copy(update={"seconds": 2.0}))
    slower = ["--records", str(home / "slower"), "--plan"]
    told = cli(*arguments("--only", "idc", *slower, table="1"))
    assert told.code == 0, told.err
    lines = [line for line in told.out.splitlines() if "│" in line]
    counts = {
        cells[0]: (cells[1], cells[2])
        for cells in ([c.strip() for c in line.strip("│").split("│")] for line in lines)
    }
    assert counts["digits-idc_i-2x2: 1 of the schedule, 4 steps"] == ("0", "1")
    assert counts["digits-idc_i-4x1: 1 of the schedule, 4 steps"] == ("1", "1")
    assert counts["digits: idc_i 2x2, cross-expert mixup at 1, convnet1"] == ("0", "1")
    assert counts["digits: idc_i 4x1, no mixup at 1, convnet1"] == ("1", "1")
    assert "assumed" not in told.out
    assert "pool of" not in told.out  # it is there


def test_a_plan_of_the_paper_needs_no_data(home: Path) -> None:
    given = ["--table", "1", "--rows", "paper", "--schedule", "0.01,idc=0.001", "--seeds", "1"]
    told = cli("tables", *given, "--plan")
    assert told.code == 0, told.err
    assert "cifar100: idm_plain 10x2, cross-expert mixup at 0.01, ResNet18" in told.out
    assert "cifar10-idc_i-5x2: 0.001 of the schedule, 200 steps" in told.out
    assert "note: cifar10 has not been read: " in told.out
    assert "trajectories of convnet3" in told.out


# -------------------------------------------------------------------------------- report


def test_a_report_is_written_from_the_records(home: Path, tmp_path: Path) -> None:
    folder, page = tmp_path / "records", tmp_path / "docs" / "results.md"
    for seed in range(2):
        for identity in (Identity("distilled", "idc_i", 5, 2, fuse="mixup"),
                         Identity("distilled", "idc_i", 10, 1)):  # fmt: skip
            append_cell(folder, "x", record(identity, 50 + seed, seed=seed))
    told = cli("tables", "--report", str(page), "--records", str(folder))
    assert told.code == 0, told.err
    written = [Path(line) for line in told.out.splitlines()]
    assert written[0] == page
    assert all(path.is_file() for path in written)
    assert f"from 4 records in `{folder}`" in page.read_text()
    missing = cli("tables", "--report", str(page), "--records", str(tmp_path / "none"))
    assert missing.code == 2
    assert "no records of table cells lie in" in missing.sentence


# -------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--table", "5"], "--table 5 given; the paper's tables are 1, 2, 3 and 4"),
        (["--table", "one"], "--table one given; expected numbers"),
        (["--budget", "7"], "two experts share it"),
        (["--repeats", "many"], "--repeats many given; expected networks per set"),
        (["--repeats", "0"], "--repeats 0 given"),
        (["--schedule", "soon"], "unknown schedule 'soon'"),
        (["--schedule", "idc=2"], "a fraction is above 0 and at most 1"),
        (["--protocol", "uncommon"], "unknown protocol 'uncommon'"),
        (["--gpus-per-cell", "1"], "--gpus-per-cell is given without --ray"),
        (["--ray", "nonsense"], "--ray nonsense given; expected HOST:PORT"),
        (["--ray", "--gpus-per-cell", "1.5"], "expected a part of one GPU"),
        (["--best"], "protocol common tests once"),
        (["--hours", "1"], "--hours is given without --plan"),
        (["--readme", "x.md"], "--readme is given without --report"),
        (["--note", "x"], "--note is given without --report"),
        (["--plan", "--report", "x.md"], "--plan and --report are both given"),
        (["--plan", "--hours", "-1"], "expected hours above 0"),
        (["--on", "birds"], "birds is no data set that moedd knows by name"),
        (["--data", "cifar100=here", "--on", "digits"], "the tables are on digits"),
        (["--data", "a", "--data", "b"], "say which data set each is"),
        (["--data", "a", "--on", "digits,mnist"], "say which it is"),
        (["--data", "nowhere", "--table", "3"], "no folder 'nowhere'"),
        (["--networks", "vgg11", "--on", "digits"], "vgg11 needs images"),
    ],
)
def test_wrong_use_is_one_sentence(given: list[str], said: str, home: Path) -> None:
    told = cli("tables", *given)
    assert told.code == 2
    assert said in told.sentence
    assert not (home / "sets").exists()
