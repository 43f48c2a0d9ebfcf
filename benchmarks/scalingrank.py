"""One rank of a scaling measurement, under torchrun or alone; rank 0 prints a line of JSON.

    python -m benchmarks.scalingrank JOB ROUNDS WIDTH

Shapes are CIFAR-10's (noise instead of pictures), ConvNet-3. Everything runs uncompiled.
"""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.jobs import SHAPE, noise_data
from moedd.config import RunConfig
from moedd.diversity import DiversityConfig
from moedd.experts import expert_class
from moedd.launch import joined
from moedd.mixture import Mixture
from moedd.parts import whole
from moedd.pool import PoolConfig, load_pool
from moedd.profile import choose_profile
from moedd.progress import Reporter
from moedd.ranks import SENT, Ranks
from moedd.together import gather_experts

IPC = 10
QUIET = Reporter(quiet=True)
NETWORKS = 2


def mixture_of(methods: tuple[str, ...], width: int, home: Path, **settings: Any) -> Mixture:
    """Experts on noise, with a pool of two networks that have hardly been trained."""
    experts = tuple(expert_class(m).config_class(ipc=IPC, steps=1000, **settings) for m in methods)
    config = RunConfig(
        data="noise", shape=SHAPE, methods=methods, ipc=IPC, network="convnet3", width=width,
        pool=PoolConfig(networks=NETWORKS, steps=1, every=1), diversity=DiversityConfig(every=1000),
        experts=experts,
    )  # fmt: skip
    return Mixture.build(config, noise_data(), home, choose_profile("float32", "cpu"), QUIET)


def ticks(mixture: Mixture) -> Callable[[], object]:
    """One step of every expert."""
    done = iter(range(1, 1000))
    return lambda: mixture.tick(next(done), [1000] * len(mixture.experts))


def make_job(name: str, width: int, home: Path) -> Callable[[], object]:
    """What is timed: JOBS of `benchmarks.scaling`."""
    if name == "pool":
        part, profile = whole(noise_data()), choose_profile("float32", "cpu")
        seeds = iter(range(1000))

        def train() -> None:
            config = PoolConfig(networks=NETWORKS, steps=20, every=20, seed=next(seeds))
            load_pool(part, "convnet3", width, config, home / "timed", QUIET, profile)

        return train
    if name == "network":
        return ticks(mixture_of(("dc",), width, home, outer=1000, inner=1, batch_real=64))
    mixture = mixture_of(("idc", "idc") if name != "classes" else ("idc",), width, home)
    if name == "checkpoint":
        return lambda: gather_experts(mixture.experts)
    return ticks(mixture)


def measure(job: Callable[[], object], rounds: int, ranks: Ranks) -> dict[str, Any]:
    """Seconds of one unit after a first one, on the slowest rank, and the bytes that all ranks
    handed over in it, by kind."""
    job()
    SENT.clear()
    ranks.wait()
    began = time.perf_counter()
    for _ in range(rounds):
        job()
    seconds = ranks.largest(time.perf_counter() - began) / rounds
    sent: Counter[str] = Counter()
    for counted in ranks.collect(dict(SENT)):
        sent.update(counted)
    return {"seconds": seconds, "sent": {kind: sent[kind] / rounds for kind in sorted(sent)}}


def main() -> None:
    name, rounds, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with joined() as ranks:
        home = Path(ranks.tell(tempfile.mkdtemp))
        result = measure(make_job(name, width, home), rounds, ranks)
        ranks.tell(lambda: shutil.rmtree(home))
        if ranks.first:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
