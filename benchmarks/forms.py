"""The forms that a device profile can take, timed against each other on this machine.

    python -m benchmarks.forms --device cuda

One IDC step (10 images per class), one IDM step, one training step of ConvNet-3, each under
float32 and fast: compiled or not, all classes of a step in one call or one after another, images
contiguous or channels last. The choices in `moedd/profile.py` come from this. With `--waits`, it
lists the places at which a step waits for a CUDA device instead.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.jobs import TRAIN_BATCH, Setting, make_expert, noise_data, trainer_of
from moedd.pool import real_batch
from moedd.profile import Profile, choose_profile

WORK = ("idc", "idm", "train_convnet3", "train_vgg11", "train_resnet18", "train_alexnet")


def forms(device: str, work: str) -> Iterator[Profile]:
    """The profiles to compare for one piece of work."""
    for name in ("float32", "fast"):
        chosen = choose_profile(name, device)
        for compiled in (False, True):
            many = (1, 10) if work in ("idc", "idm") else (1,)
            for at_once in many:
                layouts = ("contiguous", "channels_last") if name == "fast" else ("contiguous",)
                for layout in layouts:
                    yield replace(chosen, compiled=compiled, classes_at_once=at_once, layout=layout)


def piece(work: str, profile: Profile) -> Callable[[], object]:
    """One step of it, ready to be called."""
    real = noise_data()
    if work.startswith("train_"):
        trainer, part = trainer_of(work.removeprefix("train_"), profile, real, TRAIN_BATCH)
        rows = torch.arange(TRAIN_BATCH)
        return lambda: trainer.step(real_batch(part, rows))
    expert = make_expert(work, Setting("engine"), profile, real, networks="stored")
    expert.settle(0.0)
    return expert.step


def measure(step: Callable[[], object], rounds: int, seconds: float) -> tuple[float, float]:
    """(first call in seconds, later calls in milliseconds, the median)."""
    first = _timed(step)
    step()
    times: list[float] = []
    while len(times) < rounds and sum(times) < seconds:
        times.append(_timed(step))
    return first, 1e3 * median(times)


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def waits(step: Callable[[], object]) -> list[str]:
    """Where one step waits for the device: file and line of each place, once per time."""
    step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default=",".join(WORK), help="comma-separated")
    parser.add_argument("--waits", action="store_true", help="where a step waits for the device")
    parser.add_argument("--profiles", default="float32,fast", help="comma-separated")
    parser.add_argument("--compiled", choices=["yes", "no"], help="these forms only")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing, at most, per form")
    given = parser.parse_args(arguments)
    for work in given.only.split(","):
        if given.waits:
            found = waits(piece(work, replace(choose_profile("fast", "cuda"), compiled=False)))
            print(json.dumps({"work": work, "waits": found}), flush=True)
            continue
        for profile in forms(given.device, work):
            if profile.name not in given.profiles.split(","):
                continue
            if given.compiled and profile.compiled is not (given.compiled == "yes"):
                continue
            print(json.dumps(_row(work, profile, given.rounds, given.seconds)), flush=True)


def _row(work: str, profile: Profile, rounds: int, seconds: float) -> dict[str, Any]:
    first, later = measure(piece(work, profile), rounds, seconds)
    return {
        "work": work, "profile": profile.name, "compiled": profile.compiled,
        "classes_at_once": profile.classes_at_once, "layout": profile.layout,
        "first_s": round(first, 2), "ms": round(later, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
