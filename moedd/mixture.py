"""The mixture: experts on disjoint parts, one shared pool, a diversity step now and then.

Source: method sections 3.1-3.4. The clock is progress in [0, 1]: methods differ in length, so
expert i has done floor(progress * steps_i) of its steps. A *tick* is one step of the longest
expert. The loop of a run is in `distill.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moedd.config import RunConfig
from moedd.diversify import diversity_step
from moedd.experts import Expert, Ground, expert_class
from moedd.guards import check_diversity
from moedd.parts import PartData, split_parts, whole
from moedd.pool import Pool, load_pool
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.ranks import Ranks, world
from moedd.realdata import RealData
from moedd.shares import assign
from moedd.streams import Streams


def scaled(steps: int, fraction: float) -> int:
    """Steps at a fraction of a schedule: at least one of a method that has any."""
    return max(1, round(steps * fraction)) if steps else 0


def parts_of(config: RunConfig, real: RealData, profile: Profile) -> list[PartData]:
    """The experts' parts of the real data, on the profile's device."""
    parts = split_parts(real, len(config.methods), config.parts, Streams(config.seed), config.ipc)
    return [part.to(profile.device) for part in parts]


def pool_parts(
    config: RunConfig, real: RealData, parts: list[PartData], profile: Profile
) -> list[PartData]:
    """What the pools are trained on: all of the data for one, or each part for its own."""
    return [whole(real).to(profile.device)] if config.pool.train_on == "all" else parts


def needs_networks(config: RunConfig) -> bool:
    """Whether anybody takes trained networks from the pool."""
    # The diversity step and its report take features from them.
    return len(config.methods) > 1 or any(
        expert_class(method).uses_stored(settings)
        for method, settings in zip(config.methods, config.experts, strict=True)
    )


class Mixture:
    """Experts at work together. `ticks(fraction)` long; `tick` moves everybody on by one."""

    def __init__(
        self,
        config: RunConfig,
        parts: Sequence[PartData],
        pools: Sequence[Pool],
        profile: Profile,
        prepared: Sequence[Any] | None = None,
        teams: Sequence[Ranks] | None = None,
    ) -> None:
        self.config, self.parts, self.pools, self.profile = config, parts, pools, profile
        self.prepared = prepared or [None] * len(parts)
        self.streams = Streams(config.seed)
        self.experts = self._make_experts()
        self.teams = list(teams or self._make_teams())
        for expert, team in zip(self.experts, self.teams, strict=True):
            expert.join(team)

    @classmethod
    def build(
        cls, config: RunConfig, real: RealData, home: Path, profile: Profile, reporter: Reporter
    ) -> "Mixture":
        """Split the data, load or train the pool(s) and what the methods need beside them, make
        the experts' initial images."""
        parts = parts_of(config, real, profile)
        check_diversity(config, len(real.classes))
        settings_of = list(zip(config.methods, config.experts, strict=True))
        pools = []
        for part in pool_parts(config, real, parts, profile):
            pools.append(
                load_pool(
                    part, config.network, config.width, config.pool, home / "pools", reporter,
                    profile, needs_networks(config),
                )
            )  # fmt: skip
        ground = Ground(lambda: whole(real).to(profile.device), home, reporter, profile)
        prepared = [
            expert_class(method).prepare(parts[e], settings, pools[e % len(pools)], ground)
            for e, (method, settings) in enumerate(settings_of)
        ]
        return cls(config, parts, pools, profile, prepared)

    def _make_experts(self) -> list[Expert]:
        experts = []
        for e, (method, settings) in enumerate(
            zip(self.config.methods, self.config.experts, strict=True)
        ):
            experts.append(
                expert_class(method)(
                    self.parts[e],
                    settings,
                    self.pools[e % len(self.pools)],
                    self.streams.scope("expert", e),
                    self.profile,
                    self.prepared[e],
                )
            )
        return experts

    def _make_teams(self) -> list[Ranks]:
        """Who works on which expert. The same on every rank."""
        costs = [(expert.step_operations() or 1.0) * expert.steps for expert in self.experts]
        most = [len(e.part.classes) if e.spreads_classes else 1 for e in self.experts]
        teams = assign(costs, most, world().size)
        made = {members: world().team(members) for members in dict.fromkeys(teams)}
        return [made[members] for members in teams]

    def steps(self, fraction: float) -> list[int]:
        """Steps of each expert at this fraction of its schedule."""
        return [scaled(expert.steps, fraction) for expert in self.experts]

    def settle(self, fraction: float) -> list[bool]:
        """Choose every expert's form of the arithmetic for its work at this fraction; returns
        which are compiled."""
        for expert, steps in zip(self.experts, self.steps(fraction), strict=True):
            expert.settle(expert.step_operations() * steps)
        return [bool(expert.arithmetic.profile.compiled) for expert in self.experts]

    def tick(self, number: int, steps: Sequence[int]) -> list[dict[str, Any]]:
        """Bring every expert to the progress of tick `number` (from 1); returns log rows: those of
        the experts that this rank speaks for."""
        of = max(steps)
        rows: list[dict[str, Any]] = []
        for e, expert in enumerate(self.experts):
            goal = number * steps[e] // of
            if not expert.team.here:
                expert.done = goal
            while expert.done < goal:
                losses = expert.step()
                if not expert.team.first:
                    continue
                rows.append({"tick": number, "expert": e, "step": expert.done, **losses})
                rows[-1]["image_step"] = expert.last_step_norm
        if self.diverse and number % self.config.diversity.every == 0:
            streams = self.streams.scope("diversity", number)
            for row in diversity_step(self.experts, self.config.diversity, streams):
                rows.append({"tick": number, **row})
        return rows

    @property
    def diverse(self) -> bool:
        """Whether the diversity step acts at all."""
        return len(self.experts) > 1 and self.config.diversity.every > 0

    def spare(self) -> "Mixture":
        """The same mixture at its start, to be thrown away."""
        return Mixture(self.config, self.parts, self.pools, self.profile, self.prepared, self.teams)
