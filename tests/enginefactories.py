"""Small things that the engine's tests are made of: real data, a pool in memory, experts, a run.

Everything here costs milliseconds: 8x8 images, two classes, networks of width 8 that nobody
trained. `digits` are real images, `random_data` is for tests that need odd shapes or class sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from moedd.config import RunConfig
from moedd.diversity import DiversityConfig
from moedd.experts import Expert, expert_class
from moedd.networks import build_network, fitting_network
from moedd.parts import PartData, split_parts, whole
from moedd.pool import Pool, PoolConfig, StoredNetwork
from moedd.profile import Profile
from moedd.realdata import RealData, RealSplit, fingerprint, load_real
from moedd.streams import Streams

WIDTH = 8
TINY_POOL = PoolConfig(networks=1, steps=4, every=2, batch=16)


@cache
def _all_digits() -> RealData:
    return load_real("digits")


def digits(classes: int = 2, per_class: int | None = None) -> RealData:
    """scikit-learn's digits 0 .. classes-1, the first `per_class` training images of each."""
    real = _all_digits()
    names = real.classes[:classes]

    def of(split: RealSplit, most: int | None) -> RealSplit:
        rows = [torch.nonzero(split.labels == c).flatten()[:most] for c in range(classes)]
        return split.subset(torch.cat(rows).sort().values)

    train, test = of(real.train, per_class), of(real.test, None)
    return replace(
        real, classes=names, train=train, test=test, fingerprint=fingerprint(names, train, test)
    )


def random_data(
    counts: Sequence[int] = (12, 12),
    shape: tuple[int, int, int] = (1, 8, 8),
    *,
    seed: int = 0,
    **fields: Any,
) -> RealData:
    """Noise: `counts[c]` training images of class c in mixed order, 3 test images of each.

    Channels have constants of their own; `fields` replace those of the RealData.
    """
    generator = torch.Generator().manual_seed(seed)

    def split(numbers: Sequence[int]) -> RealSplit:
        labels = torch.arange(len(numbers)).repeat_interleave(torch.tensor(numbers))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        size = (len(labels), *shape)
        pixels = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        return RealSplit(pixels, labels)

    train, test = split(counts), split([3] * len(counts))
    names = tuple(f"class {c}" for c in range(len(counts)))
    real = RealData(
        data="noise",
        hub_id=None,
        revision=None,
        license="unknown",
        classes=names,
        train=train,
        test=test,
        mean=tuple(0.45 + 0.03 * c for c in range(shape[0])),
        std=tuple(0.28 + 0.02 * c for c in range(shape[0])),
        flip=False,
        fingerprint=fingerprint(names, train, test),
        class_order="as given",
    )
    return replace(real, **fields)


def make_pool(part: PartData | RealData, networks: int = 3, *, seed: int = 0) -> Pool:
    """Untrained networks that fit the images; their accuracies are 20, 30, 40, ... percent."""
    channels, height, width = part.shape
    size = (height, width)
    stored = []
    for n in range(networks + 1):
        network = build_network(
            fitting_network(size, channels),
            channels=channels,
            classes=len(part.classes),
            size=size,
            width=WIDTH,
            generator=Streams(seed).generator("pool", n),
        )
        parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
        stored.append(StoredNetwork(parameters, 20.0 + 10 * n, 100 * n))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    # The template's own parameters are those of no stored network: whoever forgets to pass a
    # network's parameters gets other numbers.
    return Pool(network, tuple(stored[:networks]), key=f"tiny-{seed}")


def make_parts(real: RealData, experts: int = 2, ipc: int = 2, seed: int = 0) -> list[PartData]:
    """Disjoint stratified parts."""
    return split_parts(real, experts, "stratified", Streams(seed), ipc)


def schedule(method: str, steps: int) -> dict[str, int]:
    """The setting of a method's steps; none for those that are made at once."""
    at_once = expert_class(method).config_class.model_fields["steps"].default == 0
    return {} if at_once else {"steps": steps}


def make_expert(
    method: str,
    data: PartData | RealData | None = None,
    *,
    ipc: int = 2,
    pool: Pool | None = None,
    seed: int = 0,
    index: int = 0,
    prepared: Any = None,
    **settings: Any,
) -> Expert:
    """An expert on a part (or on all of some data; the digits 0 and 1 if nothing is given).

    Settings that are not given are the class's defaults, at 20 steps. `prepared`: what the method's
    `prepare` gives.
    """
    data = data or digits(2, 24)
    part = whole(data) if isinstance(data, RealData) else data
    cls = expert_class(method)
    config = cls.config_class(ipc=ipc, **{**schedule(method, 20), **settings})
    streams = Streams(seed).scope("expert", index)
    return cls(part, config, pool or make_pool(part), streams, Profile(), prepared)


def tiny_config(
    real: RealData, methods: Sequence[str] = ("idm", "idm"), *, ipc: int = 2, **fields: Any
) -> RunConfig:
    """A run that takes a second: `methods` on `real`, 6 steps each, a diversity step every 2."""
    experts = tuple(expert_class(m).config_class(ipc=ipc, **schedule(m, 6)) for m in methods)
    plain: dict[str, Any] = {
        "data": real.data,
        "shape": real.shape,
        "methods": tuple(methods),
        "ipc": ipc,
        "network": fitting_network(real.shape[1:], real.shape[0]),
        "width": WIDTH,
        "pool": TINY_POOL,
        "diversity": DiversityConfig(every=2),
        "experts": experts,
    }
    return RunConfig(**{**plain, **fields})


def step_until_it_fails(expert: Expert, seen: list[torch.Tensor]) -> None:
    """A few steps; the images after each go into `seen`."""
    for _ in range(5):
        expert.step()
        seen.append(expert.images.clone())
