"""Large made-up data for tests of memory, and a run of a command whose memory is watched."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from imagefactories import encoded

_SHARD = 10_000
_DISTINCT = 5


def parquet_of_classes(
    root: Path, classes: int, per_class: int, side: int, test_per_class: int = 5
) -> Path:
    """HF-style Parquet shards of colour JPEGs: a colour per class, with coarse noise.

    Five distinct images of each class are encoded and repeated; every file has all its bytes.
    """
    rng = np.random.default_rng(0)
    files = []
    for _ in range(classes):
        colour = rng.integers(40, 216, 3)
        coarse = rng.integers(-40, 41, (_DISTINCT, 8, 8, 3))
        fine = np.kron(coarse, np.ones((1, side // 8, side // 8, 1), int)) + colour
        files.append([encoded(x, "JPEG") for x in fine.clip(0, 255).astype(np.uint8)])
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(f"c{k:03d}" for k in range(classes)))
    for split, count in (("train", per_class), ("test", test_per_class)):
        rows = rng.permutation(classes * count)
        shards = np.array_split(rows, max(1, len(rows) // _SHARD))
        for n, shard in enumerate(shards):
            labels = shard % classes
            images = [files[c][k % _DISTINCT] for c, k in zip(labels, shard, strict=True)]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            rows_of = pa.array([{"bytes": data, "path": None} for data in images], kind)
            table = pa.table({"image": rows_of, "label": pa.array(labels, pa.int64())})
            name = f"{split}-{n:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(table, root / name, use_dictionary=False)
    return root


@dataclass(frozen=True)
class Watched:
    """A finished command: what it said, and its memory at the most, in bytes.

    `resident` counts all pages (`ru_maxrss`), `anonymous` those that no file backs.
    """

    code: int
    output: str
    resident: int
    anonymous: int
    seconds: float


def watched(arguments: Sequence[str], environment: Mapping[str, str]) -> Watched:
    """Run `python -m moedd ARGUMENTS` and watch its memory."""
    whole = {**os.environ, **environment}
    whole["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    began, most = time.perf_counter(), 0
    command = [sys.executable, "-m", "moedd", *arguments]
    child = subprocess.Popen(
        command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    assert child.stdout is not None
    reader = threading.Thread(target=lambda: said.append(child.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        most = max(most, _anonymous(child.pid))
        time.sleep(0.02)
    child.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    seconds = time.perf_counter() - began
    return Watched(child.returncode, said[0], usage.ru_maxrss * 1024, most, seconds)


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0
