"""Trajectories and MTT experts small enough for tests: 8x8 images, networks of width 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginefactories import digits, make_expert, make_pool

from moedd.experts.base import Ground
from moedd.experts.mtt import MTT, MTTConfig
from moedd.parts import PartData, whole
from moedd.pool import Pool
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.realdata import RealData
from moedd.trajectories import Trajectories

SMALL: dict[str, Any] = {
    "syn_steps": 4,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "trajectories": 2,
    "trajectory_batch": 8,
    "trajectory_lr": 0.05,
    "step_size": 0.05,
    "lr_img": 10.0,
    "lr_lr": 1e-4,
    "most_loss": 1e3,
}
"""Settings of an MTT expert whose trajectories take a tenth of a second; on noise its student goes
far beyond its target, hence the limit."""


def ground(home: Path, real: RealData | PartData) -> Ground:
    """What `prepare` may use, with everything kept under `home`."""
    everything = whole(real) if isinstance(real, RealData) else real
    return Ground(lambda: everything, home, Reporter(quiet=True), Profile())


def prepare(
    home: Path, real: RealData, part: PartData | None = None, pool: Pool | None = None, **more: Any
) -> Trajectories:
    """The trajectories of an MTT expert with the small settings and `more`."""
    config = MTTConfig(ipc=1, steps=20, **{**SMALL, **more})
    part = part or whole(real)
    return MTT.prepare(part, config, pool or make_pool(part), ground(home, real))


def make_mtt(
    home: Path, real: RealData | None = None, *, part: PartData | None = None, ipc: int = 2,
    seed: int = 0, steps: int = 20, **settings: Any,
) -> MTT:  # fmt: skip
    """An MTT expert on `part` (all of `real`, the digits 0 and 1, by default)."""
    real = real or digits(2, 24)
    part = part or whole(real)
    pool = make_pool(part)
    given = {**SMALL, **settings}
    expert = make_expert(
        "mtt", part, ipc=ipc, pool=pool, seed=seed, steps=steps, index=part.index,
        prepared=prepare(home, real, part, pool, **settings), **given,
    )  # fmt: skip
    assert isinstance(expert, MTT)
    return expert
