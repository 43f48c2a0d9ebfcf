"""A run: parts -> pool -> experts -> ticks -> set, with log, checkpoints and previews.

`distill` owns the order; what experts do together is in `mixture.py`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moedd.config import RunConfig
from moedd.finish import write_result
from moedd.guards import require_images, require_movement, with_snapshot
from moedd.mixture import Mixture
from moedd.profile import Profile
from moedd.progress import JsonLog, Log, NoLog, Reporter
from moedd.ranks import world
from moedd.realdata import RealData
from moedd.runstate import RunFolder, RunState
from moedd.shares import described
from moedd.timing import choose_fraction
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

PREVIEW_SECONDS = 60.0


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
            save_preview(mixture, run)
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
    mixture: Mixture,
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
            fraction=choose_fraction(mixture, effort.fraction, effort.max_hours, reporter),
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


def _say_notes(mixture: Mixture, reporter: Reporter) -> None:
    for expert in mixture.experts:
        for note in expert.notes:
            reporter.say(f"note: {note}")
    if len(mixture.experts) == 1 and mixture.config.diversity.every > 0:
        reporter.say("note: a single expert has no other to differ from: no diversity step")
    if world().size > 1:
        teams = [expert.team.members for expert in mixture.experts]
        reporter.say(f"{world().size} ranks: {described(teams)}")


def _iterate(
    mixture: Mixture, run: RunFolder, state: RunState, effort: Effort, reporter: Reporter
) -> None:
    """Tick until the fraction is done, with log, checkpoints and previews."""
    ranks, steps = world(), mixture.steps(state.fraction)
    total = max(steps)
    log: Log = JsonLog(run.log, state.log_position) if ranks.first else NoLog()
    reporter.begin("matching", total, state.tick)
    meetings = Meetings(ranks, effort.checkpoint_seconds, PREVIEW_SECONDS, state.tick)
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
                save_preview(mixture, run)
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


def save_preview(mixture: Mixture, run: RunFolder) -> None:
    """Draw the images of all experts as they are now."""
    images = torch.cat([expert.unit_images() for expert in mixture.experts]).cpu()
    labels = torch.cat([expert.labels for expert in mixture.experts]).cpu()
    counts = [len(expert.labels) for expert in mixture.experts]
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    preview_grid(images, labels, ids, list(mixture.parts[0].classes), run.preview)
