"""Workers end with the process that started them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context
            from pathlib import Path
            from moedd.papertables.worker import end_with_parent

            def work(folder):
                Path(folder, str(os.getpid())).touch()
                time.sleep(300)

            if __name__ == "__main__":
                pool = ProcessPoolExecutor(2, get_context("spawn"), end_with_parent)
                for _ in range(2):
                    pool.submit(work, sys.argv[1])
                time.sleep(300)
            """
        )
    )
    seen = tmp_path / "seen"
    seen.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(seen)])
    try:
        workers = _wait(
            lambda: [int(p.name) for p in seen.iterdir()], lambda found: len(found) == 2
        )
    finally:
        parent.kill()
        parent.wait()
    assert _wait(lambda: [w for w in workers if _alive(w)], lambda found: not found) == []


def _wait(measure: Any, enough: Any) -> Any:
    ends = time.monotonic() + 120
    while not enough(found := measure()) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
