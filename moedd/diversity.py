"""The diversity step: push the features of two experts' images apart, and report how far they are.

The loss is the squared distance correlation of phi(S_i) and phi(S_j) (Eq. 2 and 3 of the mixture
paper, the form of Zhen et al., ECCV 2022) with respect to the images; phi, the pool and the
schedule belong to the engine, which passes features in. What the paper leaves open is a setting of
`DiversityConfig`. Rows are paired class by class, p-th image of class c with p-th image of class c,
in an order drawn anew at every call.

At a few images per class the biased value is nearly all small-sample floor, so every record
carries the unbiased value and the floor beside it, whichever is minimised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from moedd import distcorr
from moedd_loaders.errors import UsageError

__all__ = [
    "DiversityConfig",
    "DiversityLoss",
    "DiversityRecord",
    "diversity_report",
    "draw_pair",
    "draw_pairs",
    "pair_rows",
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
        within: "pooled" takes all classes together; "block" removes what the classes alone explain
            (see `distcorr.without_class_blocks`), leaving dependence within classes.
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
    within: Literal["pooled", "block"] = "pooled"
    layer: Literal["embedding", "logits"] = "embedding"
    reshuffle: bool = True
    max_rows: int = Field(default=512, ge=distcorr.MIN_ROWS_UNBIASED)
    clamp: bool = True
    normalize: bool = False
    pairs: Literal["random_pair", "all"] = "random_pair"


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
        UsageError: no common class; fewer pairs than the estimator needs; `within="block"` where no
            class has two pairs; labels that do not fit the features.
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
        x, y, classes = _paired(features_i, labels_i, features_j, labels_j, generator, config)
        pair = _Statistics(x, y, classes)
        unbiased, block = config.estimator == "unbiased", config.within == "block"
        value = pair.block(unbiased) if block else pair.correlation(unbiased)
        penalty = value
        if block or unbiased:  # can be negative
            penalty = value.relu() if config.clamp else value.square()
        with torch.no_grad():
            record = DiversityRecord(
                biased=float(pair.correlation(unbiased=False)),
                unbiased=float(pair.correlation(unbiased=True)) if pair.has_unbiased else None,
                floor=float(pair.floor()),
                n=pair.n,
                value=float(value.detach()),
            )
        return config.weight * penalty.to(distcorr.result_dtype(x, y)), record


def diversity_report(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    generator: torch.Generator,
    *,
    max_rows: int = 512,
    draws: int = 8,
) -> dict[str, float] | None:
    """How dependent finished experts are: statistics averaged over all unordered pairs of experts.

    Args:
        features: per expert (n_e, d_e) float features of phi on its decoded images.
        labels: per expert (n_e,) int64.
        generator: CPU generator of the pairings.
        max_rows: most rows per pair (stratified sub-sample).
        draws: within-class pairings averaged per pair of experts; one alone moves the unbiased
            value by about 0.03 at 50 rows.

    Returns:
        `biased`, `unbiased`, `floor`, `cka` (plain linear CKA); the baselines `shuffled` and
        `shuffled_unbiased` (the same values with the rows of one side permuted over all classes);
        `within` (the unbiased value after removing the class blocks; 0 where no class has two
        pairs). None where that is undefined: fewer than two experts, or fewer than 4 common rows.

    Raises:
        UsageError: two experts without a common class; labels that do not fit. NonFiniteError.
    """
    if len(features) != len(labels):
        raise UsageError(
            f"diversity_report was given features of {len(features)} expert(s) and labels of "
            f"{len(labels)}: pass one of each per expert"
        )
    config = DiversityConfig(max_rows=max_rows)
    rows: list[dict[str, float]] = []
    for i, j in combinations(range(len(features)), 2):
        for _ in range(draws):
            x, y, classes = _paired(
                features[i].detach(), labels[i], features[j].detach(), labels[j], generator, config
            )
            if len(x) < distcorr.MIN_ROWS_UNBIASED:
                return None
            order = torch.randperm(len(y), generator=generator).to(y.device)
            pair, shuffled = _Statistics(x, y, classes), _Statistics(x, y[order], classes)
            rows.append(
                {
                    "biased": float(pair.correlation(unbiased=False)),
                    "unbiased": float(pair.correlation(unbiased=True)),
                    "floor": float(pair.floor()),
                    "cka": float(distcorr.linear_cka(x, y)),
                    "shuffled": float(shuffled.correlation(unbiased=False)),
                    "shuffled_unbiased": float(shuffled.correlation(unbiased=True)),
                    "within": float(pair.block(unbiased=True)) if pair.has_blocks else 0.0,
                }
            )
    if not rows:
        return None
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in rows[0]}


def draw_pair(experts: int, generator: torch.Generator) -> tuple[int, int]:
    """One unordered pair of experts i < j, uniform over all of them."""
    pairs = _all_pairs(experts)
    return pairs[int(torch.randint(len(pairs), (), generator=generator))]


def draw_pairs(
    config: DiversityConfig, experts: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """The pairs of experts of one diversity step, by `config.pairs`."""
    return _all_pairs(experts) if config.pairs == "all" else [draw_pair(experts, generator)]


def pair_rows(
    labels_i: Tensor,
    labels_j: Tensor,
    generator: torch.Generator,
    *,
    reshuffle: bool = True,
    max_rows: int | None = 512,
) -> tuple[Tensor, Tensor]:
    """Rows of two experts paired within classes.

    Of class c, min(n_ic, n_jc) rows of each side, drawn without replacement; classes missing on
    one side are skipped. Above `max_rows` pairs the counts shrink in proportion, and the rounding
    is drawn too, so that every class keeps its share on average.

    Args:
        labels_i, labels_j: (n_i,), (n_j,) integer class labels, any order.
        generator: CPU generator; every call draws anew.
        reshuffle: random order within each class. False keeps storage order on both sides (with
            equal counts: p-th row of a class with p-th row, also when sub-sampled).
        max_rows: most pairs, None for all.

    Returns:
        (rows_i, rows_j): int64 (n,) on the CPU, ascending by class, labels_i[rows_i] ==
        labels_j[rows_j].

    Raises:
        UsageError: no common class.
    """
    labels_i, labels_j = labels_i.detach().cpu(), labels_j.detach().cpu()
    classes, inverse = torch.unique(torch.cat([labels_i, labels_j]), return_inverse=True)
    class_i, class_j = inverse[: len(labels_i)], inverse[len(labels_i) :]
    count_i = torch.bincount(class_i, minlength=len(classes))
    count_j = torch.bincount(class_j, minlength=len(classes))
    take = torch.minimum(count_i, count_j)
    total = int(take.sum())
    if total == 0:
        raise UsageError(
            f"the experts have no class in common (labels {_preview(labels_i)} and "
            f"{_preview(labels_j)}): pair experts that hold images of the same classes"
        )
    if max_rows is not None and total > max_rows:
        # Systematic sampling in integers: sums to max_rows exactly, no class above its count.
        offset = torch.randint(total, (), generator=generator)
        ends = (take.cumsum(0) * max_rows + offset) // total
        take = ends.diff(prepend=offset.new_zeros(1))
    shape = (len(classes), int(max(count_i.max(), count_j.max())))
    keys_i = torch.rand(shape, generator=generator, dtype=torch.float64)
    # In storage order both sides share the keys, so that equal classes lose the same positions.
    keys_j = torch.rand(shape, generator=generator, dtype=torch.float64) if reshuffle else keys_i
    return (
        _choose(class_i, count_i, take, keys_i, reshuffle),
        _choose(class_j, count_j, take, keys_j, reshuffle),
    )


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


class _Statistics:
    """All statistics of one pairing, on one pair of distance matrices."""

    def __init__(self, x: Tensor, y: Tensor, classes: Tensor) -> None:
        distcorr.check_pair(x, y)
        self.n = x.shape[0]
        self.classes = classes
        self.a, self.b = distcorr.distance_matrix(x), distcorr.distance_matrix(y)

    @property
    def has_unbiased(self) -> bool:
        return self.n >= distcorr.MIN_ROWS_UNBIASED

    @property
    def has_blocks(self) -> bool:
        return len(torch.unique(self.classes)) < self.n

    def correlation(self, unbiased: bool) -> Tensor:
        return distcorr.cosine(*self._centred(unbiased), self.a, self.b)

    def block(self, unbiased: bool) -> Tensor:
        if not self.has_blocks:
            raise UsageError(
                f'within="block" was given {self.n} pair(s), one per class, and compares images '
                'within classes: use at least two images per class, or within="pooled"'
            )
        a, b = (
            distcorr.without_class_blocks(side, self.classes) for side in self._centred(unbiased)
        )
        return distcorr.cosine(a, b, self.a, self.b)

    def floor(self) -> Tensor:
        return distcorr.floor_of(self.a, self.b)

    def _centred(self, unbiased: bool) -> tuple[Tensor, Tensor]:
        if unbiased:
            distcorr.check_rows(self.n, unbiased)
        return distcorr.centred(self.a, unbiased), distcorr.centred(self.b, unbiased)


def _paired(
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


def _choose(classes: Tensor, counts: Tensor, take: Tensor, keys: Tensor, by_key: bool) -> Tensor:
    """take[c] rows of every class c, those of the smallest keys[c, position in the class].

    Returned ascending by class, inside a class by key or by position.
    """
    stored = torch.argsort(classes, stable=True)
    starts = counts.cumsum(0) - counts
    sorted_classes = classes[stored]
    position = torch.arange(len(classes)) - starts[sorted_classes]
    key = keys[sorted_classes, position]
    # sort by key, then stably by class: rank of each row inside its class
    by_rank = torch.argsort(key)
    by_rank = by_rank[torch.argsort(sorted_classes[by_rank], stable=True)]
    chosen = by_rank[position < take[sorted_classes]]
    return stored[chosen if by_key else chosen.sort().values]


def _all_pairs(experts: int) -> list[tuple[int, int]]:
    if experts < 2:
        raise UsageError(
            f"a pair was asked of {experts} expert(s), but diversity needs two: "
            "use at least two experts, or switch it off (every=0)"
        )
    return list(combinations(range(experts), 2))


def _preview(labels: Tensor) -> str:
    known = torch.unique(labels).tolist()
    return str(known[:5])[:-1] + (", ...]" if len(known) > 5 else "]")
