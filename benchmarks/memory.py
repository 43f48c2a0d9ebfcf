"""Peak memory of runs on made-up data, one factor changed at a time: `python -m benchmarks.memory`.

Every run is a process of its own, whose memory is watched from outside. The table goes to standard
output; docs/scale.md has one. `--large` runs 200 classes x 500 images at 64x64 instead (1.2 GB of
pixels), with the settings of `--set`.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_SHARD = 10_000
_DISTINCT = 5
_PAUSE = 0.01  # seconds between two looks at a process


def parquet_of_classes(
    root: Path, classes: int, per_class: int, side: int, test_per_class: int = 5
) -> Path:
    """Parquet shards of colour JPEGs as the Hub has them: a colour per class, with coarse noise.

    Five distinct images of each class are encoded and repeated; every file has all its bytes.
    """
    rng = np.random.default_rng(0)
    files = []
    for _ in range(classes):
        colour = rng.integers(40, 216, 3)
        coarse = rng.integers(-40, 41, (_DISTINCT, 8, 8, 3))
        fine = np.kron(coarse, np.ones((1, side // 8, side // 8, 1), int)) + colour
        files.append([_jpeg(pixels) for pixels in fine.clip(0, 255).astype(np.uint8)])
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(f"c{k:03d}" for k in range(classes)))
    for split, count in (("train", per_class), ("test", test_per_class)):
        rows = rng.permutation(classes * count)
        shards = np.array_split(rows, max(1, len(rows) // _SHARD))
        for n, shard in enumerate(shards):
            labels = shard % classes
            images = [files[c][k % _DISTINCT] for c, k in zip(labels, shard, strict=True)]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            column = pa.array([{"bytes": data, "path": None} for data in images], kind)
            table = pa.table({"image": column, "label": pa.array(labels, pa.int64())})
            name = f"{split}-{n:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(table, root / name, use_dictionary=False, compression="none")
    return root


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Watched:
    """A finished command: what it said, and its memory at the most, in bytes.

    `resident` counts all pages (`ru_maxrss`), `anonymous` those that no file backs, as seen every
    hundredth of a second.
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
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, env=whole, stdout=said, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            most = max(most, _anonymous(child.pid))
            time.sleep(_PAUSE)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        seconds = time.perf_counter() - began
        return Watched(child.returncode, said.read(), usage.ru_maxrss * 1024, most, seconds)


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0


@dataclass(frozen=True)
class Setting:
    """One run: real data, set, network width, student steps (MTT), and other settings."""

    method: str = "idm_plain"
    classes: int = 10
    per_class: int = 100
    side: int = 32
    ipc: int = 10
    experts: int = 2
    width: int = 64
    batch_real: int = 64
    syn_steps: int = 5
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the set."""
        return f"made-{self.method}-{self.ipc}x{self.experts}"

    def settings(self) -> list[str]:
        """`--set` options."""
        pool = ["pool.networks=1", "pool.steps=2", "pool.every=2", "diversity.every=1"]
        own = [f"{self.method}.batch_real={self.batch_real}", f"{self.method}.steps=2"]
        if self.method == "mtt":
            own = [
                *(f"mtt.syn_steps={self.syn_steps}", "mtt.steps=2", "mtt.trajectories=1"),
                *("mtt.expert_epochs=1", "mtt.max_start_epoch=1", "mtt.batch_syn=50"),
                *("mtt.step_size=1e-4", "mtt.lr_lr=1e-12", "mtt.lr_img=0.01"),
            ]
        given = [f"width={self.width}", *pool, *own, *self.more]
        return [text for setting in given for text in ("--set", setting)]


IDM = Setting()
MTT = Setting("mtt", experts=1)
CHANGES: dict[str, tuple[Setting, ...]] = {
    "as it is": (IDM,),
    "real images per class: 100, 1000": (IDM, replace(IDM, per_class=1000)),
    "classes: 10, 40": (IDM, replace(IDM, classes=40)),
    "images per class: 10, 40": (IDM, replace(IDM, ipc=40)),
    "side: 32, 64": (IDM, replace(IDM, side=64)),
    "experts: 2, 4": (IDM, replace(IDM, experts=4)),
    "network width: 64, 128": (IDM, replace(IDM, width=128)),
    "student steps (mtt): 5, 20": (MTT, replace(MTT, syn_steps=20)),
}
LARGE = Setting(classes=200, per_class=500, side=64, ipc=1, width=16, batch_real=16)


def measure(setting: Setting, folder: Path) -> Watched:
    """Make the data where they are missing, run, watch."""
    data = folder / f"{setting.classes}-{setting.per_class}-{setting.side}"
    if not data.exists():
        parquet_of_classes(data, setting.classes, setting.per_class, setting.side)
    with tempfile.TemporaryDirectory(dir=folder) as home:
        found = watched(
            ["distill", setting.name, "--data", str(data), "--schedule", "paper", "--no-evaluate",
             *setting.settings()],
            {"MOEDD_HOME": home},
        )  # fmt: skip
    if found.code:
        raise SystemExit(f"{setting.name} failed:\n{found.output}")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="200 classes x 500 images at 64x64")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of --large's run")
    given = parser.parse_args()
    large = replace(LARGE, more=tuple(given.set))
    changes = {"200 classes x 500 images, 64x64": (large,)} if given.large else CHANGES
    known: dict[Setting, Watched] = {}
    print("| changed | anonymous at the most, MB | resident at the most, MB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for what, settings in changes.items():
            for setting in settings:
                if setting not in known:
                    known[setting] = measure(setting, Path(folder))
            found = [known[setting] for setting in settings]
            columns = [
                ", ".join(f"{value / 1e6:.0f}" for value in values)
                for values in ([w.anonymous for w in found], [w.resident for w in found])
            ]
            print(f"| {what} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
