"""RDED: real crops that an observer recognises best (Sun et al., CVPR 2024, arXiv 2312.03526).

No pixel is optimised: square crops of real images are scored by a trained network's cross-entropy
with their true class, the best crop of each image is kept, the best images of each class are
stored, `mosaic` x `mosaic` crops in one image. Made at once, so `steps` is 0; the diversity step
moves only the partner of such an expert.

Deviations from the published code:
* the observer is trained on the expert's part (setting `observer`) in our normalisation, not taken
  from a checkpoint in ImageNet's constants; its accuracy must be clearly above chance;
* stored pixels are multiples of 1/255 exactly, and are what was scored; the published code scores
  first, then truncates to 8 bits and stores JPEG at quality 75;
* labels are hard by default. `labels="soft"` stores the observer's probabilities of each stored
  image; the published code asks the observer anew for every augmented and mixed batch, at
  temperature 20 on both sides of a KL divergence;
* images that are not square are cropped at their own aspect ratio, so that nothing is distorted;
* draws are seeded. (The published synthesis is not.)

As published, the crops of a mosaic are trained on together, as one image; `decode_tiles` cuts and
enlarges them as IDC does.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from moedd.experts.base import Expert, ExpertConfig, Space, register_expert
from moedd.experts.mosaic import cell_size, mosaics
from moedd.experts.observer import (
    ObserverRecipe,
    held_out,
    load_observer,
    require_accuracy,
)
from moedd.parts import normalize
from moedd_loaders.errors import NonFiniteError
from moedd_loaders.manifest import DecodeRule, NoDecode, TilesDecode

_SMALLEST_AREA = 0.08  # of a crop, as a share of the image


class RDEDConfig(ExpertConfig):
    """Settings of RDED and of its observer."""

    steps: int = Field(0, ge=0, le=0, description="0: made at once, nothing to optimise")
    mosaic: int = Field(1, ge=1, description="f: f*f crops are stored in one image")
    num_crop: int = Field(5, ge=1, description="crops drawn of every real image")
    images_per_class: int = Field(300, ge=1, description="real images that are cropped, at most")
    decode_tiles: bool = Field(False, description="train on the crops of a mosaic one by one")
    labels: Literal["hard", "soft"] = Field(
        "hard", description="class numbers, or the observer's probabilities of each stored image"
    )
    temperature: float = Field(1.0, gt=0, description="of soft labels: softmax(logits / it)")
    observer: str = Field(
        "part",
        description="part: trained on the expert's part; pool: the pool's oldest network; "
        "or the key of a stored observer",
    )
    observer_network: str | None = Field(None, description="its network; unset: the pool's")
    observer_steps: int = Field(3000, ge=1, description="its training steps")
    observer_batch: int = Field(64, ge=1, description="real images per training step")
    observer_lr: float = Field(0.01, gt=0, description="its SGD step size")
    observer_seed: int = Field(0, description="its seed, apart from the run's: it is cached")
    observer_floor: float = Field(
        0.2, ge=0, lt=1, description="share of the way from chance to perfect it must have gone"
    )

    @property
    def factor(self) -> int:
        return self.mosaic if self.decode_tiles else 1

    @property
    def crops_per_class(self) -> int:
        """Crops that one class stores, each of another real image."""
        return self.ipc * self.mosaic**2

    def observer_recipe(self, network: str, width: int) -> ObserverRecipe:
        """How its observer is trained; `network` is taken where the settings name none."""
        return ObserverRecipe(
            network=self.observer_network or network,
            width=width,
            steps=self.observer_steps,
            batch=self.observer_batch,
            lr=self.observer_lr,
            seed=self.observer_seed,
        )

    @model_validator(mode="after")
    def _enough_images(self) -> Self:
        if self.images_per_class < self.crops_per_class:
            raise ValueError(
                f"images_per_class is {self.images_per_class} and {self.ipc} stored images of "
                f"{self.mosaic}x{self.mosaic} crops take {self.crops_per_class} of a class, one of "
                "each real image: raise it"
            )
        return self

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """As published: whole crops up to 64 pixels, 2x2 mosaics from 128 on; 5 crops of 300
        images. Sides between, which nobody published, count as small. `digits` train a shorter
        observer, of our choice."""
        mosaic = 2 if min(shape[1:]) >= 128 else 1
        row = {"observer_steps": 300} if data == "digits" else {}
        return cls(ipc=ipc, mosaic=mosaic, images_per_class=max(300, ipc * mosaic**2), **row)


@register_expert("rded")
class RDED(Expert):
    """Crops of real images, selected by an observer."""

    config_class: ClassVar[type[ExpertConfig]] = RDEDConfig
    source: ClassVar[str] = "Sun et al., CVPR 2024, arXiv 2312.03526"
    space: ClassVar[Space] = "unit"
    config: RDEDConfig

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        assert isinstance(config, RDEDConfig)
        return config.observer == "pool"

    def initial_images(self) -> Tensor:
        """The finished images: cell k (along rows) of a class's images holds the crops ranked
        k*ipc to (k+1)*ipc-1, so that every stored image has good and less good ones."""
        config = self.config
        self.require_images(
            config.crops_per_class,
            f"{config.ipc} stored images of {config.mosaic}x{config.mosaic} crops",
        )
        net = self.pool.network
        recipe = config.observer_recipe(net.name, net.width)
        self.observer = load_observer(config.observer, self.part, recipe, self.pool, self.profile)
        _, judged = held_out(self.part)
        self.observer_accuracy = self.observer.accuracy(self.part, judged)
        require_accuracy(
            self.observer_accuracy, len(self.part.classes), config.observer_floor,
            f"expert {self.part.index} ({self.method})", len(judged),
        )  # fmt: skip
        size = self.part.shape[1:]
        images = []
        for c in range(len(self.part.classes)):
            ranked = self._ranked_crops(c).to(torch.float32) / 255
            images.append(mosaics(list(ranked.split(config.ipc)), size, config.mosaic, "row-major"))
        stored = torch.cat(images)
        self._soft_labels = self._probabilities(stored) if config.labels == "soft" else None
        return stored

    @property
    def decode_rule(self) -> DecodeRule:
        if self.config.factor == 1:
            return NoDecode()
        return TilesDecode(factor=self.config.factor, order="row-major")

    @property
    def soft_labels(self) -> Tensor | None:
        return self._soft_labels

    @property
    def notes(self) -> list[str]:
        short = self.smaller_classes(self.config.images_per_class)
        return [f"{short}, so crops are taken of all that there are"] if short else []

    @property
    def measured(self) -> dict[str, float]:
        return {"observer_accuracy": self.observer_accuracy}

    def _ranked_crops(self, c: int) -> Tensor:
        """The best crop of each drawn image of class c, the best images first: uint8
        (ipc*f*f, C, h, w)."""
        streams, rows = self.streams.scope("class", c), self.part.rows[c]
        order = torch.randperm(len(rows), generator=streams.generator("images"))
        images = self.part.images[rows[order[: self.config.images_per_class]]]
        size = cell_size(self.part.shape[1:], self.config.mosaic)
        crops = draw_crops(images, self.config.num_crop, size, streams.generator("crops"))
        losses = self._losses(crops.flatten(0, 1), c).view(len(images), -1)
        best = losses.argmin(1)
        winners = crops[torch.arange(len(images), device=crops.device), best]
        ranks = losses.amin(1).sort(stable=True).indices[: self.config.crops_per_class]
        return winners[ranks]

    def _losses(self, crops: Tensor, c: int) -> Tensor:
        """Cross-entropy (n,) of uint8 crops (n, C, h, w) with class c under the observer.

        Crops smaller than an image are set in the middle of the data mean, as published. Raises
        NonFiniteError: the observer went astray.
        """
        height, width = self.part.shape[1:]
        down, right = height - crops.shape[2], width - crops.shape[3]
        margins = (right // 2, right - right // 2, down // 2, down - down // 2)
        losses = []
        for batch in crops.split(1000):  # bounds the float copies, not the observer's batches
            unit = batch.to(torch.float32) / 255
            padded = F.pad(normalize(unit, self.part.mean, self.part.std), margins)
            logits = self.observer.logits(padded, self.part.classes)
            losses.append(F.cross_entropy(logits, self._class(c, len(batch)), reduction="none"))
        found = torch.cat(losses)
        if not bool(found.isfinite().all()):
            raise NonFiniteError(
                f"the observer of expert {self.part.index} ({self.method}) gives crops of class "
                f"{self.part.classes[c]!r} losses that are NaN or infinite: lower the step size "
                "it is trained at (--set rded.observer_lr=...) or take the pool's network "
                "(--set rded.observer=pool)"
            )
        return found

    def _class(self, c: int, n: int) -> Tensor:
        return self.labels.new_full((n,), c)

    def _probabilities(self, stored: Tensor) -> Tensor:
        """Soft labels (n, classes) float32 of stored images (n, C, H, W) in unit space."""
        images = normalize(stored, self.part.mean, self.part.std)
        logits = self.observer.logits(images, self.part.classes)
        return (logits / self.config.temperature).softmax(1)

    def state_dict(self) -> dict[str, Tensor]:
        # What is made at once need not be carried, but its last bits depend on the threads.
        soft = {} if self._soft_labels is None else {"soft_labels": self._soft_labels}
        return {**super().state_dict(), **soft}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self._soft_labels is not None:
            self._soft_labels.copy_(state["soft_labels"])


def draw_crops(
    images: Tensor, count: int, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """`count` random crops of each image, brought to `size`: uint8 (n, count, C, h, w).

    `images` is uint8 (n, C, H, W). The area of a crop is uniform between 8 % and all of the
    image's, its aspect ratio the image's, its place uniform; bilinear, antialiased, rounded.
    """
    height, width = images.shape[2:]
    draws = torch.rand(len(images), count, 3, generator=generator, dtype=torch.float64)
    scale = (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[..., 0]).sqrt()
    tall = (scale * height).round().clamp(min=1).long()
    wide = (scale * width).round().clamp(min=1).long()
    top = (draws[..., 1] * (height - tall + 1)).long()
    left = (draws[..., 2] * (width - wide + 1)).long()
    boxes = torch.stack([top, top + tall, left, left + wide], dim=2).tolist()
    crops = images.new_empty(len(images), count, images.shape[1], *size)
    for n, image in enumerate(images):
        for k, (y0, y1, x0, x1) in enumerate(boxes[n]):
            crops[n, k] = _resized(image[:, y0:y1, x0:x1], size)
    return crops


def _resized(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 crop (C, h, w) at `size`, uint8."""
    resized = F.interpolate(
        crop[None].to(torch.float32), size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)
