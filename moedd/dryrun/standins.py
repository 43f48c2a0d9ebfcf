"""What a run trains before it matches, where that is not there yet: networks of the pool,
trajectories, observers. A few steps of each are timed; then an untrained network of the same size
stands in for it, in the same place, so that what follows reads and computes as much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moedd.arithmetic import flatten, state_of
from moedd.config import RunConfig
from moedd.dryrun.book import Book, laps_of
from moedd.dryrun.estimate import Stage
from moedd.experts.mtt import MTT, MTTConfig
from moedd.experts.observer import (
    Observer,
    ObserverRecipe,
    fresh_observer,
    load_observer,
    observer_key,
    observer_profile,
    write_observer,
)
from moedd.experts.rded import RDEDConfig
from moedd.mixture import needs_networks, parts_of, pool_parts
from moedd.networks import Network, network_for
from moedd.parts import PartData, whole
from moedd.pool import (
    Pool,
    StoredNetwork,
    load_pool,
    network_paths,
    pool_key,
    pool_profile,
    write_ages,
)
from moedd.profile import Profile
from moedd.realdata import RealData
from moedd.streams import Streams
from moedd.tables import counted
from moedd.timing import Laps
from moedd.trajectories import (
    WHITENING,
    TrajectoryConfig,
    epoch_steps,
    epochs_of,
    load_trajectories,
    trajectory_key,
    trajectory_path,
    trajectory_profile,
    write_trajectory,
)

_LAP_STEPS = 8
THERE = "there already"


@dataclass(frozen=True)
class Standins:
    """Makes stand-ins in `home`, a folder to be thrown away; `scratch` is another one, for what
    the timed training writes."""

    config: RunConfig
    real: RealData
    profile: Profile
    home: Path
    scratch: Path
    book: Book

    def make(self) -> bool:
        """Time what is missing and put stand-ins there; True if an observer is one."""
        parts = parts_of(self.config, self.real, self.profile)
        network = self._network(parts[0])
        if needs_networks(self.config):
            self._pools(pool_parts(self.config, self.real, parts, self.profile), network)
        self._trajectories(parts, network)
        return self._observers(parts, network)

    def _network(self, part: PartData) -> Network:
        config = self.config
        generator = Streams(config.seed).generator("stand-in")
        return network_for(config.network, part.shape, len(part.classes), config.width, generator)

    # -- the pool --------------------------------------------------------------------------
    def _pools(self, parts: Sequence[PartData], network: Network) -> None:
        config = self.config.pool
        precision = pool_profile(self.profile, network, config).precision
        missing: list[Path] = []
        for part in parts:
            place = self.home / "pools" / pool_key(part, network, config, precision)
            missing += [p for p in network_paths(place, config.networks) if not p.exists()]
        with self.book.stage("pool") as stage:
            stage.amount = THERE
            if not missing:
                return
            ages = -(-config.steps // config.every)
            plain = self._pool_laps(parts[0], network, config.steps + 1)
            tested = self._pool_laps(parts[0], network, 1)
            one = config.steps * plain.each + ages * max(0.0, tested.each - plain.each)
            stage.seconds = plain.first + len(missing) * one
            stage.amount = (
                f"{counted(len(missing), 'network')} x {counted(config.steps, 'step')}, "
                f"kept at {counted(ages, 'age')}"
            )
            stage.covers = "training on real data, its accuracy at each age"
            self._write_pool(missing, network, ages)
            stage.kept = len(missing) * missing[0].stat().st_size

    def _pool_laps(self, part: PartData, network: Network, every: int) -> Laps:
        config = self.config.pool
        form = pool_profile(self.profile, network, config)
        quick = config.model_copy(update={"networks": 1, "every": every})
        return laps_of(
            lambda reporter: load_pool(
                part, self.config.network, self.config.width, quick,
                self.scratch / "pools", reporter, form,
            ),
            form.device,
        ).laps  # fmt: skip

    def _write_pool(self, missing: Sequence[Path], network: Network, ages: int) -> None:
        config = self.config.pool
        stored = [
            StoredNetwork(
                {name: p.detach().clone() for name, p in network.named_parameters()},
                100 / network.classes,
                min(age * config.every, config.steps),
            )
            for age in range(1, ages + 1)
        ]
        write_ages(missing[0], stored)
        _link(missing[1:], missing[0])

    # -- trajectories ----------------------------------------------------------------------
    def _trajectories(self, parts: Sequence[PartData], network: Network) -> None:
        everything = whole(self.real).to(self.profile.device)
        wanted: dict[str, tuple[PartData, TrajectoryConfig, int, int]] = {}
        for part, settings in zip(parts, self.config.experts, strict=True):
            if isinstance(settings, MTTConfig):
                on, config = MTT.trajectories_of(part, settings, everything)
                form = trajectory_profile(self.profile, on, network, config)
                key = trajectory_key(on, network, config, form.precision)
                wanted[key] = (on, config, settings.trajectories, settings.epochs)
        if not wanted:
            return
        with self.book.stage("trajectories") as stage:
            for key, (on, config, count, epochs) in wanted.items():
                self._trajectories_of(stage, key, on, network, config, count, epochs)
            stage.amount = stage.amount or THERE
            stage.covers = "training on real data, a snapshot after each epoch"

    def _trajectories_of(
        self, stage: Stage, key: str, on: PartData, network: Network, config: TrajectoryConfig,
        count: int, epochs: int,
    ) -> None:  # fmt: skip
        place, parameters = (
            self.home / "trajectories" / key,
            flatten(dict(network.named_parameters())),
        )
        paths = [trajectory_path(place, number) for number in range(count)]
        have = {path: epochs_of(path, len(parameters)) for path in paths}
        short = [path for path in paths if have[path] < epochs]
        if not short:
            return
        steps = epoch_steps(on, config)
        form = trajectory_profile(self.profile, on, network, config)
        lap = min(_LAP_STEPS, steps)
        quick, folder = config.model_copy(update={"epoch_steps": lap}), self.scratch / key
        found = laps_of(
            lambda reporter: load_trajectories(
                on, network, quick, 1, 1_000_000, folder, reporter, form
            ),
            form.device,
        )
        missing = sum(epochs - max(0, have[path]) for path in short)
        stage.seconds += found.laps.first + missing * steps / lap * found.laps.each
        if config.zca and not (place / WHITENING).exists():
            stage.seconds += found.before  # the whitening was fitted then
            place.mkdir(parents=True, exist_ok=True)
            made = next(folder.rglob(WHITENING))
            made.replace(place / WHITENING)
            stage.kept += (place / WHITENING).stat().st_size
        text = f"{counted(missing, 'epoch')} x {counted(steps, 'step')}"
        stage.amount += f", {text}" if stage.amount else text
        for path in short:
            path.unlink(missing_ok=True)
        _write_trajectory(short[0], parameters, epochs, steps)
        _link(short[1:], short[0])
        stage.kept += short[0].stat().st_size * missing // epochs

    # -- observers -------------------------------------------------------------------------
    def _observers(self, parts: Sequence[PartData], network: Network) -> bool:
        asked = [
            (part, settings.observer_recipe(network.name, network.width))
            for part, settings in zip(parts, self.config.experts, strict=True)
            if isinstance(settings, RDEDConfig) and settings.observer == "part"
        ]
        if not asked:
            return False
        with self.book.stage("observers") as stage:
            return self.observers(stage, asked)

    def observers(self, stage: Stage, asked: Sequence[tuple[PartData, ObserverRecipe]]) -> bool:
        """Time the training of the observers that are missing; True if any were."""
        missing = []
        for part, recipe in asked:
            path, form = self._observer_place(part, recipe)
            if path.exists():
                continue
            missing.append(path)
            network = fresh_observer(recipe, part)
            found = laps_of(
                lambda reporter, on=part, how=recipe, net=network: load_observer(  # type: ignore[misc]
                    "part", on, how,
                    Pool(net, (), "", folder=self.scratch / "pools", reporter=reporter),
                    self.profile,
                ),
                form.device,
            )  # fmt: skip
            stage.seconds += found.laps.seconds(recipe.steps)
            path.parent.mkdir(parents=True, exist_ok=True)
            plain = {name: tensor.detach() for name, tensor in state_of(network).items()}
            write_observer(path, Observer(network, plain, part.classes, form))
            stage.kept += path.stat().st_size
            stage.amount = f"{counted(len(missing), 'network')} x {counted(recipe.steps, 'step')}"
        stage.amount = stage.amount or THERE
        stage.covers = "training on real data"
        return bool(missing)

    def _observer_place(self, part: PartData, recipe: ObserverRecipe) -> tuple[Path, Profile]:
        form = observer_profile(self.profile, fresh_observer(recipe, part), recipe)
        folder = self.home / "pools" / "observers"
        return folder / f"{observer_key(part, recipe, form)}.safetensors", form


def _write_trajectory(path: Path, start: Tensor, epochs: int, steps: int) -> None:
    """Snapshots as far from each other as those of a network that learns, in no sensible direction:
    a student that starts at one of them is as far from its target after its steps as before."""
    generator = Streams(0).generator("stand-in")
    rows = []
    for _ in range(epochs + 1):
        way = torch.randn(start.shape, generator=generator)
        rows.append((start.cpu() + 0.5 * start.norm().cpu() * way / way.norm())[None])
    write_trajectory(path, rows, [0.0] * epochs, steps)


def _link(paths: Sequence[Path], to: Path) -> None:
    """Let all these be the one file."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(to)


def without_floor(config: RunConfig) -> RunConfig:
    """The configuration for observers that have learned nothing."""
    lowered: Mapping[str, float] = {"observer_floor": -1.0}
    experts = tuple(
        settings.model_copy(update=lowered) if isinstance(settings, RDEDConfig) else settings
        for settings in config.experts
    )
    return config.model_copy(update={"experts": experts})
