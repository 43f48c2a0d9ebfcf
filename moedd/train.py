"""Training a network: one step, shared by the pool, live networks and evaluation.

A `Recipe` says how; recipes of published evaluation protocols are in `protocols.py`.
Order of one batch (as torchvision, timm and IDC do it): decode, normalise, augment every image,
then mix. CutMix and cross-expert fusion are alternatives per batch, never stacked.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moedd.arithmetic import arithmetic, state_of, template
from moedd.augment import (
    apply_cutmix,
    apply_draw,
    cutmix_targets,
    draw_cutmix,
    draw_dsa,
    draw_idc,
    select_families,
)
from moedd.networks import Network
from moedd.ondevice import upload
from moedd.pixels import Pixels, on_device
from moedd.profile import Profile
from moedd.rdedaugment import augment_rded
from moedd.streams import Streams


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    `passes` over the data in shuffled batches of `batch` (the last one ragged); after epoch index
    e in `decay` the learning rate is multiplied by its factor, and the momentum is lost where
    `reset` says so; with `half_cosine` E it is multiplied by (1 + cos(pi e / 2E)) / 2 in epoch e.
    `augment` combines `families`: `dsa` applies one of them per batch, `idc` colour, flip and
    cutout always and one of the rest, `rded` shuffles and crops mosaics of `factor` x `factor` and
    flips. `cutmix` is its probability per batch. With a `temperature` T labels are a teacher's,
    softmax(logits / T) of the mixed images, at the same T on the student's side. `points` are the
    epochs (from 1) after which the published code tests.
    """

    name: str
    passes: int
    batch: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay: tuple[tuple[int, float], ...] = ()
    reset: bool = False
    augment: Literal["dsa", "idc", "rded", "none"] = "none"
    families: tuple[str, ...] = ()
    cutmix: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    half_cosine: int = 0
    factor: int = 1
    temperature: float | None = None
    points: tuple[int, ...] = ()


TEST_BATCH = 250  # images; divides the 10,000 of CIFAR's test split


def test_batch(network: Network, profile: Profile) -> int:
    """Images that go through a network at once where nothing is learned."""
    return min(TEST_BATCH, profile.images_at_once(network.size))


Augment = Callable[[Tensor], Tensor]
Fetch = Callable[[Augment, bool], tuple[Tensor, Tensor]]
"""`fetch(augment, plain)` gives one batch in normalised space: images float32 (B, C, H, W) that
went through `augment`, and labels (B,) int64 or (B, K) float; with `plain` it must not fuse."""
Teacher = Callable[[Tensor], Tensor]
"""Logits (B, K) of augmented, mixed images float32 (B, C, H, W) in normalised space."""


class Trainer:
    """A network, its SGD state and the draws of its recipe; `step` trains on one batch."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        streams: Streams,
        flip: bool,
        profile: Profile | None = None,
        usual: int | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """`usual`: images of most batches where that is not the recipe's number (a data set
        smaller than a batch). `teacher`: whose labels a recipe with a temperature trains on."""
        assert (teacher is None) == (recipe.temperature is None), "a teacher and its temperature"
        profile = profile or Profile()
        self.network, self.recipe, self.streams = network.to(profile.device), recipe, streams
        self.device, self.teacher = profile.device, teacher
        self.state = state_of(self.network)
        self.usual = usual or recipe.batch
        self.use(profile)
        self.families = select_families(recipe.families, flip=flip)
        self.lr = recipe.lr
        self.steps = 0
        self.restart()

    def use(self, profile: Profile) -> None:
        """Compute in the form of `profile` from now on (uncompiled where it leaves that open)."""
        functions = template(self.network, training=True)
        self.arithmetic = arithmetic(functions, profile.for_work(0))

    def restart(self) -> None:
        """A fresh optimiser at the current learning rate."""
        parameters, decay = list(self.network.parameters()), self.recipe.weight_decay
        self.optimizer: torch.optim.Optimizer
        if self.recipe.optimizer == "adamw":
            groups = [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=self.lr)
        else:
            self.optimizer = torch.optim.SGD(
                parameters, lr=self.lr, momentum=self.recipe.momentum, weight_decay=decay
            )

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The recipe's augmentation with parameters per image."""
        if self.recipe.augment == "rded":
            return augment_rded(images, generator, self.recipe.factor, "flip" in self.families)
        if self.recipe.augment == "none" or not self.families:
            return images
        channels, height, width = images.shape[1:]
        draw = (draw_dsa if self.recipe.augment == "dsa" else draw_idc)(
            generator, len(images), (channels, height, width), self.families, shared=False
        )
        return apply_draw(images, draw)

    def step(self, fetch: Fetch) -> Tensor:
        """Train on one batch; returns the loss, detached."""
        generator = self.streams.generator("batch", self.steps)
        boxed = self.recipe.cutmix > 0 and (
            float(torch.rand((), generator=generator)) < self.recipe.cutmix
        )
        images, labels = fetch(lambda x: self.augment(x, generator), boxed)
        targets = labels if labels.dim() == 2 else F.one_hot(labels, self.network.classes)
        images = upload(images, self.device)
        targets = upload(targets, self.device).to(images.dtype)
        if boxed:
            cut = draw_cutmix(generator, len(images), (images.shape[2], images.shape[3]))
            images, targets = apply_cutmix(images, cut), cutmix_targets(targets, cut)
        loss = self.loss(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy with the targets, or the divergence from the teacher's labels."""
        if self.teacher is None:
            whole = len(images) == self.usual
            return self.arithmetic.training_loss(self.state, images, targets, whole=whole)
        temperature = self.recipe.temperature
        assert temperature is not None
        wanted = (self.teacher(images) / temperature).softmax(1)
        _, logits = self.arithmetic.features(self.state, images)
        given = (logits / temperature).log_softmax(1)
        return F.kl_div(given, wanted, reduction="batchmean")

    def after_epoch(self, epoch: int) -> None:
        """Apply the recipe's learning-rate schedule after the epoch with this index."""
        if self.recipe.half_cosine:
            turn = math.pi * (epoch + 1) / (2 * self.recipe.half_cosine)
            self.set_rate(self.recipe.lr * (1 + math.cos(turn)) / 2)
        for at, factor in self.recipe.decay:
            if at == epoch:
                self.lr *= factor
                if self.recipe.reset:
                    self.restart()
                self.set_rate(self.lr)

    def set_rate(self, lr: float) -> None:
        """Use this learning rate from now on."""
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def shuffled_batches(n: int, batch: int, streams: Streams, start: int = 0) -> Iterator[Tensor]:
    """Rows of one batch after the other, for ever: shuffled every epoch, ragged tail kept.

    `start` is the number of batches that were served before: the same rows come again.
    """
    per_epoch = -(-n // batch)
    epoch, skip = divmod(start, per_epoch)
    while True:
        order = torch.randperm(n, generator=streams.generator("epoch", epoch))
        yield from order.split(batch)[skip:]
        epoch, skip = epoch + 1, 0


def accuracy(
    network: Network,
    images: Pixels,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    batch: int | None = None,
    profile: Profile | None = None,
) -> float:
    """Share of right answers, 0 to 1. `prepare` turns stored rows (uint8), on the profile's
    device, into network input; `batch` of them at a time (unset: `test_batch`)."""
    profile = (profile or Profile()).for_work(0)
    functions = arithmetic(template(network, training=False), profile)
    state = {name: tensor.to(profile.device) for name, tensor in state_of(network).items()}
    right = torch.zeros((), dtype=torch.int64, device=profile.device)
    images, labels = on_device(images, profile.device), upload(labels, profile.device)
    batch = batch or test_batch(network, profile)
    for start, y in zip(range(0, len(images), batch), labels.split(batch), strict=True):
        x = images[start : start + batch]
        logits = functions.logits(state, prepare(x), whole=len(x) == batch)
        right += (logits.argmax(1) == y).sum()
    return int(right) / len(labels)
