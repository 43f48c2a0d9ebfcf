"""The diversity report: how dependent the experts of a finished set are, and compared with what.

Squared distance correlation between the features of two experts' images, rows paired within
classes. The biased value means nothing by itself: at a few images per class most of it is
small-sample floor. So the unbiased value, the floor, and a baseline are reported with it: the same
features with the rows of one side in a random order over all classes, many times, mean and spread.

Two experts hold the same classes, and that alone makes their rows dependent. The unbiased value is
therefore split into what the classes explain ("between") and what is left inside them ("within").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, stdev

import torch
from torch import Tensor

from moedd import distcorr
from moedd.diversity import DiversityConfig, Statistics, paired_features
from moedd.streams import Streams
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import Diversity, PairDiversity, Shuffled

DRAWS = 8
"""Pairings of rows within classes that are averaged per pair of experts: one alone moves the
unbiased value by about 0.03 at 50 rows."""
ORDERS = 8
"""Random orders over all classes per pairing: the baseline of a pair has DRAWS * ORDERS values."""


@torch.no_grad()
def diversity_report(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    streams: Streams,
    config: DiversityConfig | None = None,
    *,
    draws: int = DRAWS,
    orders: int = ORDERS,
) -> Diversity | None:
    """How dependent finished experts are: every pair of them, and the mean over all pairs.

    Args:
        features: per expert (n_e, d_e) float features of phi on its decoded images.
        labels: per expert (n_e,) int64.
        streams: pair (i, j) draws from those of scope (i, j), "rows" and "shuffle": it does not
            depend on which other experts there are.
        config: `max_rows`, `normalize` and `layer` (for the record) count; rows are always
            reshuffled, and every statistic is over all classes.
        draws, orders: pairings per pair of experts, and random orders of each (their product is at
            least 2).

    Returns:
        The report; None where it is undefined: fewer than two experts, or a pair with fewer than
        4 common rows. With two experts `pairs` stays empty.

    Raises:
        UsageError: two experts without a common class; labels that do not fit. NonFiniteError.
    """
    if len(features) != len(labels):
        raise UsageError(
            f"diversity_report was given features of {len(features)} expert(s) and labels of "
            f"{len(labels)}: pass one of each per expert"
        )
    config = (config or DiversityConfig()).model_copy(update={"reshuffle": True})
    pairs = []
    for i, j in combinations(range(len(features)), 2):
        pair = _Pair((i, j))
        own = streams.scope(i, j)
        rows, shuffle = own.generator("rows"), own.generator("shuffle")
        for _ in range(draws):
            x, y, classes = paired_features(
                features[i], labels[i], features[j], labels[j], rows, config
            )
            if len(x) < distcorr.MIN_ROWS_UNBIASED:
                return None
            pair.measure(x, y, classes, orders, shuffle)
        pairs.append(pair)
    return _report(pairs, config.layer) if pairs else None


@dataclass
class _Pair:
    """What was measured of one pair of experts: values per pairing, baselines per order."""

    experts: tuple[int, int]
    values: list[dict[str, float]] = field(default_factory=list)
    baseline: list[dict[str, float]] = field(default_factory=list)
    rows: int = 0

    def measure(
        self, x: Tensor, y: Tensor, classes: Tensor, orders: int, shuffle: torch.Generator
    ) -> None:
        """Add one pairing and its random orders."""
        pair = Statistics(x, y, classes)
        between, within = pair.split()
        more = {"floor": pair.floor(), "between": between, "within": within}
        self.rows = pair.n
        self.values.append({**_plain(pair), **{key: float(value) for key, value in more.items()}})
        for _ in range(orders):
            order = torch.randperm(pair.n, generator=shuffle).to(x.device)
            self.baseline.append(_plain(pair.in_order(order)))


def _plain(pair: Statistics) -> dict[str, float]:
    return {
        "biased": float(pair.correlation(unbiased=False)),
        "unbiased": float(pair.correlation(unbiased=True)),
        "cka": float(pair.cka()),
    }


def _report(pairs: Sequence[_Pair], layer: str) -> Diversity:
    means = [_means(pair.values) for pair in pairs]
    # The k-th orders of all pairs make one value of the mean over pairs, whose spread counts.
    together = [_means(rows) for rows in zip(*(pair.baseline for pair in pairs), strict=True)]
    listed = [
        PairDiversity(experts=pair.experts, shuffled=_shuffled(pair.baseline), **mean)
        for pair, mean in zip(pairs, means, strict=True)
    ]
    return Diversity(
        **_means(means),
        shuffled=_shuffled(together),
        pairs=listed if len(listed) > 1 else [],
        rows=min(pair.rows for pair in pairs),
        layer=layer,
    )


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


def _shuffled(baseline: Sequence[dict[str, float]]) -> Shuffled:
    spread = {f"{key}_std": stdev(row[key] for row in baseline) for key in baseline[0]}
    return Shuffled(**_means(baseline), **spread, orders=len(baseline))
