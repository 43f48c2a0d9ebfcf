"""How far the engine is from what the machine can do: `python -m benchmarks.floors engine.json`.

Reads the rows that `python -m benchmarks.engine --json` printed on this machine, measures the rate
of one convolution (128 -> 128 channels at 16x16, the network's middle layer) and of copying memory,
and prints for every row the two floors:

    operations    the row's floating-point operations over the convolution's rate
    bytes         every layer's output written once and read once in each pass, over the bandwidth

Neither overlaps the other on a CPU, so their sum is a fair target. Then it prints which share of a
step lies outside the network: sampling and augmentation, and the diversity step of a mixture.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.jobs import Setting, network_of, noise_data, operations, pair_of, trainer_of
from moedd.arithmetic import Arithmetic, forward_operations
from moedd.diversify import diversity_step
from moedd.diversity import DiversityConfig
from moedd.pool import real_batch
from moedd.profile import Profile, choose_profile
from moedd.streams import Streams

EVERY = DiversityConfig().every


def seconds(function: Callable[[], object], times: int = 7) -> float:
    """Median over `times` runs after two of warming up."""
    taken = []
    for n in range(times + 2):
        began = time.perf_counter()
        function()
        if n >= 2:
            taken.append(time.perf_counter() - began)
    return median(taken)


def convolution_rate(dtype: torch.dtype) -> float:
    """Operations per second of the middle layer, the better of the two memory formats."""
    rates = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(64, 128, 16, 16, dtype=dtype).to(memory_format=layout)
        w = torch.randn(128, 128, 3, 3, dtype=dtype).to(memory_format=layout)
        taken = seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1))  # type: ignore[misc]
        rates.append(2 * x.numel() * 128 * 9 / taken)
    return max(rates)


def bandwidth() -> float:
    """Bytes per second, read and written, of copying a buffer larger than the caches."""
    source = torch.randn(64, 1024, 1024)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))


def bytes_of_forward(name: str, itemsize: int) -> float:
    """Bytes per image of a forward pass: outputs of convolutions, normalisations (ReLU included)
    and poolings, written and read once each."""
    network, total = network_of(name), 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    for layer in network.modules():
        if not list(layer.children()) and not isinstance(layer, (nn.ReLU, nn.Identity)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return 2.0 * total * itemsize


def floors(rows: list[dict[str, Any]], ipc: int) -> None:
    """Print both floors of every row, which was measured at `ipc` images per class."""
    rates = {"float32": convolution_rate(torch.float32), "fast": convolution_rate(torch.bfloat16)}
    speed = bandwidth()
    print(
        f"convolution: {rates['float32'] / 1e9:.0f} GFLOP/s in float32, "
        f"{rates['fast'] / 1e9:.0f} in bfloat16; memory: {speed / 1e9:.1f} GB/s"
    )
    heads = ("ops ms", "bytes ms", "engine ms", "of sum")
    print(f"{'name':16} {'profile':8} " + " ".join(f"{head:>9}" for head in heads))
    for row in rows:
        network = row["name"].removeprefix("train_") if "train_" in row["name"] else "convnet3"
        work = operations(row["name"], Setting("engine", ipc=ipc))
        passes = work / forward_operations(network_of(network))
        moved = passes * bytes_of_forward(network, 4 if row["profile"] == "float32" else 2)
        a, b = 1e3 * work / rates[row["profile"]], 1e3 * moved / speed
        print(
            f"{row['name']:16} {row['profile']:8} {a:9.1f} {b:9.1f} {row['engine_ms']:10.1f} "
            f"{row['engine_ms'] / (a + b):6.2f}x"
        )


class _Clock:
    """Adds up the time spent in the heavy functions of one `Arithmetic`."""

    def __init__(self, functions: Arithmetic) -> None:
        self.seconds = 0.0
        for name in ("gradient_match", "feature_match"):
            setattr(functions, name, self._timed(getattr(functions, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*inputs: Any) -> Any:
            began = time.perf_counter()
            result = function(*inputs)
            self.seconds += time.perf_counter() - began
            return result

        return timed


def shares(profile: Profile) -> None:
    """Print what lies outside the network's arithmetic."""
    profile = profile.for_work(1e18)
    real = noise_data()
    for method in ("idc", "idm"):
        experts = pair_of(method, profile, real)
        experts[0].settle(1e18)
        experts[0].step()
        clock = _Clock(experts[0].arithmetic)
        began = time.perf_counter()
        for _ in range(5):
            experts[0].step()
        whole = time.perf_counter() - began
        diverse = seconds(lambda e=experts: diversity_step(e, DiversityConfig(), Streams(0)), 3)  # type: ignore[misc]
        ticks = 2 * whole / 5 * EVERY
        print(
            f"{method} 5x2, {profile.name}: step {1e3 * whole / 5:.0f} ms, "
            f"outside the network {100 * (1 - clock.seconds / whole):.1f} %, "
            f"diversity step {100 * diverse / (ticks + diverse):.1f} % of the run"
        )
    trainer, part = trainer_of("convnet3", profile, real, 64)
    rows = torch.arange(64)
    whole = seconds(lambda: trainer.step(real_batch(part, rows)))
    generator = torch.Generator().manual_seed(0)
    inputs = seconds(lambda: trainer.augment(part.normalized(rows), generator))
    print(
        f"training, {profile.name}: step {1e3 * whole:.1f} ms, sampling and augmentation "
        f"{100 * inputs / whole:.1f} %"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors")
    parser.add_argument("rows", nargs="?", help="what benchmarks.engine --json printed")
    parser.add_argument("--ipc", type=int, default=10, help="as it was measured")
    given = parser.parse_args()
    if given.rows:
        with open(given.rows, encoding="utf-8") as text:
            rows = json.load(text)
        choose_profile("float32", "cpu")
        floors(rows, given.ipc)
    for name in ("float32", "fast"):
        shares(choose_profile(name, "cpu"))


if __name__ == "__main__":
    main()
