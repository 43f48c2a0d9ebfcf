"""What a person sees while a run goes on: bars with ETA and current losses, and the JSONL log."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PLAIN_EVERY = 30.0


class Reporter:
    """Progress bars on a terminal; a line now and then where the output is a file."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self.quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._task: TaskID | None = None
        self._title, self._total, self._start, self._last = "", 0, 0.0, 0.0
        self._first = 0

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start a stage of `total` steps, `done` of which lie behind already."""
        self.end()
        self._title, self._total, self._first = title, total, done
        self._start = self._last = time.monotonic()
        if self.live:
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def step(self, done: int, note: str = "") -> None:
        """Say how far the stage is and what its losses are."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif not self.quiet and time.monotonic() - self._last > _PLAIN_EVERY:
            self._last = time.monotonic()
            spent = self._last - self._start
            left = spent / max(1, done - self._first) * (self._total - done)
            self.say(f"{self._title}: {done}/{self._total}, {left / 60:.1f} min left  {note}")

    def end(self) -> None:
        """The stage is over."""
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def say(self, text: str) -> None:
        """One line for the person."""
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)


class Log(Protocol):
    """Where the rows of a run go."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""

    def position(self) -> int:
        """Bytes written so far."""

    def close(self) -> None:
        """No more rows follow."""


class NoLog:
    """The log of ranks that write none."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def position(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing to close."""


class JsonLog:
    """Append-only JSON lines whose length a checkpoint remembers, so that a resumed run's log
    holds every step once."""

    def __init__(self, path: Path, position: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115 (kept open)
        self._file.truncate(min(position, self._file.tell()))
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._file.write(json.dumps(row) + "\n")

    def position(self) -> int:
        """Bytes written so far, after flushing them."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
