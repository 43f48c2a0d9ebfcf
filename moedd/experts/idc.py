"""IDC: gradient matching with multi-formation (Kim et al., ICML 2022).

The synthetic images of a class are moved until the gradient they give a network's convolutions
equals the gradient of real images of that class. Images live in unit space and are clamped to [0,1]
once per outer iteration. `idc` stores f*f shrunk images in each stored image (factor 2), `idc_i`
is factor 1, the form of the source paper's tables.

Deviations from the published code:
* `networks="stored"` (the default) draws a network of the shared pool for every step; the pool is
  trained on real data by IDC's own network recipe (the published code has this as its option of
  stored checkpoints). `networks="live"` is the published default: a fresh network for every outer
  iteration, trained on `train_images` real images after each step.
* The published "random" initial images are the first of each class; an expert's part is shuffled,
  so its first images are a random draw, and two experts never start from the same ones. A class
  with fewer images than its mosaics need is gone through again.
* Sides that the factor does not divide are padded with the data mean, not with 0.5.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from moedd.arithmetic import forward_operations
from moedd.augment import draw_idc
from moedd.experts.base import ExpertConfig, Space, register_expert
from moedd.experts.live import LiveNetwork
from moedd.experts.mosaic import mosaics, shrink
from moedd.experts.moving import ClasswiseSGD, MovingExpert
from moedd.ranks import Ranks
from moedd.streams import Streams
from moedd_loaders.manifest import DecodeRule, NoDecode, TilesDecode

_MATCH_AUGMENT = ("color", "crop", "cutout")


class IDCConfig(ExpertConfig):
    """Settings of IDC. Rows of the reference's presets: by data set."""

    lr_img: float = Field(5e-3, gt=0, description="image step size at ipc 10 and base side")
    momentum: float = Field(0.5, ge=0, lt=1, description="image momentum")
    batch_real: int = Field(64, ge=1, description="real images per class and step")
    batch_syn_max: int = Field(128, ge=1, description="most training images of a class per step")
    multiformation: int = Field(2, ge=1, description="decode factor f: f*f tiles per image")
    metric: Literal["mse", "l1"] = Field("mse", description="distance between gradients")
    base_side: int = Field(32, ge=1, description="side at which lr_img holds")
    inner_loop: int = Field(100, ge=1, description="steps per outer iteration (clamp, network)")
    networks: Literal["stored", "live"] = Field("stored", description="where networks come from")
    train_images: int = Field(2000, ge=0, description="live: real images per step")
    match_cutout: bool = Field(True, description="cutout among the matching augmentations")

    @property
    def factor(self) -> int:
        return self.multiformation

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """The published row of the data set; others take CIFAR's with the side scaling left out.

        The step size holds for ipc 10 and is scaled with ipc (any value), as published; for
        data sets that have no row it is not scaled with the side, which nobody has validated.
        `digits` take four times the step, a row of ours.
        """
        row: dict[str, float | int | str] = {}
        if data in ("mnist", "fashion_mnist"):
            row = {"metric": "l1", "lr_img": 1e-4, "train_images": 500}
            row["base_side"] = 28 if data == "mnist" else 32
            factor = cls.model_fields["multiformation"].default
            row["match_cutout"] = not (data == "mnist" and factor > 1)
        elif data == "svhn":
            row = {"train_images": 500}
        elif data == "digits":
            # Chosen on a part of training (docs/results.md): 64 pixels, few steps.
            row = {"base_side": shape[1], "lr_img": 2e-2}
        elif data not in ("cifar10", "cifar100"):
            row = {"base_side": shape[1]}
        return cls(ipc=ipc, steps=200_000, **row)


class IDCIConfig(IDCConfig):
    """IDC with factor 1."""

    multiformation: int = Field(1, ge=1, description="decode factor f: f*f tiles per image")


@register_expert("idc")
class IDC(MovingExpert):
    """Class-wise matching of convolution gradients, decode factor 2."""

    config_class: ClassVar[type[ExpertConfig]] = IDCConfig
    source: ClassVar[str] = "Kim et al., ICML 2022, arXiv 2205.14959"
    space: ClassVar[Space] = "unit"
    config: IDCConfig
    optimizer: ClasswiseSGD

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        assert isinstance(config, IDCConfig)
        return config.networks == "stored"

    def initial_images(self) -> Tensor:
        """Mosaics of the part's first ipc*f*f images of each class, cut down by pixel dropping.

        Small classes are gone through again from their start.
        """
        factor, ipc = self.config.multiformation, self.config.ipc
        images = []
        for rows in self.part.rows:
            wanted = torch.arange(ipc * factor**2) % len(rows)
            small = shrink(self.part.unit(rows[wanted]), factor, "nearest")
            cells = list(small.split(ipc))
            images.append(mosaics(cells, self.part.shape[1:], factor, "row-major"))
        stored = torch.cat(images)
        self.optimizer = ClasswiseSGD(
            stored, len(self.part.classes), self.image_lr, self.config.momentum
        )
        self.live = LiveNetwork(
            self.pool, self.part, self.config.train_images, self.streams, self.profile
        )
        return stored

    @property
    def decode_rule(self) -> DecodeRule:
        if self.config.multiformation == 1:
            return NoDecode()
        return TilesDecode(factor=self.config.multiformation, order="row-major")

    @property
    def image_lr(self) -> float:
        """`lr_img * ipc/10 * (side/base)^2`: the ipc factor undoes the mean over images."""
        side = self.part.shape[1] / self.config.base_side
        return self.config.lr_img * self.config.ipc / 10 * side**2

    @property
    def notes(self) -> list[str]:
        """Also where the first images repeat real ones."""
        notes = super().notes
        if short := self.smaller_classes(self.config.ipc * self.config.factor**2):
            notes.append(f"{short}, so the first mosaics of these hold real images more than once")
        return notes

    def step(self) -> dict[str, float]:
        """One image step per class under one network; then, live, that network's training."""
        streams = self.streams.scope("step", self.done)
        outer, inner = divmod(self.done, self.config.inner_loop)
        if inner == 0:
            self.images.clamp_(0, 1)
        if self.config.networks == "stored":
            parameters = self.pool.draw(streams.generator("network")).parameters
        else:
            parameters = self.live.parameters(outer)
        self.optimizer.begin()
        real_rows = {c: self._real_rows(c) for c in self.own_classes}
        losses = [
            self._move_classes(group, real_rows, parameters, streams)
            for group in self.class_groups([self._batch(c) for c in range(len(self.part.classes))])
        ]
        value = self.mean_loss(losses)
        self.accept({"matching loss": value})
        if self.config.networks == "live":
            self.live.train(self.done)
        self.done += 1
        return {"match": value}

    def _move_classes(
        self,
        group: Sequence[int],
        real_rows: Mapping[int, Tensor],
        parameters: Mapping[str, Tensor],
        streams: Streams,
    ) -> Tensor:
        """One image step of each class of the group; returns their losses (classes,)."""
        names = _MATCH_AUGMENT if self.config.match_cutout else _MATCH_AUGMENT[:2]
        rows = self.group_rows(group)
        self.optimizer.before(group, rows)
        own = [streams.scope("class", c) for c in group]
        draws = [
            draw_idc(stream.generator("augment"), 1, self.part.shape, names, shared=True)
            for stream in own
        ]
        batches = self.batches(group, [real_rows[c] for c in group], draws, self._kept(own))
        gradient, losses = self.arithmetic.gradient_match(
            parameters, batches.real, batches.made.detach(), self.group_classes(group),
            self.config.metric,
        )  # fmt: skip
        self.optimizer.step(group, rows, batches.gradient(gradient))
        return losses

    def join(self, team: Ranks) -> None:
        super().join(team)
        self.live.team = team

    def settle(self, operations: float) -> None:
        super().settle(operations)
        self.live.use(self.arithmetic.profile)

    def step_operations(self) -> float:
        # A parameter gradient costs three forward passes, its derivative three times as much.
        forward = forward_operations(self.pool.network)
        decoded = min(self.config.ipc * self.config.factor**2, self.config.batch_syn_max)
        total = len(self.part.classes) * forward * (3 * self.config.batch_real + 9 * decoded)
        if self.config.networks == "live":
            total += 3 * forward * self.config.train_images
        return total

    def _real_rows(self, c: int) -> Tensor:
        """The next batch of the class: shuffled, cut into batches, the ragged tail dropped."""
        rows = self.part.rows[c]
        batch = self._batch(c)
        epoch, position = divmod(self.done, len(rows) // batch)
        order = torch.randperm(len(rows), generator=self.streams.generator("real", c, epoch))
        return rows[order[position * batch : (position + 1) * batch]]

    def _batch(self, c: int) -> int:
        """Real images of a batch of the class."""
        return min(self.config.batch_real, len(self.part.rows[c]))

    def _kept(self, own: Sequence[Streams]) -> list[Tensor] | None:
        """Which training images of each class take part in a step; None for all of them."""
        decoded, most = self.config.ipc * self.config.factor**2, self.config.batch_syn_max
        if decoded <= most:
            return None
        return [torch.randperm(decoded, generator=s.generator("keep"))[:most] for s in own]

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), **self.live.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.live.load_state_dict(state)


@register_expert("idc_i")
class IDCI(IDC):
    """IDC with factor 1: plain pixels, the form of the source paper's tables."""

    config_class: ClassVar[type[ExpertConfig]] = IDCIConfig
