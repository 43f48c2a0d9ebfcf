"""Time loading against torchvision's MixUp: `python -m benchmarks.loader [--quick] [--json]`.

Both sides mix the same float32 images (3 x 32 x 32, batch 256, shuffled) in the same process, one
epoch each in turn, and the medians are compared:

    torchvision   DataLoader without workers, `v2.MixUp` in its `collate_fn`, as its documentation
                  shows it
    batches       `for images, labels in ds.batches(256)`
    dataloader    DataLoader without workers over the same data set

The floor is what has to be moved (anchors and partners read, batches written: three passes) over
the memory bandwidth measured here. Run it on a machine that does nothing else.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

from moedd_loaders import DistilledDataset

BATCH, CLASSES, SHAPE = 256, 10, (3, 32, 32)
PASSES = 3
SIZES = (100, 50_000)


def data(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """n images, labels and expert ids of two experts."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(n)
    return torch.rand(n, *SHAPE, generator=generator), rows % CLASSES, rows // 10 % 2


def sides(n: int) -> dict[str, Iterable[Any]]:
    """Three loaders of the same images; iterating is one epoch."""
    images, labels, experts = data(n)
    mixup = v2.MixUp(num_classes=CLASSES)
    plain = DataLoader(
        TensorDataset(images, labels),
        batch_size=BATCH,
        shuffle=True,
        collate_fn=lambda items: mixup(*default_collate(items)),
    )
    names = [str(c) for c in range(CLASSES)]
    ds = DistilledDataset(
        images, labels, experts, classes=names, mean=[0.0] * 3, std=[1.0] * 3, fuse="mixup"
    )
    return {
        "torchvision": plain,
        "batches": ds.batches(BATCH),
        "dataloader": DataLoader(ds, batch_size=BATCH, shuffle=True),
    }


def measure(n: int, rounds: int) -> list[dict[str, Any]]:
    """One row per way, against torchvision."""
    ways = sides(n)
    # Small epochs are timed many at a time: one lasts less than the clock is worth.
    repeats = max(1, 4_000 // n)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, epoch in ways.items():
            start = time.perf_counter()
            for _ in range(repeats):
                for _ in epoch:
                    pass
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) * 1e3 / repeats)
    middle = {name: median(values) for name, values in times.items()}
    moved = PASSES * n * 4 * SHAPE[0] * SHAPE[1] * SHAPE[2]
    return [
        {
            "name": name,
            "n": n,
            "torchvision_ms": round(middle["torchvision"], 3),
            "moedd_ms": round(middle[name], 3),
            "ratio": round(middle["torchvision"] / middle[name], 2),
            "moved_mb": round(moved / 1e6, 1),
        }
        for name in ("batches", "dataloader")
    ]


def bandwidth(seconds: float = 1.0) -> float:
    """Bytes per millisecond, read and written, of copying what no cache holds."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * 4 * len(source) / (time.perf_counter() - start) / 1e3)
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within a minute")
    parser.add_argument("--json", action="store_true", help="print one list of rows")
    parser.add_argument("--rounds", type=int, help="turns of every side (15; quick 5)")
    given = parser.parse_args(arguments)
    speed = bandwidth(0.5 if given.quick else 2.0)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"copying moves {speed / 1e6:.1f} GB/s\n"
        f"{'name':11} {'images':>7} {'torchvision ms':>15} {'moedd ms':>9} {'ratio':>6} "
        f"{'floor ms':>9} {'of floor':>8}",
        file=sys.stderr,
    )
    rows = []
    for n in SIZES:
        for row in measure(n, given.rounds or (5 if given.quick else 15)):
            floor = row["moved_mb"] * 1e6 / speed
            row["floor_ms"] = round(floor, 3)
            rows.append(row)
            print(
                f"{row['name']:11} {n:7} {row['torchvision_ms']:15.3f} {row['moedd_ms']:9.3f} "
                f"{row['ratio']:5.2f}x {floor:9.3f} {row['moedd_ms'] / floor:8.2f}",
                file=sys.stderr,
                flush=True,
            )
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
