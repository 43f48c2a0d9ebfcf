"""Evaluation: train fresh networks on a set and test them on real data.

A *row* is one kind of training data: a distilled set (with or without fusion), the same number of
random real images under the same decode rules, or all real images. Every network trained is one
`Record`. Networks of one row differ in their seed; their spread says nothing about the method,
only about training on this one set.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from moedd import __version__
from moedd.arithmetic import forward_operations
from moedd.experts.mosaic import mosaics, shrink
from moedd.networks import build_network
from moedd.profile import Profile
from moedd.realdata import RealData
from moedd.streams import Streams
from moedd.train import Augment, Fetch, Recipe, Trainer, accuracy
from moedd.zca import Whitening
from moedd_loaders.dataset import DistilledDataset
from moedd_loaders.decode import decode, decode_labels
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import Manifest, TilesDecode
from moedd_loaders.read import StoredSet
from moedd_loaders.records import Record


@dataclass(frozen=True)
class Row:
    """One line of an evaluation table.

    `variant` "distilled", "random" or "full"; `fuse` a public fusion string; `draw` numbers the
    random draws (0 for the others).
    """

    variant: str
    fuse: str = "none"
    draw: int = 0

    @property
    def title(self) -> str:
        """The row's name in tables."""
        if self.variant == "distilled":
            return "distilled" if self.fuse == "none" else f"distilled, fuse={self.fuse}"
        return {"random": "random real images", "full": "all real images"}[self.variant]


@dataclass(frozen=True)
class Job:
    """One network to train: which row, which architecture, which repeat."""

    row: Row
    network: str
    repeat: int


Images = tuple[Tensor, Tensor, Tensor]


def distilled_images(stored: StoredSet) -> Images:
    """Decoded training images in unit space, labels, expert ids of a stored set."""
    source = stored.manifest.source
    images, labels, experts = [], [], []
    for entry in stored.manifest.experts:
        rows = stored.experts == entry.id
        made = decode(stored.images[rows], entry.decode, source.mean)
        images.append(made)
        target = stored.labels if stored.soft_labels is None else stored.soft_labels
        labels.append(decode_labels(target[rows], entry.decode))
        experts.append(torch.full((len(made),), entry.id))
    return torch.cat(images), torch.cat(labels), torch.cat(experts)


def random_images(manifest: Manifest, real: RealData, streams: Streams) -> Images:
    """Random real images with the set's budget under the set's decode rules, in unit space.

    A tiles rule stores f*f shrunk real images (antialiased) in each stored image, so that the
    comparison has the same pixels to spend. No image is used twice while the class has others.
    """
    images, labels, experts = [], [], []
    size = (real.shape[1], real.shape[2])
    class_rows = real.train.class_rows(len(real.classes))
    taken = [0] * len(class_rows)
    orders = [
        rows[torch.randperm(len(rows), generator=streams.generator("class", c))]
        for c, rows in enumerate(class_rows)
    ]
    for entry in manifest.experts:
        rule = entry.decode
        factor = rule.factor if isinstance(rule, TilesDecode) else 1
        order = rule.order if isinstance(rule, TilesDecode) else "row-major"
        for c, count in enumerate(entry.stored_per_class):
            wanted = torch.arange(taken[c], taken[c] + count * factor**2) % len(orders[c])
            taken[c] += len(wanted)
            small = shrink(real.train.images[orders[c][wanted]].float() / 255, factor, "bilinear")
            stored = mosaics(list(small.split(count)), size, factor, order)
            made = decode(stored, rule, real.mean)
            images.append(made)
            labels.append(torch.full((len(made),), c))
            experts.append(torch.full((len(made),), entry.id))
    return torch.cat(images), torch.cat(labels), torch.cat(experts)


def full_images(real: RealData) -> Images:
    """All real training images, as one expert."""
    labels = real.train.labels
    return real.train.images.float() / 255, labels, torch.zeros_like(labels)


def row_images(row: Row, stored: StoredSet, real: RealData, seed: int) -> Images:
    """The training images of a row, in unit space."""
    if row.variant == "distilled":
        return distilled_images(stored)
    if row.variant == "random":
        streams = Streams(seed).scope("random", row.draw)
        return random_images(stored.manifest, real, streams)
    return full_images(real)


class TrainingData:
    """Training images of a row as fetches for a `Trainer`, fused as the row says."""

    def __init__(
        self, row: Row, images: Images, real: RealData, seed: int, device: str = "cpu"
    ) -> None:
        pixels, labels, experts = images
        soft = labels if labels.dim() == 2 else None
        hard = labels if soft is None else labels.argmax(1)
        self.plain = DistilledDataset(
            pixels, hard, experts, classes=real.classes, mean=real.mean, std=real.std,
            soft_labels=soft, normalize=True, seed=seed,
        )  # fmt: skip
        self.fused = self.plain
        if row.fuse != "none":
            self.fused = DistilledDataset(
                pixels, hard, experts, classes=real.classes, mean=real.mean, std=real.std,
                soft_labels=soft, normalize=True, seed=seed, fuse=row.fuse,
            )  # fmt: skip
        # The whole set lies on the device: batches are put together and augmented there.
        whole = self.plain.images
        assert isinstance(whole, Tensor)  # made from tensors, above
        self.images = whole.to(device)
        self.targets = self.plain.served_targets.to(device)

    def __len__(self) -> int:
        return len(self.plain)

    def fetch(self, rows: Tensor, epoch: int) -> Fetch:
        """The batch `rows` in its `epoch`-th serving."""
        index = rows.numpy()
        served = np.full_like(index, epoch)

        def batch(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
            ds = self.plain if plain else self.fused
            return ds.serve(index, served, self.images, self.targets, augment)

        return batch


OnEpoch = Callable[[int, float], None]


def train_network(
    data: TrainingData, recipe: Recipe, network: str, real: RealData, streams: Streams,
    width: int = 128, on_epoch: OnEpoch | None = None, profile: Profile | None = None,
) -> Trainer:  # fmt: skip
    """Train a fresh network by `recipe`; the trainer holds it and its step count."""
    channels, height, width_px = real.shape
    net = build_network(
        network,
        channels=channels,
        classes=len(real.classes),
        size=(height, width_px),
        width=width,
        generator=streams.generator("init"),
    )
    work = 3 * forward_operations(net) * recipe.passes * len(data)
    profile = (profile or Profile()).for_work(work)
    usual = min(recipe.batch, len(data))
    trainer = Trainer(net, recipe, streams, real.flip, profile, usual)
    for epoch in range(recipe.passes):
        order = torch.randperm(len(data), generator=streams.generator("epoch", epoch))
        loss = torch.zeros(())
        for rows in order.split(recipe.batch):
            loss = trainer.step(data.fetch(rows, epoch))
        trainer.after_epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch + 1, float(loss))
    return trainer


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
) -> Iterator[Record]:
    """Train and test one network per job; yields each record as soon as it is known.

    Accuracy is that of the last epoch on the real test split. With `whitening`, networks see
    training and test images in that space instead of normalised.

    Raises UsageError: CutMix of whitened images, which have no places to cut from.
    """
    if whitening is not None and any(job.row.fuse == "cutmix" for job in jobs):
        raise UsageError(
            "fuse=cutmix pastes pixels and the set was optimised on whitened images, in which a "
            "pixel stands for the whole image: use fuse=mixup, or --protocol common"
        )
    on_device = None if whitening is None else whitening.to(profile.device)

    def whitened(pixels: Tensor) -> Tensor:
        assert on_device is not None
        return on_device.whiten(pixels.float() / 255)

    for job in jobs:
        began = time.perf_counter()
        streams = Streams(seed).scope("evaluate", job.network, job.repeat, job.row.draw)
        images = row_images(job.row, stored, real, seed)
        data = TrainingData(
            job.row, *_seen(images, real, whitening), streams.key("fuse"), profile.device
        )

        def told(epoch: int, loss: float, job: Job = job) -> None:
            if on_epoch is not None:
                on_epoch(job, epoch, loss)

        trainer = train_network(data, recipe, job.network, real, streams, width, told, profile)
        right = accuracy(
            trainer.network, real.test.images, real.test.labels,
            real.normalized if whitening is None else whitened,
            profile=trainer.arithmetic.profile,
        )  # fmt: skip
        yield _record(
            stored.manifest, real, recipe, job, trainer, right, len(data), profile, epochs, seed,
            time.perf_counter() - began, width,
        )  # fmt: skip


def _seen(images: Images, real: RealData, whitening: Whitening | None) -> tuple[Images, RealData]:
    """Images and constants so that normalising by them gives what networks see. Mixing is affine:
    whitened before or after, it is the same."""
    if whitening is None:
        return images, real
    channels = real.shape[0]
    plain = replace(real, mean=(0.0,) * channels, std=(1.0,) * channels)
    return (whitening.whiten(images[0]), *images[1:]), plain


def job_identity(
    job: Job, real: RealData, recipe: Recipe, width: int, seed: int, profile: str
) -> tuple[str | int, ...]:
    """`Record.identity` of the record that a job will give."""
    return (
        real.fingerprint, job.row.variant, job.row.fuse, job.network, recipe.name, width, seed,
        job.repeat, job.row.draw, profile,
    )  # fmt: skip


def _record(
    manifest: Manifest, real: RealData, recipe: Recipe, job: Job, trainer: Trainer, right: float,
    n_train: int, profile: Profile, epochs: int, seed: int, seconds: float, width: int,
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
        protocol=recipe.name,
        epochs=epochs,
        schedule_fraction=min((float(f) for f in fractions), default=1.0),
        seed=seed,
        accuracy=right,
        chance=1 / len(real.classes),
        set_hash=manifest.training_sha256,
        hardware=profile.processor,
        versions={"moedd": __version__, "torch": str(torch.__version__)},
        data_fingerprint=real.fingerprint,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        optimizer_steps=trainer.steps,
        seconds=round(seconds, 1),
        config={
            "repeat": job.repeat,
            "draw": job.row.draw,
            "lr": recipe.lr,
            "batch": recipe.batch,
            "width": width,
            "profile": profile.name,
            "fusion": {"alpha": 1.0, "lam": "sample"} if job.row.fuse != "none" else {},
        },
        n_train=n_train,
        test_images=len(real.test),
    )
