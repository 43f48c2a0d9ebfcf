"""DM: distribution matching (Zhao & Bilen, WACV 2023).

In every step a fresh, untrained network embeds real and synthetic images of each class; the images
are moved until the class means of the embeddings agree. Images live in normalised space, start as
real images and are never clamped. One image step on the sum over classes, unlike IDC and IDM.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field
from torch import Tensor

from moedd.arithmetic import forward_operations
from moedd.experts.base import ExpertConfig, Space, register_expert
from moedd.experts.mosaic import real_images
from moedd.experts.moving import Batches, ImageSGD, SummedExpert
from moedd.networks import fresh_network
from moedd.ondevice import upload


class DMConfig(ExpertConfig):
    """Settings of DM."""

    lr: float = Field(1.0, gt=0, description="image step size")
    momentum: float = Field(0.5, ge=0, lt=1, description="image momentum")
    batch_real: int = Field(256, ge=1, description="real images per class and step")
    augment: bool = Field(True, description="siamese DSA on real and synthetic images")

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """20,000 steps at step size 1, and 10 from 100 images per class on, as published; every
        other ipc and data set takes the same row."""
        return cls(ipc=ipc, steps=20_000, lr=10.0 if ipc >= 100 else 1.0)


@register_expert("dm")
class DM(SummedExpert):
    """Class means of the embeddings of random networks."""

    config_class: ClassVar[type[ExpertConfig]] = DMConfig
    source: ClassVar[str] = "Zhao & Bilen, WACV 2023, arXiv 2110.04181"
    space: ClassVar[Space] = "normalized"
    config: DMConfig

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        return False

    def initial_images(self) -> Tensor:
        """Real images of each class, drawn without replacement."""
        stored = real_images(self.part, self.config.ipc, self.streams.scope("init"))
        self.optimizer = ImageSGD(stored, self.config.lr, self.config.momentum)
        return stored

    @property
    def image_lr(self) -> float:
        return self.config.lr

    def step(self) -> dict[str, float]:
        """One image step on all classes under a fresh network."""
        streams = self.streams.scope("step", self.done)
        network = fresh_network(self.pool.network, streams.generator("network"))
        device = self.images.device
        parameters = {name: upload(p.detach(), device) for name, p in network.named_parameters()}
        value = self.image_step(parameters, streams, self.config.batch_real, self.config.augment)
        self.done += 1
        return {"match": value}

    def match(
        self, parameters: Mapping[str, Tensor], batches: Batches, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradient, losses, _ = self.arithmetic.feature_match(
            parameters, batches.real, batches.made.detach(), classes, 0.0
        )
        return gradient, losses

    def step_operations(self) -> float:
        forward = forward_operations(self.pool.network)
        return len(self.part.classes) * forward * (self.config.batch_real + 2 * self.config.ipc)
