"""DM: distribution matching (Zhao & Bilen, WACV 2023).

In every step a fresh, untrained network embeds real and synthetic images of each class; the images
are moved until the class means of the embeddings agree. Images live in normalised space, start as
real images and are never clamped. One image step on the sum over classes, unlike IDC and IDM.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from moedd.arithmetic import forward_operations
from moedd.augment import DSA_FAMILIES, apply_draw, draw_dsa, select_families
from moedd.experts.base import Expert, ExpertConfig, ImageSGD, Space, register_expert
from moedd.experts.fresh import fresh_network, real_images
from moedd.streams import Streams
from moedd_loaders.errors import NonFiniteError


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
class DM(Expert):
    """Class means of the embeddings of random networks."""

    config_class: ClassVar[type[ExpertConfig]] = DMConfig
    source: ClassVar[str] = "Zhao & Bilen, WACV 2023, arXiv 2110.04181"
    space: ClassVar[Space] = "normalized"
    config: DMConfig

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
        parameters = {
            name: p.detach().to(self.images.device) for name, p in network.named_parameters()
        }
        counts = [min(self.config.batch_real, len(rows)) for rows in self.part.rows]
        gradient = torch.zeros_like(self.images)
        losses = [
            self._match(group, parameters, streams, gradient) for group in self.class_groups(counts)
        ]
        value = self.finite(float(torch.cat(losses).mean()), "matching loss")
        try:
            self.last_step_norm = self.finite(self.optimizer.step(gradient), "image step")
        except NonFiniteError:
            self.optimizer.undo()
            raise
        self.done += 1
        return {"match": value}

    def _match(
        self,
        group: Sequence[int],
        parameters: Mapping[str, Tensor],
        streams: Streams,
        gradient: Tensor,
    ) -> Tensor:
        """Losses (classes,) of the group; writes its gradients into `gradient`."""
        families = select_families(DSA_FAMILIES, flip=self.part.flip)
        real, images, leaves = [], [], []
        for c in group:
            order = torch.randperm(len(self.part.rows[c]), generator=streams.generator("real", c))
            x = self.part.normalized(self.part.rows[c][order[: self.config.batch_real]])
            leaves.append(self.images[self.rows(c)].clone().requires_grad_())
            made = leaves[-1]
            if self.config.augment:
                generator = streams.generator("augment", c)
                draw = draw_dsa(generator, 1, self.part.shape, families, shared=True)
                x, made = apply_draw(x, draw), apply_draw(made, draw)
            real.append(x)
            images.append(made)
        stacked = torch.stack(images)
        moves, match, _ = self.arithmetic.feature_match(
            parameters, torch.stack(real), stacked.detach(), self.labels.new_tensor(group), 0.0
        )
        for c, move in zip(group, torch.autograd.grad(stacked, leaves, moves), strict=True):
            gradient[self.rows(c)] = move
        return match

    def step_operations(self) -> float:
        forward = forward_operations(self.pool.network)
        return len(self.part.classes) * forward * (self.config.batch_real + 2 * self.config.ipc)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "velocity": self.optimizer.velocity}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.optimizer.velocity.copy_(state["velocity"])
