"""Real runs on a CUDA machine: what `benchmarks/gpu.sh` calls.

    python -m benchmarks.gpu pack DATA FILE     CIFAR-10 as one file of uint8 arrays
    python -m benchmarks.gpu run FILE OUT       a full IDM schedule and IDC at a stated fraction

Each run distils 10 images per class with one expert, trains networks on the result by IDC's recipe
and appends a line to OUT/runs.jsonl: seconds, steps, fraction, accuracies. Matching ends at the
asked fraction or after its minutes, whichever comes first; the fraction that was done is stated.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moedd.config import resolve_config
from moedd.evaluate import train_network
from moedd.mixture import Mixture
from moedd.profile import Profile, choose_profile, peak_memory_bytes
from moedd.progress import Reporter
from moedd.protocols import protocol_recipe
from moedd.realdata import RealData, RealSplit, fingerprint, load_real
from moedd.streams import Streams
from moedd.train import accuracy
from moedd_loaders.names import parse_name

NOTE = "the images are CIFAR-10 as packed by benchmarks/gpu.sh (JPEG q75 where DATA was)"


def pack(data: str, file: str) -> None:
    """Write the real data's uint8 images and labels, and what `RealData` says of them."""
    real = load_real("cifar10", path=data)
    about = {
        "classes": list(real.classes), "mean": list(real.mean), "std": list(real.std),
        "flip": real.flip, "notes": list(real.notes), "license": real.license,
    }  # fmt: skip
    np.savez_compressed(
        file, train=real.train.images.numpy(), train_labels=real.train.labels.numpy(),
        test=real.test.images.numpy(), test_labels=real.test.labels.numpy(),
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
    )  # fmt: skip


def unpack(file: str) -> RealData:
    """The packed data again."""
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        train, test = (
            RealSplit(torch.from_numpy(arrays[s]), torch.from_numpy(arrays[f"{s}_labels"]))
            for s in ("train", "test")
        )
    classes = tuple(about["classes"])
    return RealData(
        data="cifar10", hub_id=None, revision=None, license=about["license"], classes=classes,
        train=train, test=test, mean=tuple(about["mean"]), std=tuple(about["std"]),
        flip=about["flip"], fingerprint=fingerprint(classes, train, test), class_order="given",
        notes=[*about["notes"], NOTE],
    )  # fmt: skip


def one_run(
    name: str, real: RealData, profile: Profile, home: Path, fraction: float, minutes: float,
    repeats: int, epochs: int, overrides: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Distil and evaluate; the row that goes into runs.jsonl. `minutes` stops matching early."""
    config = resolve_config(
        parse_name(name, ["idm", "idc"]), real.shape, seed=0, overrides=overrides
    )
    mixture = Mixture.build(config, real, home, profile, Reporter())
    mixture.settle(fraction)
    steps = mixture.steps(fraction)
    mixture.tick(1, steps)  # compiles; not timed
    began = time.perf_counter()
    done = 1
    while done < max(steps) and time.perf_counter() - began < 60 * minutes:
        done += 1
        mixture.tick(done, steps)
    _wait(profile)
    seconds = time.perf_counter() - began
    accuracies = _accuracies(mixture, real, profile, repeats, epochs)
    whole = max(expert.steps for expert in mixture.experts)
    return {
        "name": name, "profile": str(profile), "device": profile.processor, "steps": done,
        "fraction": done / whole, "matching_seconds": round(seconds, 1),
        "ms_per_step": round(1e3 * seconds / max(done - 1, 1), 2), "protocol": f"idc-{epochs}",
        "accuracies": accuracies, "peak_mb": round(_peak(profile) / 2**20), "notes": real.notes,
    }  # fmt: skip


class _Fixed:
    """Decoded images as training data, resident on the device."""

    def __init__(self, mixture: Mixture) -> None:
        made = [expert.decoded() for expert in mixture.experts]
        self.images = torch.cat([images.detach() for images, _ in made])
        self.labels = torch.cat([labels for _, labels in made])

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, rows: torch.Tensor, epoch: int) -> Any:
        return lambda augment, plain: (augment(self.images[rows]), self.labels[rows])


def _accuracies(
    mixture: Mixture, real: RealData, profile: Profile, repeats: int, epochs: int
) -> list[float]:
    recipe, data = protocol_recipe("idc", epochs), _Fixed(mixture)
    found = []
    for repeat in range(repeats):
        streams = Streams(0).scope("evaluate", repeat)
        trainer = train_network(
            data, recipe, "convnet3", real, streams, 128, None, profile  # type: ignore[arg-type]
        )  # fmt: skip
        right = accuracy(
            trainer.network, real.test.images, real.test.labels, real.normalized,
            profile=trainer.arithmetic.profile,
        )  # fmt: skip
        found.append(round(100 * right, 2))
    return found


def _wait(profile: Profile) -> None:
    if profile.device == "cuda":
        torch.cuda.synchronize()


def _peak(profile: Profile) -> int:
    return torch.cuda.max_memory_allocated() if profile.device == "cuda" else peak_memory_bytes()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("data")
    packing.add_argument("file")
    running = commands.add_parser("run")
    running.add_argument("file")
    running.add_argument("out", type=Path)
    running.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    running.add_argument("--profile", default="fast")
    running.add_argument("--idm-fraction", type=float, default=1.0)
    running.add_argument("--idc-fraction", type=float, default=0.02)
    running.add_argument("--idm-minutes", type=float, default=5.0, help="of matching, at most")
    running.add_argument("--idc-minutes", type=float, default=1.0, help="of matching, at most")
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--epochs", type=int, default=300)
    running.add_argument("--set", action="append", help="key=value, as moedd distill has it")
    given = parser.parse_args(arguments)
    if given.command == "pack":
        pack(given.data, given.file)
        return
    real = unpack(given.file)
    profile = choose_profile(given.profile, given.device)
    given.out.mkdir(parents=True, exist_ok=True)
    plans = [
        ("cifar10-idm-10x1", given.idm_fraction, given.idm_minutes),
        ("cifar10-idc-10x1", given.idc_fraction, given.idc_minutes),
    ]
    for name, fraction, minutes in plans:
        row = one_run(
            name, real, profile, given.out / "home", fraction, minutes, given.repeats,
            given.epochs, given.set or [],
        )  # fmt: skip
        print(json.dumps(row))
        with (given.out / "runs.jsonl").open("a") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
