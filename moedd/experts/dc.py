"""DC and DSA: gradient matching on networks trained on the synthetic images themselves.

Dataset Condensation (Zhao et al., ICLR 2021) and its form with differentiable siamese augmentation
(Zhao & Bilen, ICML 2021). For one fresh network after another: the images are moved until the
gradient that they give the network's weights points where the gradient of real images does, then
the network is trained on the images for a few epochs, `outer` times. Images live in normalised
space and are never clamped; one image step on the sum over classes.

`dc` starts from noise and does not augment; `dsa` starts from real images and augments both sides
alike. One step here is one image step: a network's life is `outer` steps long.

Deviation: batch-norm networks are refused. The published code freezes their statistics on a batch
of real images first; with instance norm, its default, there are none.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from moedd.arithmetic import forward_operations
from moedd.augment import DSA_FAMILIES
from moedd.experts.base import ExpertConfig, Space, register_expert
from moedd.experts.mosaic import real_images
from moedd.experts.moving import Batches, ImageSGD, SummedExpert
from moedd.networks import fresh_network
from moedd.teamtrain import team_trainer
from moedd.train import Augment, Fetch, Recipe, Trainer

_ROWS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
_NETWORKS = 1000
# Ours, chosen on a part of training (docs/results.md): 64 pixels, few steps.
DIGITS: dict[str, float] = {"lr": 1.0}


def loops(ipc: int) -> tuple[int, int]:
    """(outer, inner) of the published table, and of our rule where it has no row.

    Below 10: as many image steps as images, 50 epochs between them (the notes suggest (5, 50) for
    ipc 5). Above: the next smaller row.
    """
    if ipc in _ROWS:
        return _ROWS[ipc]
    if ipc < 10:
        return ipc, 50
    return _ROWS[max(row for row in _ROWS if row < ipc)]


class DCConfig(ExpertConfig):
    """Settings of DC."""

    lr: float = Field(0.1, gt=0, description="image step size")
    momentum: float = Field(0.5, ge=0, lt=1, description="image momentum")
    batch_real: int = Field(256, ge=1, description="real images per class and step")
    outer: int = Field(10, ge=1, description="image steps per network")
    inner: int = Field(50, ge=0, description="epochs on the images between two image steps")
    lr_net: float = Field(0.01, gt=0, description="step size of the network, plain SGD")
    batch_train: int = Field(256, ge=1, description="batch of the network's training")
    init: Literal["noise", "real"] = Field("noise", description="first images")
    augment: bool = Field(False, description="DSA: siamese in matching, per image in training")

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """1,000 networks with the published loop lengths by ipc (`loops`), for all data; `digits`
        take ten times the step, a row of ours."""
        outer, inner = loops(ipc)
        row = DIGITS if data == "digits" else {}
        return cls(ipc=ipc, steps=_NETWORKS * outer, outer=outer, inner=inner, **row)


class DSAConfig(DCConfig):
    """Settings of DSA."""

    init: Literal["noise", "real"] = Field("real", description="first images")
    augment: bool = Field(True, description="DSA: siamese in matching, per image in training")


@register_expert("dc")
class DC(SummedExpert):
    """Directions of the gradients of every weight matrix, per output channel."""

    config_class: ClassVar[type[ExpertConfig]] = DCConfig
    source: ClassVar[str] = "Zhao et al., ICLR 2021, arXiv 2006.05929"
    space: ClassVar[Space] = "normalized"
    config: DCConfig

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        return False

    def initial_images(self) -> Tensor:
        """Noise N(0, 1), or real images of each class drawn without replacement."""
        streams = self.streams.scope("init")
        if self.config.init == "real":
            stored = real_images(self.part, self.config.ipc, streams)
        else:
            shape = (len(self.labels), *self.part.shape)
            stored = torch.randn(shape, generator=streams.generator("noise"))
            stored = stored.to(self.part.images.device)
        self.optimizer = ImageSGD(stored, self.config.lr, self.config.momentum)
        self.trainer: Trainer | None = None
        return stored

    @property
    def image_lr(self) -> float:
        return self.config.lr

    @property
    def remedy(self) -> str:
        return (
            f"lower the image step size (--set {self.method}.lr=..., now {self.config.lr:g}) or "
            f"the network's (--set {self.method}.lr_net=..., now {self.config.lr_net:g}) and start "
            "anew with --overwrite"
        )

    def step(self) -> dict[str, float]:
        """One image step; then, unless the network's life ends, its training on the images."""
        network, position = divmod(self.done, self.config.outer)
        if self.trainer is None or position == 0:
            self.trainer = self._begin(network)
        streams = self.streams.scope("step", self.done)
        parameters = {n: p.detach() for n, p in self.trainer.network.named_parameters()}
        value = self.image_step(parameters, streams, self.config.batch_real, self.config.augment)
        if position < self.config.outer - 1:
            self._train(self.trainer)
        self.done += 1
        return {"match": value}

    def _begin(self, number: int) -> Trainer:
        streams = self.streams.scope("network", number)
        network = fresh_network(self.pool.network, streams.generator("init"))
        recipe = Recipe(
            name="inner",
            passes=self.config.inner,
            batch=self.config.batch_train,
            lr=self.config.lr_net,
            momentum=0.0,
            weight_decay=0.0,
            augment="dsa" if self.config.augment else "none",
            families=DSA_FAMILIES if self.config.augment else (),
        )
        usual = min(self.config.batch_train, len(self.labels))
        return team_trainer(
            self.team, network, recipe, streams, self.part.flip, self.arithmetic.profile, usual
        )

    def settle(self, operations: float) -> None:
        super().settle(operations)
        if self.trainer is not None:  # a resumed one
            self.trainer.use(self.arithmetic.profile)

    def _train(self, trainer: Trainer) -> None:
        """`inner` epochs on the images as they are, shuffled."""
        self.pull_images()
        images, labels = self.decoded()
        images = images.detach()
        for epoch in range(self.config.inner):
            name = ("epoch", self.done % self.config.outer, epoch)
            order = torch.randperm(len(images), generator=trainer.streams.generator(*name))
            for rows in order.split(self.config.batch_train):
                trainer.step(_batch(images[rows], labels[rows]))

    def match(
        self, parameters: Mapping[str, Tensor], batches: Batches, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.arithmetic.gradient_match(
            parameters, batches.real, batches.made.detach(), classes, "cos"
        )

    def step_operations(self) -> float:
        forward = forward_operations(self.pool.network)
        matching = 3 * self.config.batch_real + 9 * self.config.ipc
        training = 3 * self.config.ipc * self.config.inner * (1 - 1 / self.config.outer)
        return len(self.part.classes) * forward * (matching + training)

    @property
    def sample_steps(self) -> list[tuple[int | None, float]]:
        """The last step of a network's life trains no network."""
        outer = self.config.outer
        if outer == 1:
            return [(0, 1.0)]
        return [(min(1, outer - 2), 1 - 1 / outer), (outer - 1, 1 / outer)]

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        if self.trainer is not None:
            state["net.steps"] = torch.tensor(self.trainer.steps)
            for name, parameter in self.trainer.network.named_parameters():
                state[f"net.p.{name}"] = parameter.detach()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.trainer = None
        if "net.steps" in state and self.done % self.config.outer:
            self.trainer = self._begin(self.done // self.config.outer)
            self.trainer.steps = int(state["net.steps"])
            with torch.no_grad():
                for name, parameter in self.trainer.network.named_parameters():
                    parameter.copy_(state[f"net.p.{name}"])


def _batch(images: Tensor, labels: Tensor) -> Fetch:
    def fetch(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
        return augment(images), labels

    return fetch


@register_expert("dsa")
class DSA(DC):
    """DC with differentiable siamese augmentation, from real images."""

    config_class: ClassVar[type[ExpertConfig]] = DSAConfig
    source: ClassVar[str] = "Zhao & Bilen, ICML 2021, arXiv 2102.08259"
