"""Cells: one set to make, one network to train. Each has an address, a hash over everything that
decides its result, so that finished work is found again and never done twice.

In the address: the real data (pixels, constants), every setting of the run and of the training
recipe, seeds, the part of the schedule, the precision. Not in it, because they move the last bits
only: threads, device, versions of libraries; records carry them. `FORM` is counted up when the code
changes what a cell gives.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from moedd.config import RunConfig, resolve_config
from moedd.datatable import DataSpec
from moedd.experts import method_names
from moedd.experts.rded import RDEDConfig
from moedd.papertables.rows import Identity
from moedd.protocols import protocol_recipe
from moedd.realdata import RealData
from moedd_loaders.names import SetName, parse_name

FORM = 1


@dataclass(frozen=True)
class Facts:
    """What addresses and costs need to know of real data.

    `shape` (C, H, W); `train` and `test` count images; `fingerprint` is empty where the data have
    not been read.
    """

    data: str
    fingerprint: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    train: int
    test: int

    @classmethod
    def of(cls, real: RealData) -> "Facts":
        """The facts of data in memory."""
        return cls(
            real.data, real.fingerprint, real.shape, len(real.classes), tuple(real.mean),
            tuple(real.std), real.flip, len(real.train), len(real.test),
        )  # fmt: skip

    @classmethod
    def known(cls, spec: DataSpec, size: tuple[int, int], channels: int) -> "Facts":
        """What moedd's table says of data that nobody has read yet; images are not counted."""
        mean, std = (
            values * channels if channels > len(values) else values
            for values in (spec.mean, spec.std)
        )
        shape = (channels, *size)
        return cls(spec.name, "", shape, len(spec.classes), mean, std, spec.flip, 0, 0)

    def identity(self) -> list[Any]:
        """The part of an address that is the data's."""
        return [self.data, self.fingerprint, self.mean, self.std, self.flip]


@dataclass(frozen=True)
class Arithmetic:
    """A profile by name, and the precision that it means on this machine."""

    profile: str
    precision: str


@dataclass(frozen=True)
class SetCell:
    """A set to distil.

    `row`: overrides that make it another line of a table, `settings`: those of the whole
    invocation; both as `key=value`. `fraction` of the methods' schedule.
    """

    methods: str
    ipc: int
    experts: int
    seed: int
    fraction: float
    row: tuple[str, ...]
    settings: tuple[str, ...]
    arithmetic: Arithmetic


@dataclass(frozen=True)
class RandomCell:
    """Random real images, `budget` stored per class, as mosaics of `factor` x `factor`."""

    budget: int
    factor: int
    draw: int


@dataclass(frozen=True)
class FullCell:
    """All real images."""


@dataclass(frozen=True)
class Evaluation:
    """How networks are trained and tested."""

    protocol: str
    epochs: int
    width: int
    best: bool
    arithmetic: Arithmetic
    teacher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One network to train: on what, fused how, which architecture, which repeat."""

    data: str
    on: SetCell | RandomCell | FullCell
    fuse: str
    network: str
    repeat: int
    evaluation: Evaluation

    @property
    def seed(self) -> int:
        """Seed of the network: that of the set it is trained on, so that the networks of two sets
        have nothing in common."""
        return self.on.seed if isinstance(self.on, SetCell) else 0

    @property
    def identity(self) -> Identity:
        """The line of a table that it belongs to."""
        on = self.on
        if isinstance(on, SetCell):
            return Identity("distilled", on.methods, on.ipc, on.experts, on.row, self.fuse)
        if isinstance(on, RandomCell):
            return Identity("random", "", on.budget, 1, (), self.fuse, on.factor)
        return Identity("full", "", 0, 0, (), self.fuse)


def set_name(cell: SetCell, data: str) -> SetName:
    """The configuration's name, parsed."""
    return parse_name(f"{data}-{cell.methods}-{cell.ipc}x{cell.experts}", method_names())


@cache
def set_config(cell: SetCell, facts: Facts) -> RunConfig:
    """The resolved configuration of a set.

    Settings of methods that it does not use are left out; the row's come last.
    """
    name = set_name(cell, facts.data)
    others = set(method_names()) - set(name.methods)
    settings = [text for text in cell.settings if text.split(".", 1)[0] not in others]
    return resolve_config(name, facts.shape, seed=cell.seed, overrides=[*settings, *cell.row])


@cache
def set_address(cell: SetCell, facts: Facts) -> str:
    """20 hexadecimal digits."""
    return _address(
        form=FORM,
        data=facts.identity(),
        config=set_config(cell, facts).digest(),
        fraction=cell.fraction,
        precision=cell.arithmetic.precision,
    )


@cache
def cell_address(cell: Cell, facts: Facts) -> str:
    """20 hexadecimal digits."""
    evaluation = cell.evaluation
    recipe = protocol_recipe(evaluation.protocol, evaluation.epochs, evaluation.best)
    taught = recipe.temperature is not None
    on: Any = {type(cell.on).__name__: asdict(cell.on)}
    if isinstance(cell.on, SetCell):
        on = set_address(cell.on, facts)
    return _address(
        form=FORM,
        data=facts.identity(),
        on=on,
        fuse=cell.fuse,
        network=[cell.network, evaluation.width, cell.repeat, cell.seed],
        recipe=asdict(recipe),
        precision=evaluation.arithmetic.precision,
        teacher=teacher_config(evaluation, facts).model_dump(mode="json") if taught else None,
    )


def teacher_config(evaluation: Evaluation, facts: Facts) -> RDEDConfig:
    """Settings of the teacher of protocol rded: RDED's own for the data, with the overrides that
    were given for RDED."""
    name = parse_name(f"{facts.data}-rded-1x1", method_names())
    config = resolve_config(name, facts.shape, overrides=list(evaluation.teacher)).experts[0]
    assert isinstance(config, RDEDConfig)
    return config


def _address(**content: Any) -> str:
    plain = json.dumps(content, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:20]
