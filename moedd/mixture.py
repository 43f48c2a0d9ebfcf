"""The mixture: experts on disjoint parts, one shared pool, a diversity step now and then.

Source: method sections 3.1-3.4. The clock is progress in [0, 1]: methods differ in length, so
expert i has done floor(progress * steps_i) of its steps. A *tick* is one step of the longest
expert. `distill` owns the order: parts -> pool -> experts -> ticks -> set.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moedd.config import RunConfig
from moedd.diversify import diversity_step
from moedd.experts import Expert, Ground, expert_class
from moedd.finish import write_result
from moedd.guards import check_diversity, require_images, require_movement, with_snapshot
from moedd.parts import PartData, split_parts, whole
from moedd.pool import Pool, load_pool
from moedd.profile import NOMINAL_RATE, Profile
from moedd.progress import JsonLog, Log, NoLog, Reporter
from moedd.ranks import Ranks, world
from moedd.realdata import RealData
from moedd.runstate import RunFolder, RunState
from moedd.shares import assign, described
from moedd.streams import Streams
from moedd.together import Meetings, gather_experts, in_order, require_one_job
from moedd_loaders.errors import (
    DivergedError,
    MoeddError,
    NonFiniteError,
    UsageError,
    from_oserror,
)
from moedd_loaders.manifest import Manifest
from moedd_publish.preview import preview_grid
from moedd_publish.write import check_target

_PREVIEW_SECONDS = 60.0
_TIMED_STEPS = 2


@dataclass(frozen=True)
class Places:
    """Where things lie: pools and runs under `home`, the set at `target`, called `name`."""

    home: Path
    target: Path
    name: str


@dataclass(frozen=True)
class Effort:
    """How much to do: a fraction of the schedules, or the hours to fit it to.

    `asked` is the option that says so, None where it is the default.
    """

    fraction: float = 1.0
    max_hours: float | None = None
    checkpoint_seconds: float = 60.0
    asked: str | None = None

    def __post_init__(self) -> None:
        # Refused here, before anything is read, trained or written. (NaN is not above 0 either.)
        if self.max_hours is not None and not self.max_hours > 0:
            raise UsageError(
                f"--max-hours {self.max_hours} given; expected hours above 0, for example 0.5"
            )


def distill(
    config: RunConfig,
    real: RealData,
    places: Places,
    effort: Effort,
    profile: Profile,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Manifest:
    """Run the whole mixture and write its set to `places.target`.

    Raises ConflictError: the set or an unfinished run exists. UsageError, DataError: settings or
    data that do not fit. NonFiniteError: a loss left the finite numbers. DivergedError: images or
    a student ran off. Both name the last good checkpoint. DiskFullError.

    Under `launch.joined` all ranks call it alike; the first of them writes.
    """
    reporter = reporter or Reporter()
    ranks = world()
    run = RunFolder(places.home / "runs" / places.name)

    def prepare() -> bool:
        if not (resume and run.checkpoint.exists()):
            check_target(places.target, overwrite)
        run.take()
        return run.prepare(config, real.fingerprint, resume, overwrite)

    try:
        require_one_job(ranks, config, real, profile)
        resuming = ranks.tell(prepare)
        run.require_seen(ranks)
        mixture = Mixture.build(config, real, places.home, profile, reporter)
        _say_notes(mixture, reporter)
        state = _begin(mixture, run, resuming, effort, real, reporter)
        _iterate(mixture, run, state, effort, reporter)

        def finish() -> Manifest:
            _save_preview(mixture, run)
            manifest = write_result(
                config, real, mixture.experts, places.target, places.name, state,
                profile, overwrite or resuming,
            )  # fmt: skip
            run.checkpoint.unlink()
            return manifest

        return ranks.tell(finish)
    except MoeddError:
        raise
    except OSError as error:
        # Pools, checkpoints, log and pictures fill a disk as well as the set does.
        raise from_oserror(error, f"distilling {places.name} in {run.folder}") from error
    finally:
        reporter.end()
        if ranks.first:
            run.release()


def _begin(
    mixture: "Mixture",
    run: RunFolder,
    resuming: bool,
    effort: Effort,
    real: RealData,
    reporter: Reporter,
) -> RunState:
    """The state that a run starts from, put into its experts and kept: a new one or the last."""
    config, profile = mixture.config, mixture.profile
    if resuming:
        state = run.load(mixture.experts, profile, effort.asked)
        torch.set_num_threads(state.threads)
        reporter.say(
            f"resuming at tick {state.tick} from {run.checkpoint}, {state.threads} threads"
        )
    else:
        state = RunState(
            fraction=mixture.choose_fraction(effort, reporter),
            asked=effort.asked,
            notes=list(real.notes),
            threads=torch.get_num_threads(),
            profile=profile.name,
            precision=profile.precision,
            device=profile.device,
        )
    before, state.compiled = state.compiled, mixture.settle(state.fraction)
    if before not in (None, state.compiled):
        reporter.say(
            "note: this run was begun with a C++ compiler and goes on without one, or the "
            "other way round: its images will differ in their last bits"
        )
    # Nobody is still reading the checkpoint when it is replaced.
    world().wait()
    if not resuming and world().first:
        run.save(config, state, mixture.experts, real.fingerprint)
    return state


def _say_notes(mixture: "Mixture", reporter: Reporter) -> None:
    for expert in mixture.experts:
        for note in expert.notes:
            reporter.say(f"note: {note}")
    if len(mixture.experts) == 1 and mixture.config.diversity.every > 0:
        reporter.say("note: a single expert has no other to differ from: no diversity step")
    if world().size > 1:
        teams = [expert.team.members for expert in mixture.experts]
        reporter.say(f"{world().size} ranks: {described(teams)}")


def scaled(steps: int, fraction: float) -> int:
    """Steps at a fraction of a schedule: at least one of a method that has any."""
    return max(1, round(steps * fraction)) if steps else 0


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
        parts = split_parts(
            real, len(config.methods), config.parts, Streams(config.seed), config.ipc
        )
        parts = [part.to(profile.device) for part in parts]
        check_diversity(config, len(real.classes))
        trained_on = [whole(real).to(profile.device)] if config.pool.train_on == "all" else parts
        settings_of = list(zip(config.methods, config.experts, strict=True))
        # The diversity step and its report take features from the pool's networks.
        trained = len(settings_of) > 1 or any(
            expert_class(method).uses_stored(settings) for method, settings in settings_of
        )
        pools = []
        for part in trained_on:
            pools.append(
                load_pool(
                    part, config.network, config.width, config.pool, home / "pools", reporter,
                    profile, trained,
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

    def choose_fraction(self, effort: Effort, reporter: Reporter) -> float:
        """The fraction asked for, or the one that fits `max_hours`: a few steps are timed on
        experts that are thrown away."""
        if effort.max_hours is None:
            return effort.fraction
        limit = effort.max_hours * 3600
        work = limit * NOMINAL_RATE[self.profile.device] / len(self.experts)
        compiling = self.profile.for_work(work).compiled
        seconds = self._schedule_seconds(bool(compiling))
        if not all(form == compiling for form in self.settle(min(1.0, limit / seconds))):
            # The work that fits is too little, or too much, for the form that was timed.
            seconds = self._schedule_seconds(not compiling)
        fraction = min(1.0, limit / seconds)
        reporter.say(
            f"the whole schedule takes {seconds / 3600:.2f} h here; {effort.max_hours} h make "
            f"{fraction:.4g} of it"
        )
        return fraction

    def _schedule_seconds(self, compiled: bool) -> float:
        """Seconds of the whole schedule, from a few steps of experts that are thrown away: those
        of the rank that takes longest."""
        spare = Mixture(
            self.config, self.parts, self.pools, self.profile, self.prepared, self.teams
        )
        for expert in spare.experts:
            expert.settle(math.inf if compiled else 0.0)
        seconds = 0.0
        for expert in spare.experts:
            if expert.steps and expert.team.here:
                expert.step()
                began = time.perf_counter()
                for _ in range(_TIMED_STEPS):
                    expert.step()
                seconds += expert.steps * (time.perf_counter() - began) / _TIMED_STEPS
        if self.diverse:
            began = time.perf_counter()
            diversity_step(spare.experts, self.config.diversity, self.streams.scope("timing"))
            ticks = max(expert.steps for expert in self.experts)
            seconds += ticks / self.config.diversity.every * (time.perf_counter() - began)
        return max(world().largest(seconds), 1e-9)


def _iterate(
    mixture: Mixture, run: RunFolder, state: RunState, effort: Effort, reporter: Reporter
) -> None:
    """Tick until the fraction is done, with log, checkpoints and previews."""
    ranks, steps = world(), mixture.steps(state.fraction)
    total = max(steps)
    log: Log = JsonLog(run.log, state.log_position) if ranks.first else NoLog()
    reporter.begin("matching", total, state.tick)
    meetings = Meetings(ranks, effort.checkpoint_seconds, _PREVIEW_SECONDS)
    began, before, kept = time.monotonic(), state.seconds, state.tick

    def keep() -> None:
        require_images(mixture.experts)
        state.log_position = log.position()
        run.save(mixture.config, state, mixture.experts, mixture.parts[0].source_fingerprint)

    try:
        rows: list[dict[str, Any]] = []
        while state.tick < total:
            rows += mixture.tick(state.tick + 1, steps)
            state.tick += 1
            if not meetings.due(state.tick, total):
                continue
            rows = in_order(ranks.collect(rows))
            state.seconds = before + time.monotonic() - began
            for row in rows:
                log.write(row)
            state.losses = (state.losses or {}) | _losses(rows)
            reporter.step(state.tick, _note(rows))
            plan = meetings.plan(state.tick)
            if plan.save or plan.picture:
                gather_experts(mixture.experts)
            if plan.save:
                ranks.tell(keep)
                kept = state.tick
            if plan.picture and ranks.first:
                _save_preview(mixture, run)
            rows = []
        gather_experts(mixture.experts)
        ranks.tell(lambda: require_movement(mixture.experts))
        ranks.tell(keep)
    except (NonFiniteError, DivergedError) as error:
        # The rows that led here are what a person wants to see; resuming cuts them off again.
        log.close()
        raise with_snapshot(
            error, f"that of tick {kept} of {total}, and --resume goes on from it: {run.checkpoint}"
        ) from error
    log.close()
    reporter.end()


def _losses(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Last losses by `expert.term`, for the manifest."""
    found = {}
    for row in rows:
        if "expert" in row:
            for term, value in row.items():
                if term not in ("tick", "expert", "step", "image_step"):
                    found[f"{row['expert']}.{term}"] = value
        elif row["unbiased"] is not None:  # undefined below four pairs of images
            found["diversity.unbiased"] = row["unbiased"]
    return found


def _note(rows: list[dict[str, Any]]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in _losses(rows).items())


def _save_preview(mixture: Mixture, run: RunFolder) -> None:
    images = torch.cat([expert.unit_images() for expert in mixture.experts]).cpu()
    labels = torch.cat([expert.labels for expert in mixture.experts]).cpu()
    counts = [len(expert.labels) for expert in mixture.experts]
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    preview_grid(images, labels, ids, list(mixture.parts[0].classes), run.preview)
