"""One at a time, and never behind a process that is dead."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from moedd.papertables.alone import LOCKS, alone

HOLD = """
import sys, time
from pathlib import Path
from moedd.papertables.alone import alone
with alone(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(300)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Timeout), FileLock(tmp_path / LOCKS / "work.lock", timeout=0):
            pass
    finally:
        other.kill()
        other.communicate()
    began = time.monotonic()
    with alone(tmp_path, "work"):
        assert time.monotonic() - began < 5


def test_the_file_of_a_lock_stays_or_goes(tmp_path: Path) -> None:
    with alone(tmp_path, "stays"), alone(tmp_path, "goes", leave=False):
        pass
    assert not (tmp_path / LOCKS / "goes.lock").exists()
