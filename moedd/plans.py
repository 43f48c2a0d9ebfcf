"""Plans of evaluation: which networks are trained on a set, how, and that they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moedd.config import RunConfig
from moedd.evaluate import Job, Row, Sight, evaluate, job_identity
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.protocols import set_recipe
from moedd.realdata import RealData
from moedd.tables import print_table
from moedd.teacher import load_teacher, teacher_settings
from moedd.zca import space_of
from moedd_loaders.manifest import Manifest, read_manifest
from moedd_loaders.read import StoredSet, read_tensors
from moedd_loaders.records import Record, append_records, read_records
from moedd_loaders.resolve import home

_DRAWS = 3


@dataclass(frozen=True)
class Plan:
    """The networks to train and how."""

    jobs: list[Job]
    protocol: str
    epochs: int
    width: int
    seed: int
    best: bool = False


def jobs_of(rows: Sequence[Row], networks: Sequence[str], repeats: int) -> list[Job]:
    """Every network to train. Random draws take the place of repeats: one network each."""
    jobs = []
    for network in networks:
        for row in rows:
            count = 1 if row.variant == "random" else repeats
            jobs += [Job(row, network, repeat) for repeat in range(count)]
    return jobs


def default_plan(config: RunConfig) -> Plan:
    """What follows a run of this configuration: distilled, fused, random, all real."""
    settings = config.evaluation
    rows = [Row("distilled", "mixup")] if len(config.methods) > 1 else []
    rows += [Row("distilled"), *(Row("random", draw=d) for d in range(_DRAWS)), Row("full")]
    jobs = jobs_of(rows, [config.network], settings.repeats)
    return Plan(jobs, settings.protocol, settings.epochs, settings.width, seed=0)


def evaluate_default(
    folder: Path, config: RunConfig, real: RealData, profile: Profile, reporter: Reporter
) -> None:
    """The table at the end of a run, whose set lies in `folder`."""
    manifest = read_manifest(folder)
    plan = default_plan(config)
    # What a killed evaluation left behind counts: only the rest is trained.
    known = {record.identity: record for record in read_records(manifest, folder)}
    recipe = set_recipe(manifest, plan.protocol, plan.epochs)

    def identity(job: Job) -> tuple[str | int, ...]:
        return job_identity(job, real, recipe, plan.width, 0, profile.name)

    missing = [job for job in plan.jobs if identity(job) not in known]
    stored = read_tensors(folder, manifest)
    run_plan(stored, real, replace(plan, jobs=missing), profile, reporter, folder)
    known = {record.identity: record for record in read_records(manifest, folder)}
    records = [known[identity(job)] for job in plan.jobs]
    print_table(records, f"accuracy on {len(real.test)} held-out images of {real.data}")


def sight_of(
    plan: Plan, manifest: Manifest, folder: Path, real: RealData, profile: Profile,
    reporter: Reporter,
) -> Sight:  # fmt: skip
    """How the plan's networks see the set in `folder`, and who labels it; a teacher is trained
    where it is missing."""
    whitening, teacher = None, None
    if plan.protocol == "mtt":
        whitening = space_of(manifest, folder)
    elif plan.protocol == "rded" and plan.jobs:
        teacher = load_teacher(
            real, teacher_settings(real, manifest), home(),
            width=plan.width, profile=profile, reporter=reporter,
        )  # fmt: skip
    return Sight(whitening, teacher, plan.best)


def run_plan(
    stored: StoredSet,
    real: RealData,
    plan: Plan,
    profile: Profile,
    reporter: Reporter,
    records_in: Path | None,
) -> list[Record]:
    """Train all networks of a plan; each record is written as soon as it is there."""
    manifest = stored.manifest
    recipe = set_recipe(manifest, plan.protocol, plan.epochs, plan.best)
    sight = sight_of(plan, manifest, stored.folder, real, profile, reporter)
    reporter.begin("evaluation", len(plan.jobs) * recipe.passes)
    done = 0

    def on_epoch(job: Job, epoch: int, loss: float) -> None:
        reporter.step(done + epoch, f"{job.row.title}, {job.network}: loss {loss:.3g}")

    records = []
    try:
        for record in evaluate(
            stored, real, recipe, plan.jobs, profile,
            epochs=plan.epochs, seed=plan.seed, width=plan.width, on_epoch=on_epoch,
            whitening=sight.whitening, teacher=sight.teacher, best=plan.best,
        ):  # fmt: skip
            append_records(records_in, [record], manifest.training_sha256)
            records.append(record)
            done += recipe.passes
    finally:
        reporter.end()
    return records
