"""The diversity loss: how dependent the features of two experts' images are, to be minimised.

The loss is the squared distance correlation of phi(S_i) and phi(S_j) (Eq. 2 and 3 of the mixture
paper, the form of Zhen et al., ECCV 2022) with respect to the images; phi, the pool and the
schedule belong to the engine, which passes features in. What the paper leaves open is a setting of
`DiversityConfig`. Rows are paired class by class, p-th image of class c with p-th image of class c,
in an order drawn anew at every call.

At a few images per class the biased value is nearly all small-sample floor, so every record
carries the unbiased value and the floor beside it, whichever is minimised. Subtracting each
expert's class means is not offered: at a few images per class the residuals of a class are
negatively correlated in both experts, which looks like dependence (0.295 at 5 independent real
images per class, diversity notes, section 5).
"""

import math
from copy import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from moedd import distcorr
from moedd.pairing import all_pairs, draw_pair, pair_rows
from moedd_loaders.errors import UsageError

__all__ = [
    "DiversityConfig",
    "DiversityLoss",
    "DiversityRecord",
    "Statistics",
    "draw_pairs",
    "paired_features",
    "weight_for_ratio",
]


class DiversityConfig(BaseModel):
    """Settings of the diversity step; the defaults are the source's form of the loss.

    Attributes:
        every: iterations between two diversity steps; 0 switches them off.
        ratio: length of one diversity step over one image step of the expert's own loss, see
            `weight_for_ratio`; None uses `weight` as it stands.
        weight: factor on the loss. The paper's sum over ordered pairs counts every pair twice, its
            weight 1 is weight 2 here.
        estimator: which statistic is minimised. "biased" is the paper's.
        within: "pooled" takes all classes together, as the paper does; "block" removes what the
            classes alone explain (`distcorr.without_class_blocks`), leaving dependence within
            classes; "partial" removes "of the same class or not" only (`distcorr.without_classes`,
            unbiased only); "per_class" is the mean of the values of each class by itself, over the
            classes with enough pairs (2, unbiased 4), and very noisy at a few images per class.
        layer: features of phi: the flattened "embedding" before the classifier, or the "logits".
        reshuffle: draw the order within each class anew at every call; False pairs the rows as
            they are stored.
        max_rows: most pairs in one call; more are sub-sampled, stratified by class.
        clamp: minimise max(0, value) where the value can be negative; False minimises its square.
            The signed value is never minimised: it runs to -1, which is structure, not
            independence.
        normalize: scale every feature row to length 1 first (as Zhen et al. do).
        pairs: "random_pair" draws one unordered pair of experts per call, "all" takes every pair.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=10, ge=0)
    ratio: float | None = Field(default=0.05, ge=0, allow_inf_nan=False)
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    estimator: Literal["biased", "unbiased"] = "biased"
    within: Literal["pooled", "block", "partial", "per_class"] = "pooled"
    layer: Literal["embedding", "logits"] = "embedding"
    reshuffle: bool = True
    max_rows: int = Field(default=512, ge=distcorr.MIN_ROWS_UNBIASED)
    clamp: bool = True
    normalize: bool = False
    pairs: Literal["random_pair", "all"] = "random_pair"

    @model_validator(mode="after")
    def _partial_is_unbiased(self) -> Self:
        if self.within == "partial" and self.estimator == "biased":
            raise ValueError(
                "within=partial is defined for the unbiased estimator and estimator is biased: "
                "set diversity.estimator=unbiased, or within=block"
            )
        return self

    @property
    def can_be_negative(self) -> bool:
        """Whether the minimised statistic can be."""
        return self.estimator == "unbiased" or self.within == "block"


@dataclass(frozen=True)
class DiversityRecord:
    """What one evaluation of the loss measured, detached.

    Attributes:
        biased: pooled biased dCor^2, in [0, 1].
        unbiased: pooled unbiased dCor^2, in [-1, 1]; None below 4 pairs, where it is undefined.
        floor: mean of `biased` over all re-pairings of the rows.
        n: pairs of rows.
        value: the minimised statistic before clamping and weighting.
    """

    biased: float
    unbiased: float | None
    floor: float
    n: int
    value: float


class DiversityLoss:
    """Loss between the features of two experts.

    Call with float features (n_i, d_i) and (n_j, d_j) (any trailing shape), int64 labels (n_i,) and
    (n_j,), and the CPU generator that draws the pairing. Features come from a frozen phi in eval
    mode on decoded, un-augmented images that are in the same space for both experts; either side
    may be detached.

    Returns the loss, a 0-d tensor with graph to every side that requires gradient (already times
    `config.weight`), and a `DiversityRecord`.

    Raises:
        UsageError: no common class; fewer pairs than the estimator needs; `within="block"` or
            "per_class" where no class has enough; labels that do not fit the features.
        NonFiniteError: features with NaN or infinite values.
    """

    def __init__(self, config: DiversityConfig | None = None) -> None:
        self.config = config or DiversityConfig()

    def __call__(
        self,
        features_i: Tensor,
        labels_i: Tensor,
        features_j: Tensor,
        labels_j: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, DiversityRecord]:
        config = self.config
        pair = Statistics(
            *paired_features(features_i, labels_i, features_j, labels_j, generator, config)
        )
        values = pair.values(config.within, config.estimator == "unbiased")
        penalties = values
        if config.can_be_negative:
            penalties = values.relu() if config.clamp else values.square()
        with torch.no_grad():
            record = DiversityRecord(
                biased=float(pair.correlation(unbiased=False)),
                unbiased=float(pair.correlation(unbiased=True)) if pair.has_unbiased else None,
                floor=float(pair.floor()),
                n=pair.n,
                value=float(values.mean()),
            )
        dtype = distcorr.result_dtype(features_i, features_j)
        return config.weight * penalties.mean().to(dtype), record


def draw_pairs(
    config: DiversityConfig, experts: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """The pairs of experts of one diversity step, by `config.pairs`."""
    return all_pairs(experts) if config.pairs == "all" else [draw_pair(experts, generator)]


def weight_for_ratio(
    diversity_norm: float,
    base_norm: float,
    *,
    ratio: float = 0.05,
    lr: float = 1.0,
    limit: float = 1e6,
) -> float:
    """Factor on the diversity gradient that makes its step `ratio` times the base image step.

    Args:
        diversity_norm: L2 norm of the diversity gradient over the expert's stored pixels.
        base_norm: L2 norm of the base image step over the same pixels, in pixels (with plain SGD:
            lr times the gradient norm), since base gradients of different methods do not compare.
        ratio: wanted |diversity step| / |base step|.
        lr: the diversity step is -lr * factor * gradient.
        limit: largest factor. A vanishing gradient (equal images in both experts) is rounding, and
            must not be blown up into a step of full length.

    Returns:
        The factor, >= 0. Exactly 0 (no diversity step) where a norm, `ratio` or `lr` is 0 or a
        norm is not finite: a broken gradient must not be scaled into the images.
    """
    if min(ratio, lr, limit, diversity_norm, base_norm) < 0:
        raise UsageError(
            f"weight_for_ratio was given a negative number among ratio {ratio}, lr {lr}, limit "
            f"{limit}, norms {diversity_norm} and {base_norm}: pass numbers from 0 on"
        )
    if not (math.isfinite(diversity_norm) and math.isfinite(base_norm)):
        return 0.0
    step = lr * diversity_norm
    if step == 0:
        return 0.0
    return min(ratio * base_norm / step, limit)


class Statistics:
    """All statistics of one pairing, on one pair of distance matrices."""

    def __init__(self, x: Tensor, y: Tensor, classes: Tensor) -> None:
        distcorr.check_pair(x, y)
        self.n = x.shape[0]
        self.classes = classes
        self.a, self.b = distcorr.distance_matrix(x), distcorr.distance_matrix(y)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def has_unbiased(self) -> bool:
        """Whether there are pairs enough for the unbiased estimator."""
        return self.n >= distcorr.MIN_ROWS_UNBIASED

    @property
    def has_blocks(self) -> bool:
        """Whether a class has two pairs."""
        return len(torch.unique(self.classes)) < self.n

    def values(self, within: str, unbiased: bool) -> Tensor:
        """The statistic that a setting of `within` names: (1,), or (classes,) for "per_class"."""
        if within == "per_class":
            return self.per_class(unbiased)
        if within == "block":
            return self.block(unbiased)[None]
        return (self.partial() if within == "partial" else self.correlation(unbiased))[None]

    def correlation(self, unbiased: bool) -> Tensor:
        """dCor^2 of all pairs."""
        return distcorr.cosine(*self._centred(unbiased), self.a, self.b)

    def block(self, unbiased: bool) -> Tensor:
        """dCor^2 of what is left when the class blocks are removed."""
        if not self.has_blocks:
            raise UsageError(
                f"diversity.within=block was given {self.n} pair(s), one per class, and compares "
                "images within classes: use at least two images per class, or within=pooled"
            )
        return distcorr.cosine(*self._within(unbiased), self.a, self.b)

    def partial(self) -> Tensor:
        """Unbiased dCor^2 given the one-hot labels."""
        a, b = (distcorr.without_classes(side, self.classes) for side in self._centred(True))
        return distcorr.cosine(a, b, self.a, self.b)

    def per_class(self, unbiased: bool) -> Tensor:
        """dCor^2 of the pairs of each class that has enough of them, (classes,)."""
        least = distcorr.MIN_ROWS_UNBIASED if unbiased else distcorr.MIN_ROWS
        rows = [torch.nonzero(self.classes == c).flatten() for c in self.classes.unique()]
        enough = [own for own in rows if len(own) >= least]
        if not enough:
            raise UsageError(
                f"diversity.within=per_class was given {self.n} pairs of {len(rows)} classes and "
                f"needs {least} pairs of a class: use more images per class, raise "
                "diversity.max_rows, or set within=pooled"
            )
        found = []
        for own in enough:
            a, b = self.a[own][:, own], self.b[own][:, own]
            sides = distcorr.centred(a, unbiased), distcorr.centred(b, unbiased)
            found.append(distcorr.cosine(*sides, a, b))
        return torch.stack(found)

    def split(self) -> tuple[Tensor, Tensor]:
        """(between, within): what the class blocks and what the pairs inside of classes contribute
        to the unbiased dCor^2, their sum."""
        a, b = self._centred(unbiased=True)
        rest_a, rest_b = self._within(unbiased=True)
        within = distcorr.share(rest_a, rest_b, a, b, self.a, self.b)
        between = distcorr.share(a - rest_a, b - rest_b, a, b, self.a, self.b)
        return between, within

    def in_order(self, order: Tensor) -> "Statistics":
        """The same rows with those of the second side in another order (n,)."""
        columns = order[:, None], order
        other = copy(self)
        other.b = self.b[columns]
        other._known = {kind: (a, b[columns]) for kind, (a, b) in self._known.items()}
        return other

    def cka(self) -> Tensor:
        """Plain linear CKA: the biased statistic of squared distances."""
        if "squares" not in self._known:
            sides = self.a.square(), self.b.square()
            a, b = (distcorr.centred(side, unbiased=False) for side in sides)
            self._known["squares"] = a, b
        return distcorr.cosine(*self._known["squares"], self.a.square(), self.b.square())

    def floor(self) -> Tensor:
        """Mean of the biased dCor^2 over all orders."""
        return distcorr.floor_of(self.a, self.b)

    def _centred(self, unbiased: bool) -> tuple[Tensor, Tensor]:
        kind = "unbiased" if unbiased else "biased"
        if kind not in self._known:
            distcorr.check_rows(self.n, unbiased)
            sides = distcorr.centred(self.a, unbiased), distcorr.centred(self.b, unbiased)
            self._known[kind] = sides
        return self._known[kind]

    def _within(self, unbiased: bool) -> tuple[Tensor, Tensor]:
        a, b = self._centred(unbiased)
        return (
            distcorr.without_class_blocks(a, self.classes),
            distcorr.without_class_blocks(b, self.classes),
        )


def paired_features(
    features_i: Tensor,
    labels_i: Tensor,
    features_j: Tensor,
    labels_j: Tensor,
    generator: torch.Generator,
    config: DiversityConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the drawn pairs, (n, d) each, and their classes (n,) on the features' device."""
    for features, labels in ((features_i, labels_i), (features_j, labels_j)):
        if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(features):
            raise UsageError(
                f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} were given with "
                f"{len(features)} feature row(s): pass one integer class per row"
            )
    rows_i, rows_j = pair_rows(
        labels_i, labels_j, generator, reshuffle=config.reshuffle, max_rows=config.max_rows
    )
    classes = labels_i[rows_i.to(labels_i.device)].to(features_i.device)
    x = features_i[rows_i.to(features_i.device)]
    y = features_j[rows_j.to(features_j.device)]
    if config.normalize:
        x, y = distcorr.unit_rows(x), distcorr.unit_rows(y)
    return x, y, classes
