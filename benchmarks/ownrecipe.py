"""Every method alone, evaluated by its own recipe, beside random selection.

    python -m benchmarks.ownrecipe cifar10 --data DIR --hours 0.1 --out OUT
    python -m benchmarks.ownrecipe digits --methods idm,dm,mtt:mtt.trajectories=10 --seeds 3

For each method: `moedd distill DATA-METHOD-IPCx1` for as much of its schedule as `--hours` allow
(or `--schedule`), then `moedd evaluate` by the method's recipe, with draws of random real images
(three, or `--draws`) under the same decode rule and recipe. A method is named with its settings,
`METHOD:KEY=VALUE:KEY=VALUE`. Networks trained on one set share its images: `--seeds N` makes N
sets, NAME, NAME-s1, NAME-s2 ..., and the mean of a method is that of its sets. One line per method
goes to OUT/DATA.jsonl, its log to OUT/DATA-METHOD.log; the sets stay in $MOEDD_HOME.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from moedd.protocols import protocol_recipe
from moedd_loaders.manifest import read_manifest
from moedd_loaders.records import Record, read_records
from moedd_loaders.resolve import home

PROTOCOL = {"idc": "idc", "idc_i": "idc", "mtt": "mtt"}  # all others: common
METHODS = ("idc", "idc_i", "idm", "idm_plain", "mtt", "dm", "dsa", "dc")


def one_method(spec: str, given: argparse.Namespace) -> dict[str, Any]:
    """Distil and evaluate one method; its row, or what went wrong."""
    method, *settings = spec.split(":")
    name = f"{given.data_name}-{method}-{given.ipc}x1"
    protocol = PROTOCOL.get(method, "common")
    names = [name if seed == 0 else f"{name}-s{seed}" for seed in range(given.seeds)]
    began = time.perf_counter()
    with (given.out / f"{given.data_name}-{method}.log").open("w") as log:
        for seed, own in enumerate(names):
            for command in commands(name, own, seed, protocol, settings, given):
                if (home() / "sets" / own / "moedd.json").exists() and command[0] == "distill":
                    continue
                words = [sys.executable, "-m", "moedd", *command]
                done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False)
                if done.returncode:
                    return {"name": name, "failed": command, "exit_code": done.returncode}
    found = row(names, protocol, given.epochs, settings)
    return {**found, "seconds": round(time.perf_counter() - began)}


def commands(
    name: str,
    own: str,
    seed: int,
    protocol: str,
    settings: Sequence[str],
    given: argparse.Namespace,
) -> list[list[str]]:
    """What is run for the set of one seed, called `own`; random images are drawn beside seed 0."""
    length = ["--max-hours", str(given.hours)] if given.hours else ["--schedule", given.schedule]
    data = ["--data", given.data] if given.data else []
    profile = ["--profile", given.profile]
    judged = ["--profile", given.evaluation_profile or given.profile]
    chosen = [word for setting in settings for word in ("--set", setting)]
    how = ["--protocol", protocol, *(["--epochs", str(given.epochs)] if given.epochs else [])]
    how += ["--networks", given.network] if given.network else []
    seeded = ["--seed", str(seed), "--name", own]
    wanted = [
        ["distill", name, "--no-evaluate", *seeded, *data, *length, *profile, *chosen],
        ["evaluate", own, *data, *judged, *how, "--fuse", "none",
         "--repeats", str(given.repeats)],
    ]  # fmt: skip
    if seed == 0:
        drawn = ["--only-baselines", "--repeats", "1", "--random", str(given.draws)]
        wanted.append(["evaluate", own, *data, *judged, *how, *drawn])
    return wanted


def row(
    names: Sequence[str], protocol: str, epochs: int | None, settings: Sequence[str]
) -> dict[str, Any]:
    """What the sets' manifests and their records of this recipe say."""
    folders = [home() / "sets" / name for name in names]
    manifests = [read_manifest(folder) for folder in folders]
    manifest = manifests[0]
    made = manifest.provenance
    recipe = protocol_recipe(protocol, epochs or manifest.evaluation.get("epochs")).name
    records = [
        [record for record in read_records(own, folder) if record.protocol == recipe]
        for own, folder in zip(manifests, folders, strict=True)
    ]
    found: dict[str, Any] = {"name": names[0], "settings": list(settings), "protocol": recipe}
    found |= {"steps": made.iterations, "fraction": made.schedule_fraction, "losses": made.losses}
    found |= {"matching_seconds": round(made.seconds or 0), "hardware": records[0][0].hardware}
    found |= {"device": made.device, "profile": made.profile, "notes": manifest.source.notes}
    means = [accuracies(own, "distilled")["mean"] for own in records]
    found["sets"] = {"means": means, **spread(means)}
    found["distilled"] = accuracies([record for own in records for record in own], "distilled")
    return found | {"random": accuracies(records[0], "random")}


def accuracies(records: Sequence[Record], variant: str) -> dict[str, Any]:
    """Accuracies in percent of a variant's networks, their mean and standard deviation."""
    values = [round(100 * record.accuracy, 2) for record in records if record.variant == variant]
    return {"accuracies": values, **spread(values)}


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (n - 1), to two places."""
    deviation = round(stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(mean(values), 2), "std": deviation}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a method failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ownrecipe", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data_name", help="cifar10, digits, ...")
    parser.add_argument("--data", help="where the real data are, as moedd distill has it")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--hours", type=float, help="of matching, per method")
    parser.add_argument("--schedule", default="short", help="without --hours: as moedd distill's")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--evaluation-profile", help="default: the same")
    parser.add_argument("--network", help="of the evaluation (default: the ConvNet that fits)")
    parser.add_argument("--epochs", type=int, help="of the evaluation (default: the set's)")
    parser.add_argument("--seeds", type=int, default=1, help="sets of each method")
    parser.add_argument("--repeats", type=int, default=3, help="networks of each set")
    parser.add_argument("--draws", type=int, default=3, help="of random real images")
    parser.add_argument("--jobs", type=int, default=1, help="methods at the same time")
    parser.add_argument("--out", type=Path, default=Path("own-recipe"))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    failed = False
    with ThreadPoolExecutor(given.jobs) as together:
        for found in together.map(lambda spec: one_method(spec, given), given.methods.split(",")):
            failed = failed or "failed" in found
            print(json.dumps(found), flush=True)
            with (given.out / f"{given.data_name}.jsonl").open("a") as lines:
                lines.write(json.dumps(found) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
