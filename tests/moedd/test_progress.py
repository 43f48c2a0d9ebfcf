"""What a person sees of a run, and the log that a resumed run goes on with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from moedd.progress import JsonLog, Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`clock[0]` is what the reporter reads as the time in seconds."""
    now = [0.0]
    monkeypatch.setattr("moedd.progress.time.monotonic", lambda: now[0])
    return now


def reporter(terminal: bool = False, quiet: bool = False) -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, legacy_windows=False)
    return Reporter(console, quiet), out


def test_without_a_terminal_a_line_now_and_then(clock: list[float]) -> None:
    told, out = reporter()
    told.begin("matching", 100)
    for second in range(1, 101):
        clock[0] = float(second)
        told.step(second, f"0.match {second}")
    told.end()
    lines = out.getvalue().splitlines()
    # Every 30 s at most: 31, 62, 93 of 100, with what is left at this pace, and the losses.
    assert lines == [
        "matching: 31/100, 1.1 min left  0.match 31",
        "matching: 62/100, 0.6 min left  0.match 62",
        "matching: 93/100, 0.1 min left  0.match 93",
    ]


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(clock: list[float]) -> None:
    told, out = reporter()
    told.begin("matching", 1000, 900)
    clock[0] = 60.0
    told.step(950)
    # 50 steps in a minute, 50 to go: not 950 in a minute.
    assert "950/1000, 1.0 min left" in out.getvalue()


def test_on_a_terminal_a_bar_with_eta_and_losses() -> None:
    told, out = reporter(terminal=True)
    told.begin("matching", 4)
    told.step(2, "0.match 1.25")
    told.end()
    shown = out.getvalue()
    for part in ("matching", "2/4", "ETA", "0.match 1.25"):
        assert part in shown


def test_a_second_stage_takes_the_place_of_the_first() -> None:
    told, out = reporter(terminal=True)
    told.begin("pool network 1/1", 2)
    told.begin("matching", 3)
    told.step(3)
    told.end()
    told.end()
    assert "3/3" in out.getvalue()


def test_quiet_is_quiet(clock: list[float]) -> None:
    told, out = reporter(terminal=True, quiet=True)
    told.begin("matching", 4)
    clock[0] = 100.0
    told.step(1)
    told.say("hello")
    told.end()
    assert out.getvalue() == ""


def test_square_brackets_are_text() -> None:
    told, out = reporter()
    told.say("[bold]100 %[/bold] of [0]")
    assert out.getvalue() == "[bold]100 %[/bold] of [0]\n"


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    log = JsonLog(path)
    log.write({"tick": 1})
    position = log.position()
    assert position == path.stat().st_size
    log.write({"tick": 2})  # after the checkpoint: done again by the resumed run
    log.close()
    again = JsonLog(path, position)
    assert again.position() == position
    again.write({"tick": 2, "again": True})
    again.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"tick": 1}, {"tick": 2, "again": True}]


@given(
    steps=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    lost=st.integers(0, 30),
)
def test_every_row_once_however_often_it_is_killed(
    steps: list[int], lost: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    position, row = 0, 0
    for count in steps:
        log = JsonLog(path, position)
        for _ in range(count):
            log.write({"row": row})
            row += 1
        position = log.position()
        log._file.write("x" * lost)  # a part of what comes next, torn off by a kill
        log.close()
    JsonLog(path, position).close()
    rows = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    assert rows == list(range(sum(steps)))


def test_a_lost_log_is_not_filled_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLog(path, 500)
    log.write({"tick": 9})
    assert log.position() == path.stat().st_size
    log.close()
    assert path.read_text() == '{"tick": 9}\n'
