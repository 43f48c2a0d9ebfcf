"""How a run gets faster on two ranks: `python -m benchmarks.scaling [--rounds 3] [--json]`.

Every job is timed in a process of its own, in two such processes that know nothing of each other,
and on two ranks, one thread each. The second says what the machine has to give: two hardware
threads of one core are no two cores. Then a step of 1,000 classes at 64x64 pixels is projected to
eight GPUs. Run it on a machine that does nothing else.

    experts      a step of two IDC experts, one on each rank
    classes      a step of one IDC expert, five classes on each rank
    network      a step of one DC expert: its classes and its network's training on both ranks
    pool         20 training steps of each of two networks
    checkpoint   bringing two experts' state to rank 0
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch

from moedd.arithmetic import forward_operations
from moedd.experts.idc import IDCConfig
from moedd.networks import build_network

JOBS = ("experts", "classes", "network", "pool", "checkpoint")
LINKS = {
    "NVLink, 300 GB/s": 300e9,
    "PCIe 4, 25 GB/s": 25e9,
    "100 Gbit/s": 12.5e9,
    "10 Gbit/s": 1.25e9,
}
"""Bytes a second in one direction, as their makers state them."""
H100_STEP_SECONDS = 0.045
"""One IDC step of ten classes at 32x32 and ipc 10 on an H100 (docs/performance.md)."""
MEETING_SECONDS = 1e-3
"""Of a collective of a few numbers between hosts, far above what networks state."""


def start_job(name: str, ranks: int, rounds: int, width: int) -> "subprocess.Popen[bytes]":
    """One job on so many ranks."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        launcher = "torch.distributed.run"
        command += [launcher, "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command += ["benchmarks.scalingrank", name, str(rounds), str(width)]
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(command, env={**plain, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)


def result_of(job: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Seconds and bytes of one unit."""
    printed, _ = job.communicate()
    if job.returncode:
        raise SystemExit(f"{' '.join(map(str, job.args))} ended with {job.returncode}")  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(printed.decode().strip().splitlines()[-1])
    return found


def row_of(name: str, rounds: int, width: int) -> dict[str, Any]:
    """One job alone, twice at the same time, and on two ranks."""
    one = result_of(start_job(name, 1, rounds, width))["seconds"]
    pair = [start_job(name, 1, rounds, width) for _ in range(2)]
    beside = sum(result_of(job)["seconds"] for job in pair) / 2
    two = result_of(start_job(name, 2, rounds, width))
    moved = ", ".join(f"{kind} {size:,.0f}" for kind, size in two["sent"].items() if size)
    faster, ceiling = one / max(two["seconds"], 1e-9), 2 * one / max(beside, 1e-9)
    return {
        "job": name,
        "1 rank, s": one,
        "2 ranks, s": two["seconds"],
        "times faster": faster,
        "two processes apart": ceiling,
        "of that": f"{faster / ceiling:.0%}",
        "bytes moved": moved or "none",
    }


@dataclass(frozen=True)
class Projection:
    """A step of one IDC expert whose classes are spread over `gpus`."""

    classes: int = 1000
    side: int = 64
    ipc: int = 10
    gpus: int = 8

    def operations(self) -> float:
        """Floating-point operations of a step on all GPUs together."""
        return step_operations("convnet4", self.classes, self.side, self.ipc)

    def seconds(self, gpu_step: float) -> float:
        """Of a step on one of the GPUs, given that of the measured step (ten classes, 32x32,
        ipc 10), at the same operations a second."""
        rate = step_operations("convnet3", 10, 32, 10) / gpu_step
        return self.operations() / self.gpus / rate

    def image_bytes(self) -> float:
        """Of all stored images, as they travel before a diversity step and at checkpoints."""
        return 4.0 * self.classes * self.ipc * 3 * self.side**2

    def feature_bytes(self) -> float:
        """Of an expert's features in a diversity step."""
        size = (self.side, self.side)
        network = build_network("convnet4", channels=3, classes=self.classes, size=size)
        features, _ = network(torch.zeros(1, 3, *size), features=True)
        return 4.0 * self.classes * self.ipc * 4 * features.shape[1]

    def rows(self, gpu_step: float, every: int = 10) -> list[dict[str, Any]]:
        """Per link: seconds of computing and of moving per step with a diversity step every
        `every` steps, and how many times faster than one GPU."""
        computing = self.seconds(gpu_step)
        moved = (self.image_bytes() + self.feature_bytes()) / every
        rows = []
        for link, rate in LINKS.items():
            moving = moved / rate + 2 * MEETING_SECONDS
            speed = self.gpus * computing / (computing + moving)
            rows.append(
                {"link": link, "computing": computing, "moving": moving, "times faster": speed}
            )
        return rows


def step_operations(network: str, classes: int, side: int, ipc: int) -> float:
    """Operations of an IDC step, by the rule of `IDC.step_operations`."""
    config = IDCConfig(ipc=ipc, steps=1)
    made = build_network(network, channels=3, classes=classes, size=(side, side))
    decoded = min(ipc * config.factor**2, config.batch_syn_max)
    return classes * forward_operations(made) * (3 * config.batch_real + 9 * decoded)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--only", default=",".join(JOBS), help="jobs with commas")
    parser.add_argument("--rounds", type=int, default=3, help="units timed after a first one")
    parser.add_argument("--width", type=int, default=128, help="channels of ConvNet-3")
    parser.add_argument(
        "--gpu-step", type=float, default=H100_STEP_SECONDS,
        help="seconds of an IDC step (ten classes, 32x32, ipc 10) on the GPU to project to",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    given = parser.parse_args()
    rows = []
    for name in given.only.split(","):
        if name not in JOBS:
            parser.error(f"unknown job {name!r}; known: {', '.join(JOBS)}")
        rows.append(row_of(name, given.rounds, given.width))
    projected = Projection().rows(given.gpu_step)
    if given.json:
        print(json.dumps({"measured": rows, "projected": projected}, indent=1))
        return
    print(table(rows))
    print("\n1,000 classes at 64x64, ipc 10, one IDC expert on 8 GPUs (projected):\n")
    print(table(projected))


if __name__ == "__main__":
    main()
