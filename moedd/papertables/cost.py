"""What cells cost in floating-point operations, two per multiply-add, before anything is made.

Counted are convolutions and products, as the engine counts them when it decides on compiling: a
parameter gradient is three forward passes. What is made once and shared (pools, trajectories,
observers) is counted apart.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from moedd.arithmetic import forward_operations
from moedd.config import RunConfig
from moedd.experts import ExpertConfig, expert_class
from moedd.experts.mtt import MTTConfig
from moedd.experts.rded import RDEDConfig
from moedd.mixture import scaled
from moedd.networks import Network, network_for
from moedd.papertables.cells import Cell, Evaluation, Facts, SetCell, set_config
from moedd.parts import whole
from moedd.pool import Pool, PoolConfig, network_paths, pool_key
from moedd.protocols import fitted, protocol_recipe
from moedd.realdata import RealData
from moedd.trajectories import TrajectoryConfig, trajectory_key, trajectory_path
from moedd_loaders.errors import UsageError


@dataclass(frozen=True)
class SetCost:
    """`steps` and `operations` of matching by expert, and of the diversity step; `observers`:
    operations of networks that this set alone needs (RDED's, each on its part)."""

    steps: tuple[int, ...]
    matching: tuple[float, ...]
    diversity: float
    observers: float

    @property
    def operations(self) -> float:
        """Of matching and the diversity step: what is compared as arithmetic."""
        return sum(self.matching) + self.diversity


@dataclass(frozen=True)
class Preparation:
    """Something made once and shared by many sets: a pool, or the trajectories of MTT.

    `config` says how its networks are trained, `network` and `width` which; `count` of them.
    """

    data: str
    network: str
    width: int
    config: PoolConfig | TrajectoryConfig
    count: int
    epochs: int
    operations: float

    @property
    def title(self) -> str:
        """In words."""
        what = f"pool of {self.count} {self.network}"
        if isinstance(self.config, TrajectoryConfig):
            what = f"{self.count} trajectories of {self.network}, {self.epochs} epochs"
        return f"{what} on {self.data}"


@cache
def architecture(name: str, shape: tuple[int, int, int], classes: int, width: int = 128) -> Network:
    """A network to count on, built once: a plan asks for the same few for each of its cells."""
    return network_for(name, shape, classes, width)


def step_operations(method: str, settings: ExpertConfig, network: Network, classes: int) -> float:
    """Operations of one step of a method; 0 where its author counts none.

    An expert that was never given data knows what a step costs: its settings, the architecture
    and the number of classes decide that.
    """
    cls = expert_class(method)
    bare = cast(Any, cls.__new__(cls))
    bare.config, bare.pool = settings, Pool(network, (), key="")
    bare.part = SimpleNamespace(classes=tuple(range(classes)))
    bare.labels = torch.empty(classes * settings.ipc)
    try:
        return float(bare.step_operations())
    except AttributeError:  # a method of another package that counts by its data
        return 0.0


@cache
def set_cost(cell: SetCell, facts: Facts) -> SetCost:
    """Cost of making a set, the shared things apart."""
    config = set_config(cell, facts)
    network = architecture(config.network, facts.shape, facts.classes, config.width)
    steps = tuple(scaled(expert.steps, cell.fraction) for expert in config.experts)
    each = [
        step_operations(method, settings, network, facts.classes)
        for method, settings in zip(config.methods, config.experts, strict=True)
    ]
    matching = tuple(n * one for n, one in zip(steps, each, strict=True))
    forward = forward_operations(network)
    return SetCost(
        steps, matching, _diversity(config, max(steps), forward, facts.classes),
        sum(3 * forward * o.observer_steps * o.observer_batch for o in _observed(config)),
    )  # fmt: skip


def _diversity(config: RunConfig, ticks: int, forward: float, classes: int) -> float:
    """A pair's features, and their gradient with respect to the images: as much again."""
    every, experts = config.diversity.every, config.experts
    if len(experts) < 2 or not every:
        return 0.0
    decoded = [classes * expert.ipc * expert.factor**2 for expert in experts]
    pair = 2 * sum(decoded) / len(decoded)
    return ticks // every * 2 * forward * pair


def _observed(config: RunConfig) -> list[RDEDConfig]:
    return [e for e in config.experts if isinstance(e, RDEDConfig) and e.observer == "part"]


def equal_fraction(cell: SetCell, other: SetCell, facts: Facts) -> float:
    """The fraction at which `cell` costs the matching operations of `other`.

    Raises UsageError: one of them has none, so that nothing can be made equal.
    """
    whole = [set_cost(replace(c, fraction=1.0), facts).operations for c in (cell, other)]
    if not all(whole):
        raise UsageError(
            f"{cell.methods} or {other.methods} optimises nothing: no schedule makes their "
            "arithmetic equal"
        )
    return other.fraction * whole[1] / whole[0]


def preparations(cell: SetCell, facts: Facts) -> list[Preparation]:
    """What a set needs of what is shared."""
    config = set_config(cell, facts)
    network = architecture(config.network, facts.shape, facts.classes, config.width)
    forward = forward_operations(network)
    own = (facts.data, config.network, config.width)
    found = []
    experts = list(zip(config.methods, config.experts, strict=True))
    if len(experts) > 1 or any(expert_class(m).uses_stored(s) for m, s in experts):
        pool = config.pool
        work = 3 * forward * pool.networks * pool.steps * pool.batch
        found.append(Preparation(*own, pool, pool.networks, 0, work))
    for settings in config.experts:
        if isinstance(settings, MTTConfig):
            count, epochs = settings.trajectories, settings.epochs
            work = 3 * forward * count * epochs * facts.train
            trained = settings.trajectory_config()
            found.append(Preparation(*own, trained, count, epochs, work))
    return found


def is_prepared(work: Preparation, real: RealData, home: Path, precision: str) -> bool:
    """Whether it is there. (Trajectories may still have to be lengthened.)"""
    part = whole(real)
    network = architecture(work.network, real.shape, len(real.classes), work.width)
    if isinstance(work.config, TrajectoryConfig):
        folder = home / "trajectories" / trajectory_key(part, network, work.config, precision)
        return trajectory_path(folder, work.count - 1).exists()
    folder = home / "pools" / pool_key(part, network, work.config, precision)
    return all(path.exists() for path in network_paths(folder, work.count))


def training_images(cell: Cell, facts: Facts) -> int:
    """Images that a network of this cell trains on, after decoding."""
    on = cell.on
    if isinstance(on, SetCell):
        config = set_config(on, facts)
        return facts.classes * sum(e.ipc * e.factor**2 for e in config.experts)
    if cell.identity.variant == "full":
        return facts.train
    return facts.classes * cell.identity.budget * cell.identity.factor**2


@cache
def network_operations(cell: Cell, facts: Facts) -> float:
    """Training (three forward passes per image and epoch) and testing."""
    evaluation: Evaluation = cell.evaluation
    network = architecture(cell.network, facts.shape, facts.classes, evaluation.width)
    images = training_images(cell, facts)
    recipe = fitted(
        protocol_recipe(evaluation.protocol, evaluation.epochs, evaluation.best), cell.network,
        images=images, classes=facts.classes, fuse=cell.fuse,
    )  # fmt: skip
    tests = len(recipe.points) if evaluation.best else 1
    return forward_operations(network) * (3 * recipe.passes * images + tests * facts.test)
