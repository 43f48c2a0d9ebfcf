"""Coresets: real images as they are, chosen at random, by herding, or by k-center.

The baselines of dataset distillation: honest rows of comparison, and honest halves of a hybrid.
Nothing is optimised, so `steps` is 0 and the diversity step moves only the partner of such an
expert. Herding and k-center choose, class by class, in the features (before the classifier) of a
network of the pool, at a stated age.

herding    greedy: the image that brings the mean feature of those chosen closest to the mean
           feature of the class (Welling, ICML 2009; iCaRL's form, Rebuffi et al., CVPR 2017,
           without scaling the features to length 1)
kcenter    greedy: first the image nearest to the mean feature, then always the one farthest from
           all that were chosen (Gonzalez, 1985; Sener and Savarese, ICLR 2018). Its covering radius
           is at most twice the smallest possible one, whatever the first image.
"""

from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from moedd.experts.base import Expert, ExpertConfig, Space, register_expert
from moedd.pool import StoredNetwork
from moedd.train import test_batch
from moedd_loaders.errors import NonFiniteError, UsageError


class CoresetConfig(ExpertConfig):
    """Settings of a random selection: none but the number of images."""

    steps: int = Field(0, ge=0, le=0, description="0: made at once, nothing to optimise")

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """The same for all data."""
        return cls(ipc=ipc)


class FeatureCoresetConfig(CoresetConfig):
    """Settings of a selection in feature space."""

    age: int | None = Field(
        None, ge=1, description="training steps of the pool network of the features; unset: most"
    )


class Coreset(Expert):
    """Whole real images of the part; subclasses say which."""

    space: ClassVar[Space] = "unit"

    def initial_images(self) -> Tensor:
        """`ipc` different images of each class, in the order they were chosen."""
        self.require_images(self.config.ipc, f"{self.config.ipc} different images")
        chosen = [rows[self.choose(c)] for c, rows in enumerate(self.part.rows)]
        return self.part.unit(torch.cat(chosen))

    def choose(self, c: int) -> Tensor:
        """Places (ipc,) int64, on the host, among the part's images of class c."""
        raise NotImplementedError


@register_expert("random")
class RandomCoreset(Coreset):
    """A random draw without replacement."""

    config_class: ClassVar[type[ExpertConfig]] = CoresetConfig
    source: ClassVar[str] = "baseline"

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        return False

    def choose(self, c: int) -> Tensor:
        generator = self.streams.generator("class", c)
        return torch.randperm(len(self.part.rows[c]), generator=generator)[: self.config.ipc]


class FeatureCoreset(Coreset):
    """A selection in the features of one stored network."""

    config_class: ClassVar[type[ExpertConfig]] = FeatureCoresetConfig
    config: FeatureCoresetConfig

    def initial_images(self) -> Tensor:
        self.network = self._network()
        return super().initial_images()

    def choose(self, c: int) -> Tensor:
        return self.select(self.features(self.part.rows[c]), self.config.ipc)

    def select(self, features: Tensor, k: int) -> Tensor:
        """Places (k,) of the chosen rows of `features` (n, d), float64."""
        raise NotImplementedError

    @torch.no_grad()
    def features(self, rows: Tensor) -> Tensor:
        """Features (n, d) of plain images of the part, float64 on the host.

        Raises NonFiniteError: they are not numbers, and no choice by them would mean anything.
        """
        batches = []
        for batch in rows.split(test_batch(self.pool.network, self.profile)):
            images = self.part.normalized(batch)
            features, _ = self.arithmetic.features(self.network.parameters, images)
            batches.append(features.cpu().double())
        found = torch.cat(batches)
        if not bool(found.isfinite().all()):
            raise NonFiniteError(
                f"the features that expert {self.part.index} ({self.method}) chooses by are NaN or "
                f"infinite under the pool's network of {self.network.steps} training steps: choose "
                f"another one (--set {self.method}.age=...) or train the pool anew with a smaller "
                "step size (--set pool.lr=...)"
            )
        return found

    @property
    def measured(self) -> dict[str, float]:
        return {
            "feature_network_steps": float(self.network.steps),
            "feature_network_accuracy": self.network.accuracy_percent / 100,
        }

    def _network(self) -> StoredNetwork:
        """The first stored network of the asked age."""
        ages = sorted({stored.steps for stored in self.pool.stored})
        age = ages[-1] if self.config.age is None else self.config.age
        if age not in ages:
            raise UsageError(
                f"{self.method}.age is {age} and the pool keeps its networks at the ages of "
                f"{', '.join(map(str, ages))} training steps: choose one of them"
            )
        return next(stored for stored in self.pool.stored if stored.steps == age)


def herding(features: Tensor, k: int) -> Tensor:
    """Greedy choice of k rows of `features` (n, d), n >= k, whose mean follows the mean of all.

    Returns their places (k,) in the order of choice; of equal rows the first is taken.
    """
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool)
    chosen: list[int] = []
    for j in range(1, k + 1):
        # The distance of the mean after this choice, times j.
        distance = (j * mean - total - features).square().sum(1)
        chosen.append(int(torch.where(free, distance, torch.inf).argmin()))
        free[chosen[-1]] = False
        total += features[chosen[-1]]
    return torch.tensor(chosen)


def kcenter(features: Tensor, k: int) -> Tensor:
    """Farthest-first choice of k rows of `features` (n, d), n >= k, from the most central one.

    Returns their places (k,) in the order of choice; of equally far rows the first is taken.
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
    for _ in range(1, k):
        last = chosen[-1]
        nearest = torch.minimum(nearest, (features - features[last]).square().sum(1))
        nearest[last] = -1  # never again, not even where all that is left are copies
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


@register_expert("herding")
class Herding(FeatureCoreset):
    """Images whose mean feature follows that of their class."""

    source: ClassVar[str] = "Welling, ICML 2009"

    def select(self, features: Tensor, k: int) -> Tensor:
        return herding(features, k)


@register_expert("kcenter")
class KCenter(FeatureCoreset):
    """Images that cover the features of their class."""

    source: ClassVar[str] = "Gonzalez, 1985; Sener & Savarese, ICLR 2018"

    def select(self, features: Tensor, k: int) -> Tensor:
        return kcenter(features, k)
