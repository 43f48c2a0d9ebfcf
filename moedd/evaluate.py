"""Evaluation: train fresh networks on a set and test them on real data.

Every network trained is one `Record`. Networks of one row (see `rowdata.py`) differ in their seed;
their spread says nothing about the method, only about training on this one set.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from moedd import __version__
from moedd.arithmetic import forward_operations
from moedd.experts.observer import Observer
from moedd.fusion import fusion_of
from moedd.networks import Network, network_for
from moedd.profile import Profile
from moedd.protocols import fitted
from moedd.realdata import RealData
from moedd.rowdata import (
    Images,
    Row,
    TrainingData,
    distilled_images,
    full_images,
    random_images,
    row_images,
    whitened,
)
from moedd.streams import Streams
from moedd.train import Recipe, Trainer, accuracy
from moedd.trainstate import TrainingState
from moedd.zca import Whitening
from moedd_loaders.errors import NonFiniteError, UsageError
from moedd_loaders.manifest import Manifest
from moedd_loaders.read import StoredSet
from moedd_loaders.records import Record

__all__ = [
    "Images",
    "Job",
    "Row",
    "Sight",
    "Tested",
    "Tester",
    "TrainingData",
    "distilled_images",
    "evaluate",
    "full_images",
    "job_identity",
    "network_config",
    "network_streams",
    "random_images",
    "row_images",
    "staged",
    "train_and_test",
    "train_network",
]


@dataclass(frozen=True)
class Job:
    """One network to train: which row, which architecture, which repeat."""

    row: Row
    network: str
    repeat: int


@dataclass(frozen=True)
class Sight:
    """How networks see images, and who labels them.

    `whitening`: the space instead of the normalised one; `teacher`: the network whose labels a
    recipe with a temperature trains on. `best`: accuracy is the best of the recipe's test points.
    """

    whitening: Whitening | None = None
    teacher: Observer | None = None
    best: bool = False


@dataclass(frozen=True)
class Tested:
    """A network that was trained and tested: its accuracy, 0 to 1, and what it took.

    `points`: the accuracy after each epoch that was tested (the last one always).
    """

    accuracy: float
    points: dict[int, float]
    recipe: Recipe
    steps: int
    n_train: int
    seconds: float


OnEpoch = Callable[[int, float], None]
AfterEpoch = Callable[[Trainer, int], None]


def train_network(
    data: TrainingData, recipe: Recipe, network: str, real: RealData, streams: Streams,
    width: int = 128, on_epoch: OnEpoch | None = None, profile: Profile | None = None, *,
    teacher: Observer | None = None, after_epoch: AfterEpoch | None = None,
    state: TrainingState | None = None, beside: dict[str, float] | None = None,
) -> Trainer:  # fmt: skip
    """Train a fresh network by `recipe`; the trainer holds it and its step count.

    `after_epoch(trainer, epochs done)` follows each epoch. With a `state` training goes on where
    it was and is kept; `beside` is kept with it.
    """
    init = streams.generator("init")
    net = network_for(network, real.shape, len(real.classes), width, init)
    profile = (profile or Profile()).for_work(training_operations(net, recipe, len(data)))
    usual = min(recipe.batch, len(data))
    taught = None if teacher is None else lambda images: teacher.logits(images, real.classes)
    trainer = Trainer(net, recipe, streams, real.flip, profile, usual, taught)
    beside = {} if beside is None else beside
    first, kept = (0, {}) if state is None else state.load(trainer)
    beside |= kept
    for epoch in range(first, recipe.passes):
        order = torch.randperm(len(data), generator=streams.generator("epoch", epoch))
        loss = torch.zeros(())
        for rows in order.split(recipe.batch):
            loss = trainer.step(data.fetch(rows, epoch))
        trainer.after_epoch(epoch)
        if after_epoch is not None:
            after_epoch(trainer, epoch + 1)
        value = None  # read where somebody wants it: on a GPU that waits for the step
        if on_epoch is not None or epoch + 1 == recipe.passes:
            value = _finite(float(loss), network, recipe, epoch + 1)
        if state is not None:
            state.offer(trainer, epoch + 1, beside)
        if on_epoch is not None and value is not None:
            on_epoch(epoch + 1, value)
    return trainer


def training_operations(network: Network, recipe: Recipe, images: int) -> float:
    """Floating-point operations of training on so many images: they decide whether it compiles."""
    return 3 * forward_operations(network) * recipe.passes * images


def _finite(loss: float, network: str, recipe: Recipe, epochs: int) -> float:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{network}: the training loss is {loss} after epoch {epochs} of {recipe.passes}, "
            f"expected a finite number: the learning rate of the recipe {recipe.name!r} "
            f"({recipe.lr:g}) is too large for this network on these images, or the images are "
            "damaged (moedd validate tells)"
        )
    return loss


def network_streams(seed: int, network: str, repeat: int, draw: int) -> Streams:
    """The random streams of one evaluation network."""
    return Streams(seed).scope("evaluate", network, repeat, draw)


def train_and_test(
    job: Job, images: Images, real: RealData, recipe: Recipe, streams: Streams, profile: Profile, *,
    width: int = 128, sight: Sight | None = None, on_epoch: OnEpoch | None = None,
    state: TrainingState | None = None,
) -> Tested:  # fmt: skip
    """Train one network on `images` (unit space) as its row says, test it on the test split.

    Raises UsageError: CutMix of whitened images, which have no places to cut from.
    """
    sight = sight or Sight()
    _require_places([job], sight.whitening)
    began = time.perf_counter()
    data, recipe, tester = staged(job, images, real, recipe, streams, profile, sight)
    points: dict[str, float] = {}

    def test(trainer: Trainer, epochs: int) -> None:
        if sight.best and epochs in recipe.points:
            points[str(epochs)] = tester(trainer)

    trainer = train_network(
        data, recipe, job.network, real, streams, width, on_epoch, profile,
        teacher=sight.teacher, after_epoch=test, state=state, beside=points,
    )  # fmt: skip
    found = {int(epochs): right for epochs, right in points.items()}
    if recipe.passes not in found:
        found[recipe.passes] = tester(trainer)
    right = max(found.values()) if sight.best else found[recipe.passes]
    seconds = time.perf_counter() - began + (0.0 if state is None else state.spent)
    return Tested(right, found, recipe, trainer.steps, len(data), seconds)


def staged(
    job: Job, images: Images, real: RealData, recipe: Recipe, streams: Streams, profile: Profile,
    sight: Sight,
) -> tuple[TrainingData, Recipe, "Tester"]:  # fmt: skip
    """What a job trains on, the recipe as it fits that, and how its network is tested."""
    seen, constants = _seen(images, real, sight.whitening)
    data = TrainingData(job.row, seen, constants, streams.key("fuse"), profile.device)
    teacher = sight.teacher
    recipe = fitted(
        recipe, job.network, images=len(data), classes=len(real.classes), fuse=job.row.fuse,
        conv_teacher=teacher is not None and teacher.network.name.startswith("convnet3"),
    )  # fmt: skip
    return data, recipe, Tester(real, sight.whitening, profile)


@dataclass(frozen=True)
class Tester:
    """The accuracy of a trainer's network on the test split, in the space it was trained in."""

    real: RealData
    whitening: Whitening | None
    profile: Profile
    _on_device: Whitening | None = field(init=False)

    def __post_init__(self) -> None:
        moved = None if self.whitening is None else self.whitening.to(self.profile.device)
        object.__setattr__(self, "_on_device", moved)

    def __call__(self, trainer: Trainer) -> float:
        test = self.real.test
        form = trainer.arithmetic.profile
        return accuracy(trainer.network, test.images, test.labels, self._prepared, profile=form)

    def _prepared(self, pixels: Tensor) -> Tensor:
        if self._on_device is None:
            return self.real.normalized(pixels)
        return self._on_device.whiten(pixels.float() / 255)


def evaluate(
    stored: StoredSet,
    real: RealData,
    recipe: Recipe,
    jobs: Sequence[Job],
    profile: Profile,
    *,
    epochs: int,
    seed: int = 0,
    width: int = 128,
    on_epoch: Callable[[Job, int, float], None] | None = None,
    whitening: Whitening | None = None,
    teacher: Observer | None = None,
    best: bool = False,
) -> Iterator[Record]:
    """Train and test one network per job; yields each record as soon as it is known.

    Accuracy is that of the last epoch on the real test split, or with `best` of the best of the
    recipe's test points. With `whitening`, networks see training and test images in that space
    instead of normalised; with a `teacher` they learn its labels.

    Raises UsageError: CutMix of whitened images, which have no places to cut from.
    """
    _require_places(jobs, whitening)
    sight = Sight(whitening, teacher, best)
    for job in jobs:
        streams = network_streams(seed, job.network, job.repeat, job.row.draw)
        images = row_images(job.row, stored, real, seed)

        def told(epoch: int, loss: float, job: Job = job) -> None:
            if on_epoch is not None:
                on_epoch(job, epoch, loss)

        tested = train_and_test(
            job, images, real, recipe, streams, profile, width=width, sight=sight, on_epoch=told
        )
        yield _record(stored.manifest, real, job, tested, profile, epochs, seed, width, sight)


def _require_places(jobs: Sequence[Job], whitening: Whitening | None) -> None:
    if whitening is not None and any(fusion_of(job.row.fuse)[0] == "cutmix" for job in jobs):
        raise UsageError(
            "fuse=cutmix pastes pixels and the set was optimised on whitened images, in which a "
            "pixel stands for the whole image: use fuse=mixup, or --protocol common"
        )


def _seen(images: Images, real: RealData, whitening: Whitening | None) -> tuple[Images, RealData]:
    """Images and constants so that normalising by them gives what networks see. Mixing is affine:
    whitened before or after, it is the same."""
    if whitening is None:
        return images, real
    channels = real.shape[0]
    plain = replace(real, mean=(0.0,) * channels, std=(1.0,) * channels)
    return (whitened(images[0], whitening), *images[1:]), plain


def job_identity(
    job: Job, real: RealData, recipe: Recipe, width: int, seed: int, profile: str
) -> tuple[str | int, ...]:
    """`Record.identity` of the record that a job will give."""
    return (
        real.fingerprint, job.row.variant, job.row.fuse, job.network, recipe.name, width, seed,
        job.repeat, job.row.draw, profile,
    )  # fmt: skip


def _record(
    manifest: Manifest, real: RealData, job: Job, tested: Tested, profile: Profile, epochs: int,
    seed: int, width: int, sight: Sight,
) -> Record:  # fmt: skip
    fractions = manifest.provenance.schedule_fraction.values()
    return Record(
        data=manifest.source.data,
        set_name=manifest.name,
        methods=[entry.method for entry in manifest.experts],
        ipc=max(max(entry.stored_per_class) for entry in manifest.experts),
        experts=len(manifest.experts),
        variant=job.row.variant,
        fuse=job.row.fuse,
        network=job.network,
        epochs=epochs,
        schedule_fraction=min((float(f) for f in fractions), default=1.0),
        seed=seed,
        set_hash=manifest.training_sha256,
        config=network_config(job, tested, profile, width, sight),
        **measured(tested, real, profile),
    )


def measured(tested: Tested, real: RealData, profile: Profile) -> dict[str, Any]:
    """What a record says of one tested network, whatever it was trained on."""
    return {
        "protocol": tested.recipe.name,
        "accuracy": tested.accuracy,
        "chance": 1 / len(real.classes),
        "hardware": profile.processor,
        "versions": {"moedd": __version__, "torch": str(torch.__version__)},
        "data_fingerprint": real.fingerprint,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "optimizer_steps": tested.steps,
        "seconds": round(tested.seconds, 1),
        "n_train": tested.n_train,
        "test_images": len(real.test),
    }


def network_config(
    job: Job, tested: Tested, profile: Profile, width: int, sight: Sight
) -> dict[str, Any]:
    """What a record says of how its network was trained."""
    recipe, teacher = tested.recipe, sight.teacher
    mode, alpha = fusion_of(job.row.fuse)
    found: dict[str, Any] = {
        "repeat": job.repeat,
        "draw": job.row.draw,
        "lr": recipe.lr,
        "batch": recipe.batch,
        "width": width,
        "profile": profile.name,
        "fusion": {"alpha": alpha, "lam": "sample"} if mode != "none" else {},
    }
    if teacher is not None:
        found["teacher"] = {"network": teacher.network.name, "temperature": recipe.temperature}
    if sight.best:
        found["points"] = {str(epochs): right for epochs, right in tested.points.items()}
    return found
