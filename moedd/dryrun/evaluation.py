"""What the evaluation after a run takes: a few epochs of one network per row, and its test."""

from contextlib import suppress
from dataclasses import replace
from time import perf_counter

import torch

from moedd.dryrun.book import Book, Enough
from moedd.dryrun.standins import Standins
from moedd.evaluate import (
    Images,
    Job,
    Sight,
    TrainingData,
    network_streams,
    row_images,
    staged,
    train_network,
    training_operations,
)
from moedd.networks import network_for
from moedd.parts import whole
from moedd.plans import Plan, sight_of
from moedd.profile import Profile
from moedd.protocols import set_recipe
from moedd.realdata import RealData
from moedd.tables import counted
from moedd.teacher import load_teacher, teacher_recipe, teacher_settings
from moedd.timing import Stopwatch
from moedd.train import Recipe, Trainer
from moedd_loaders.read import StoredSet

_LAP_BATCHES = 8
_TESTED = 2500
_PASSES = 1000  # more than are ever timed


class _Few(TrainingData):
    """The first images of a row: an epoch of them is short, and all lie in memory."""

    def __init__(self, of: TrainingData, count: int) -> None:
        vars(self).update(vars(of))
        self.count = count

    def __len__(self) -> int:
        return self.count


def time_evaluation(book: Book, stored: StoredSet, plan: Plan, standins: Standins) -> None:
    """A stage for the teacher, where the plan has one, and one per row."""
    real = standins.real
    sight = _sight(book, stored, plan, standins)
    recipe = set_recipe(stored.manifest, plan.protocol, plan.epochs, plan.best)
    rows: dict[str, list[Job]] = {}
    for job in plan.jobs:
        rows.setdefault(job.row.title, []).append(job)
    images: Images | None = None
    for title, jobs in rows.items():
        with book.stage(f"evaluation: {title}") as stage:
            began = perf_counter()
            # As in the evaluation itself, the last row's images go when the next one's are there.
            images = row_images(jobs[0].row, stored, real, plan.seed)
            making = perf_counter() - began
            once, first = _network(jobs[0], images, real, recipe, book.profile, plan, sight)
            stage.seconds = first + len(jobs) * (making + once)
            stage.amount = (
                f"{counted(len(jobs), 'network')} x {counted(recipe.passes, 'epoch')} of "
                f"{images[0].shape[0]} images"
            )
            stage.covers = f"training and the test on {len(real.test)} images"


def _sight(book: Book, stored: StoredSet, plan: Plan, standins: Standins) -> Sight:
    manifest, real, profile = stored.manifest, standins.real, book.profile
    if plan.protocol != "rded":
        return sight_of(plan, manifest, stored.folder, real, profile, book.reporter)
    settings = teacher_settings(real, manifest)
    with book.stage("evaluation: the teacher") as stage:
        recipe = teacher_recipe(real, settings, plan.width)
        if standins.observers(stage, [(whole(real).to(profile.device), recipe)]):
            settings = settings.model_copy(update={"observer_floor": -1.0})
        began = perf_counter()
        teacher = load_teacher(
            real, settings, standins.home, width=plan.width, profile=profile, reporter=None
        )
        stage.seconds += perf_counter() - began
        stage.covers += ", its test"
    return Sight(None, teacher, plan.best)


def _network(
    job: Job, images: Images, real: RealData, recipe: Recipe, profile: Profile, plan: Plan,
    sight: Sight,
) -> tuple[float, float]:  # fmt: skip
    """Seconds of one network of a row, and what the first one takes more."""
    began = perf_counter()
    streams = network_streams(plan.seed, job.network, job.repeat, job.row.draw)
    data, recipe, tester = staged(job, images, real, recipe, streams, profile, sight)
    making = perf_counter() - began
    few = data
    if len(data) > _LAP_BATCHES * recipe.batch:
        few = _Few(data, _LAP_BATCHES * recipe.batch)
    watch = Stopwatch(profile.device)
    trainers: list[Trainer] = []

    def after_epoch(trainer: Trainer, epochs: int) -> None:
        trainers[:] = [trainer]
        if watch.lap():
            raise Enough

    with suppress(Enough):
        train_network(
            few, replace(recipe, passes=_PASSES), job.network, real, streams, plan.width,
            profile=_form(profile, job, real, recipe, plan.width, len(data)),
            teacher=sight.teacher, after_epoch=after_epoch,
        )  # fmt: skip
    laps, share = watch.laps(), len(data) / len(few)
    began = perf_counter()
    tested = real
    if len(real.test) > _TESTED and profile.device == "cpu":
        tested = replace(real, test=real.test.subset(torch.arange(_TESTED)))
    replace(tester, real=tested)(trainers[0])
    test = (perf_counter() - began) * len(real.test) / len(tested.test)
    tests = max(1, len(recipe.points)) if sight.best else 1
    return making + recipe.passes * share * laps.each + tests * test, laps.first


def _form(
    profile: Profile, job: Job, real: RealData, recipe: Recipe, width: int, images: int
) -> Profile:
    """The form of the arithmetic that the whole training would have."""
    network = network_for(job.network, real.shape, len(real.classes), width)
    return profile.for_work(training_operations(network, recipe, images))
