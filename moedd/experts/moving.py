"""Experts whose images move by matching, class by class: IDC, IDM, and the DC family.

What they share: optimisers that can take a step back, real and synthetic images of some classes
under one augmentation, and a step that is accepted whole or not at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moedd.augment import DSA_FAMILIES, Draw, apply_each, draw_dsa, select_families
from moedd.experts.base import Expert
from moedd.ondevice import upload
from moedd.shares import blocks
from moedd.streams import Streams
from moedd_loaders.errors import NonFiniteError


class ImageOptimizer:
    """SGD with momentum on the stored images `images`, a leaf that is changed in place."""

    def __init__(self, images: Tensor, lr: float, momentum: float) -> None:
        self.images, self.lr, self.momentum = images, lr, momentum
        self.velocity = torch.zeros_like(images)
        self.begin()

    def begin(self) -> None:
        """Remember where the images are: `moved` and `undo` count from here."""
        self._before = self.images.clone(), self.velocity.clone()

    def moved(self, rows: slice = slice(None)) -> Tensor:
        """Length of the way since `begin`, of all images or of some."""
        return (self.images[rows] - self._before[0][rows]).norm()

    def undo(self) -> None:
        """Go back to where `begin` was called."""
        self.images.copy_(self._before[0])
        self.velocity.copy_(self._before[1])


class ClasswiseSGD(ImageOptimizer):
    """The image optimiser of IDC and IDM: stepped once per class.

    All classes share one buffer in the references and the optimiser steps once per class, so a
    class's images keep moving by momentum while the other classes are worked on (measured in the
    IDC notes, section 8). Between two visits the gradient of a class is zero, so its movement has a
    closed form, which makes classes independent of each other:
    after j steps without gradient, `x -= lr * v * (m + ... + m^j)` and `v *= m^j`.
    """

    def __init__(self, images: Tensor, classes: int, lr: float, momentum: float) -> None:
        super().__init__(images, lr, momentum)
        self.classes = classes
        self._kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def before(self, group: Sequence[int], rows: slice) -> None:
        """Move the classes of `group`, whose images are `rows`, each through the steps of the
        classes visited before it in this round."""
        self._coast(rows, tuple(group))

    def step(self, group: Sequence[int], rows: slice, gradient: Tensor) -> None:
        """Each class's own step, then the steps of the classes visited after it."""
        velocity = self.velocity[rows]
        velocity.mul_(self.momentum).add_(gradient)
        self.images[rows].sub_(velocity, alpha=self.lr)
        self._coast(rows, tuple(self.classes - 1 - c for c in group))

    def _coast(self, rows: slice, steps: tuple[int, ...]) -> None:
        images, velocity = (
            x[rows].unflatten(0, (len(steps), -1)) for x in (self.images, self.velocity)
        )
        travel, kept = self._coefficients(steps)
        images.addcmul_(velocity, travel, value=-1)
        velocity.mul_(kept)

    def _coefficients(self, steps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Per class: what its velocity is multiplied by to move the images, and what is left of
        it; kept, because every round needs the same."""
        if steps not in self._kept:
            m = self.momentum
            travel = [self.lr * sum(m**j for j in range(1, n + 1)) for n in steps]
            shape = (-1, *[1] * self.images.dim())
            both = torch.tensor([travel, [m**n for n in steps]], dtype=self.images.dtype)
            moving, left = both.to(self.images.device).unbind()
            self._kept[steps] = moving.view(shape), left.view(shape)
        return self._kept[steps]


class ImageSGD(ImageOptimizer):
    """The image optimiser of DC, DSA and DM: all stored images at once."""

    def step(self, gradient: Tensor) -> None:
        """One step down `gradient`, shaped like the images."""
        self.velocity.mul_(self.momentum).add_(gradient)
        self.images.sub_(self.velocity, alpha=self.lr)


@dataclass(frozen=True, eq=False)
class Batches:
    """Training images of some classes, normalised and augmented: `real` (classes, n, C, H, W), and
    `made` (classes, m, C, H, W) with a graph to `leaf` (classes*ipc, C, H, W), their stored
    images."""

    real: Tensor
    made: Tensor
    leaf: Tensor

    def gradient(self, by_made: Tensor) -> Tensor:
        """Gradient of the leaf, given that of `made`."""
        return torch.autograd.grad(self.made, self.leaf, by_made)[0]


class MovingExpert(Expert):
    """An expert with an `optimizer` on its images, which `initial_images` sets."""

    optimizer: ImageOptimizer
    spreads_classes: ClassVar[bool] = True

    def pull(self) -> None:
        self.pull_images()
        self.team.join_rows(self.optimizer.velocity, self._cuts(), "state")

    def pull_images(self) -> None:
        """The images alone, for what is done with all of them between two steps."""
        self.team.join_rows(self.images, self._cuts(), "images")

    def _cuts(self) -> list[slice]:
        """Stored images by the rank of the team that moves them."""
        classes = blocks(len(self.part.classes), self.team.size)
        return [slice(own.start * self.config.ipc, own.stop * self.config.ipc) for own in classes]

    def mean_loss(self, losses: Sequence[Tensor]) -> float:
        """Mean over all classes of losses (classes,) of the own ones, group by group."""
        if self.team.size == 1:
            return float(torch.cat(list(losses)).mean())
        total = self.team.add_up(torch.cat(list(losses)).sum())
        return float(total) / len(self.part.classes)

    def _moved(self) -> float:
        """Length of the step of all images, whoever moved them."""
        if self.team.size == 1:
            return float(self.optimizer.moved())
        own = self.optimizer.moved(self._cuts()[self.team.place])
        return math.sqrt(float(self.team.add_up(own.square())))

    def group_rows(self, group: Sequence[int]) -> slice:
        """Positions of a group of neighbouring classes among the stored images."""
        return slice(self.rows(group[0]).start, self.rows(group[-1]).stop)

    def group_classes(self, group: Sequence[int]) -> Tensor:
        """The classes of the group, int64, on the device of the images."""
        return self.labels[self.group_rows(group)][:: self.config.ipc]

    def batches(
        self,
        group: Sequence[int],
        real_rows: Sequence[Tensor],
        draws: Sequence[Draw] | None,
        kept: Sequence[Tensor] | None = None,
    ) -> Batches:
        """Real and synthetic images of each class of the group, both augmented by its draw.

        `real_rows`, `draws` and `kept` go by the classes of the group: as many real rows for each,
        and which of the class's decoded images take part (None: all).
        """
        real = self.part.normalized(torch.cat(list(real_rows))).unflatten(0, (len(group), -1))
        leaf = self.images[self.group_rows(group)].clone().requires_grad_()
        # Decoded, the images lie cell by cell, and within a cell class by class.
        made = self.training_images(leaf).unflatten(0, (-1, len(group), self.config.ipc))
        made = made.transpose(0, 1).flatten(1, 2)
        if kept is not None:
            chosen = upload(torch.stack(list(kept)), made.device)
            made = torch.stack([own[rows] for own, rows in zip(made, chosen, strict=True)])
        if draws is not None:
            real, made = apply_each(real, draws), apply_each(made, draws)
        return Batches(real, made, leaf)

    def siamese(
        self, group: Sequence[int], streams: Streams, batch_real: int, augment: bool
    ) -> Batches:
        """At most `batch_real` real images of each class, drawn without replacement (a smaller
        class is taken whole, as in the published code), and all of its synthetic ones; with
        `augment`, one DSA draw per class for both."""
        families = select_families(DSA_FAMILIES, flip=self.part.flip)
        real_rows, draws = [], []
        for c in group:
            rows = self.part.rows[c]
            order = torch.randperm(len(rows), generator=streams.generator("real", c))
            real_rows.append(rows[order[:batch_real]])
            if augment:
                generator = streams.generator("augment", c)
                draws.append(draw_dsa(generator, 1, self.part.shape, families, shared=True))
        return self.batches(group, real_rows, draws or None)

    @property
    def notes(self) -> list[str]:
        asked = getattr(self.config, "batch_real", 0)
        short = self.smaller_classes(asked)
        if not short:
            return []
        return [f"{short}, so a batch of theirs is the whole class instead of {asked} images"]

    def accept(self, losses: Mapping[str, float]) -> None:
        """Note the length of the step that the optimiser made since `begin`.

        Raises NonFiniteError: it, or one of the `losses` (by what they are called in sentences),
        left the finite numbers; the images are then where they were.
        """
        try:
            for term, value in losses.items():
                self.finite(value, term)
            self.last_step_norm = self.finite(self._moved(), "image step")
        except NonFiniteError:
            self.optimizer.undo()
            raise

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "velocity": self.optimizer.velocity}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.optimizer.velocity.copy_(state["velocity"])


class SummedExpert(MovingExpert):
    """The DC family: one image step on the sum over classes."""

    optimizer: ImageSGD

    def match(
        self, parameters: Mapping[str, Tensor], batches: Batches, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient like `batches.made` and losses (classes,) of the method's distance."""
        raise NotImplementedError

    def image_step(
        self, parameters: Mapping[str, Tensor], streams: Streams, batch_real: int, augment: bool
    ) -> float:
        """One image step on all classes under a network; returns their mean loss."""
        self.optimizer.begin()
        gradient, losses = torch.zeros_like(self.images), []
        for group in self.class_groups([min(batch_real, len(rows)) for rows in self.part.rows]):
            batches = self.siamese(group, streams, batch_real, augment)
            by_made, own = self.match(parameters, batches, self.group_classes(group))
            losses.append(own)
            gradient[self.group_rows(group)] = batches.gradient(by_made)
        self.optimizer.step(gradient)
        value = self.mean_loss(losses)
        self.accept({"matching loss": value})
        return value
