"""Time the engine against plain code: `python -m benchmarks.engine [--quick] [--json]`.

Each name is one unit of work (see `benchmarks.jobs`). Four processes take turns at it, A B C D
A B C D: the plain code under the default allocator, the same under our allocator setting, and the
engine under the profiles float32 and fast. The medians are compared. Run it on a machine that does
nothing else; the first run compiles (minutes), later ones find the compiled code in the cache.

    python -m benchmarks.engine              everything, whole units
    python -m benchmarks.engine --quick      one class, one pool step, scaled up: within a minute;
                                             large networks at batch 16, uncompiled
    python -m benchmarks.engine --only idm_iteration,train_convnet3 --ipc 5
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.jobs import EXTRA, NAMES, Setting, make_job, operations
from benchmarks.workers import Here, Worker
from moedd.profile import bfloat16_units, processor_name

PROFILES = ("float32", "fast")
_QUICK_SECONDS = 1.0  # of one row: no second round after that
_COUNT = "operations"


def make_workers(common: dict[str, Any], profiles: Sequence[str]) -> dict[str, Worker]:
    """A worker per side: the plain code, on a CPU once more under our allocator setting, and the
    engine under each profile."""
    settings = {"baseline": Setting("baseline", **common)}
    if common["device"] == "cpu":  # the allocator's setting is the CPU's
        settings["tuned"] = Setting("tuned", **common)
    settings |= {p: Setting("engine", p, **common) for p in profiles}
    kind = Worker if common["device"] == "cpu" else Here
    made = {key: kind(partial(make_job, setting=setting)) for key, setting in settings.items()}
    # One more, that counts the work: it too must not compute where others are forked later.
    count = partial(operations, setting=Setting("engine", **common))
    return {**made, _COUNT: kind(lambda name: partial(count, name))}


def all_rows(
    names: Sequence[str], common: dict[str, Any], rounds: int, profiles: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows of all names. In a quick run the names share a process per side: what one has
    compiled serves the next, and `peak_mb` counts what it left behind too."""
    shared = common["quick"]
    for group in [list(names)] if shared else [[name] for name in names]:
        with ExitStack() as stack:
            workers = make_workers(common, profiles)
            for worker in workers.values():
                stack.enter_context(worker)
            # Setting up, compiling and warming up is nobody's time: all at once.
            for worker in workers.values():
                for name in group:
                    worker.begin(name)
            for worker in workers.values():
                worker.ready()
            for name in group:
                yield from measure(name, workers, common, rounds, profiles)


def measure(
    name: str, workers: dict[str, Worker], common: dict[str, Any], rounds: int,
    profiles: Sequence[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per profile; the workers take turns."""
    workers = dict(workers)
    work = workers.pop(_COUNT).turn(name)
    times: dict[str, list[float]] = {key: [] for key in workers}
    if common["quick"]:
        for worker in workers.values():
            worker.forget_peak()
    began = time.perf_counter()
    for _ in range(rounds):
        for key, worker in workers.items():
            times[key].append(worker.turn(name))
        if common["quick"] and time.perf_counter() - began > _QUICK_SECONDS:
            break
    peaks = {key: worker.peak_mb() for key, worker in workers.items()}
    middle = {key: median(values) for key, values in times.items()}
    rows = []
    for profile in profiles:
        row: dict[str, Any] = {"name": name, "profile": profile}
        for side in ("baseline", "tuned"):
            key = "baseline_ms" if side == "baseline" else "baseline_tuned_ms"
            row[key] = round(middle[side], 2) if side in middle else None
        row["engine_ms"] = round(middle[profile], 2)
        row["ratio"] = round(middle["baseline"] / middle[profile], 3)
        row["gflops"] = round(work / middle[profile] / 1e6, 1)
        row["peak_mb"] = round(peaks[profile], 1)
        if common["quick"]:
            row["scaled"] = True
        rows.append(row)
    return rows


def _header(device: str) -> str:
    return (
        f"{processor_name()}, bfloat16 units: {bfloat16_units()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, device {device}"
    )


def _line(row: dict[str, Any]) -> str:
    plain = [row["baseline_ms"], row["baseline_tuned_ms"]]
    cells = ["" if value is None else f"{value:10.1f}" for value in [*plain, row["engine_ms"]]]
    return (
        f"{row['name']:16} {row['profile']:8} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10} "
        f"{row['ratio']:6.2f}x {row['gflops']:8.0f} {row['peak_mb']:8.0f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="scaled parts, within a minute")
    parser.add_argument("--json", action="store_true", help="print one list of rows")
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated names")
    parser.add_argument("--ipc", type=int, default=10, help="stored images per class")
    parser.add_argument("--rounds", type=int, help="turns of every side (5; quick 2)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--profiles", default=",".join(PROFILES), help="comma-separated")
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    unknown = [name for name in names if name not in (*NAMES, *EXTRA)]
    if unknown:
        parser.error(f"unknown name {unknown[0]!r}; known: {', '.join((*NAMES, *EXTRA))}")
    if given.device == "cpu":
        # Imported before anything is forked, so that no worker has to; computes nothing.
        import torch._inductor.compile_fx  # noqa: F401

    print(_header(given.device), file=sys.stderr)
    print(
        f"{'name':16} {'profile':8} {'plain ms':>10} {'tuned ms':>10} {'engine ms':>10} "
        f"{'ratio':>7} {'GFLOP/s':>8} {'peak MB':>8}",
        file=sys.stderr,
    )
    common = {"device": given.device, "quick": given.quick, "ipc": given.ipc}
    rounds, rows = given.rounds or (2 if given.quick else 5), []
    for row in all_rows(names, common, rounds, given.profiles.split(",")):
        print(_line(row), file=sys.stderr, flush=True)
        rows.append(row)
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
