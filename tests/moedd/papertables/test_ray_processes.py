"""`moedd tables --ray` as processes: a cluster that was there is left, one of ours ends with us.

All slow: `pytest -m slow tests/moedd/papertables/test_ray_processes.py`, two minutes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tablefactories import SETTINGS, method_settings

from moedd.papertables.store import read_cells

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def command(*more: str) -> list[str]:
    """Table 3 on digits, tiny."""
    given = ["--table", "3", "--on", "digits", "--budget", "4", "--rows", "paper", "--only", "idc"]
    given += ["--networks", "convnet1", "--width", "4", "--epochs", "1", "--seeds", "1"]
    given += ["--repeats", "1", "--schedule", "paper", "--threads", "1"]
    for setting in (*SETTINGS, *method_settings("idc_i")):
        given += ["--set", setting]
    return [sys.executable, "-m", "moedd", "tables", *given, *more]


PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Of a cluster that nobody else reaches (loopback only), and of those who join it."""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "MOEDD_HOME": str(home), **more}


def wait_for(moment: Callable[[], bool], seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(short: Path, home: Path) -> Iterator[str]:
    """The address of a Ray of two CPUs that somebody else has started."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"127.0.0.1:{port}"
    given = ["--head", "--block", f"--port={port}", "--num-cpus=2"]
    given += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={short / 'ray'}"]
    log = short / "log"
    with open(log, "wb") as output:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *given],
            env=environment(home, RAY_TMPDIR=str(short), **PRIVATE), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(lambda: head.poll() is not None or b"Ray runtime started" in log.read_bytes())
        assert head.poll() is None, log.read_text()
        yield address
    finally:
        head.terminate()
        head.wait(60)


def test_a_cluster_that_is_there_is_used_and_left(
    cluster: str, home: Path, short: Path, tmp_path: Path
) -> None:
    token = {"RAY_AUTH_MODE": "token"}
    ways = {"address": (cluster, token), "variable": (None, {"RAY_ADDRESS": cluster, **token}),
            "machine": (None, {"RAY_TMPDIR": str(short)})}  # fmt: skip
    for way, (address, variables) in ways.items():
        folder = tmp_path / way
        given = command("--records", str(folder), "--ray", *([address] if address else []))
        env = environment(home, **variables, **PRIVATE)
        done = subprocess.run(given, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        first, *rest = done.stderr.splitlines()
        assert first == f"Ray at {cluster}: 1 machine, 2 cells at a time, each with 1 CPU"
        # Nothing of Ray's own on the terminal.
        assert all(line.startswith(("3 networks, ", "[", "cells: ")) for line in rest), done.stderr
        assert "raylet" not in done.stdout
        assert len(read_cells(folder)) == 3
        socket.create_connection(("127.0.0.1", int(cluster.rpartition(":")[2])), 5).close()


def ours(home: Path) -> dict[int, str]:
    """Processes that were started with this `$MOEDD_HOME`."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if f"MOEDD_HOME={home}\0".encode() in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_bytes()[:60].decode()
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_what_we_started_ends_with_us(
    number: signal.Signals, code: int, home: Path, short: Path
) -> None:
    """Ctrl-C in a terminal reaches all processes of the command."""
    long = command("--ray", "--jobs", "2", "--set", "idc_i.steps=4000")
    process = subprocess.Popen(
        long, env=environment(home, TMPDIR=str(short)), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: process.poll() is not None or any((home / "runs").glob("*/log.jsonl")))
        assert process.poll() is None
        assert any("set digits-idc_i" in text for text in ours(home).values())
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert "logging.cc" not in told
    # Tasks end at once; of Ray's helpers two look for their parent every now and then only.
    wait_for(lambda: not any("set digits" in text for text in ours(home).values()), 20)
    if number != signal.SIGKILL:
        wait_for(lambda: not ours(home), 20)
        assert not any(short.glob("moedd-ray-*"))
    else:
        for left in ours(home):
            os.kill(left, signal.SIGKILL)
