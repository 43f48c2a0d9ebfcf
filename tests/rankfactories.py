"""Runs of several processes: torchrun on this machine, each rank a `ranks_worker.py` or `moedd`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parent
LIVE = ("idc.networks=live", "idc.inner_loop=2", "idc.train_images=8")
"""Settings of IDC with a network that is trained while images are matched."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """One thread per rank, as in the single process that results are compared with."""
    root = TESTS.parent
    path = os.pathsep.join(str(p) for p in (TESTS, root, root / "loaders", root / "publish"))
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return {**plain, "MOEDD_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def torchrun(
    home: Path, ranks: int, command: Sequence[str], **more: str
) -> subprocess.Popen[bytes]:
    """Start `command` (a script, or `-m` and a module, and arguments) on so many ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, "--nproc-per-node", str(ranks), *command],
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[bytes], seconds: float = 300) -> tuple[int, str]:
    """How a job ended: its exit code, and what it said on stderr."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        _, said = process.communicate()
        raise AssertionError(f"the job did not end: {said.decode()}") from None
    return process.returncode, said.decode()


def run_on(home: Path, ranks: int, runs: Mapping[str, Sequence[str]]) -> str:
    """Make the runs (called as their keys; values: name and settings) one after the other in one
    job; returns what was said."""
    worker = [str(TESTS / "ranks_worker.py")]
    for called, (name, *settings) in runs.items():
        worker.append(",".join([called, name, *settings]))
    code, said = finished(torchrun(home, ranks, worker))
    assert code == 0, said
    return said


def rank_process(home: Path, rank: int) -> int:
    """The process id of a rank, by its environment; 0 where there is none yet."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"MOEDD_HOME={home}".encode() in words and f"RANK={rank}".encode() in words:
            return int(folder.name)
    return 0


def kill_rank(
    job: subprocess.Popen[bytes],
    home: Path,
    rank: int,
    moment: Callable[[], bool],
    sent: signal.Signals = signal.SIGKILL,
) -> float:
    """Send a signal to one rank as soon as `moment` has come; returns when that was."""
    ends = time.monotonic() + 300
    process = 0
    while not (process and moment()):
        assert job.poll() is None, job.stderr and job.stderr.read().decode()
        assert time.monotonic() < ends
        process = process or rank_process(home, rank)
        time.sleep(0.01)
    os.kill(process, sent)
    return time.monotonic()


def sentences(said: str) -> list[str]:
    """The lines that `moedd` said to the person."""
    return [line for line in said.splitlines() if line.startswith("moedd: ")]


def difference(one: Path, other: Path) -> float:
    """Largest difference between the stored pixels of two sets, relative to the largest pixel."""
    a, b = (load_file(f / "tensors" / "distilled.safetensors")["images"] for f in (one, other))
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()))
