"""The diversity report: how dependent the experts of a finished set are, and compared with what.

Squared distance correlation between the features of two experts' images, rows paired within
classes. The biased value means nothing by itself: at a few images per class most of it is
small-sample floor. So the unbiased value, the floor, and a baseline are reported with it: the same
features with the rows of one side in a random order over all classes, many times, mean and spread.

Two experts hold the same classes, and that alone makes their rows dependent: averaged over pairings
within classes, nothing else is left. Whether the k-th images of a class resemble each other, as
where two experts started from the same ones, shows in the order they are stored in only. For that
order the unbiased value is split into what the classes explain ("between", its mean over all
pairings within classes) and what the order adds ("within").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, stdev

import torch
from torch import Tensor

from moedd.diversity import DiversityConfig, Statistics, paired_features
from moedd.streams import Streams
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import Diversity, PairDiversity, Shuffled

Values = dict[str, float | None]

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
        streams: pair (i, j) draws from those of scope (i, j), "rows", "shuffle" and "stored": it
            does not depend on which other experts there are.
        config: `max_rows`, `normalize` and `layer` (for the record) count; every statistic is over
            all classes, whatever the diversity step minimised.
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
    config = config or DiversityConfig()
    pairs = []
    for i, j in combinations(range(len(features)), 2):
        sides = (features[i], labels[i], features[j], labels[j])
        pair = _measured((i, j), sides, streams.scope(i, j), config, draws, orders)
        if pair is None:
            return None
        pairs.append(pair)
    return _report(pairs, config.layer) if pairs else None


@dataclass
class _Pair:
    """What was measured of one pair of experts: values per pairing, baselines per order."""

    experts: tuple[int, int]
    rows: int
    split: Values
    values: list[Values] = field(default_factory=list)
    baseline: list[Values] = field(default_factory=list)


def _measured(
    experts: tuple[int, int],
    sides: tuple[Tensor, Tensor, Tensor, Tensor],
    streams: Streams,
    config: DiversityConfig,
    draws: int,
    orders: int,
) -> _Pair | None:
    """One pair of experts; None where they have too few rows in common."""
    plain = config.model_copy(update={"reshuffle": False})
    as_stored = Statistics(*paired_features(*sides, streams.generator("stored"), plain))
    if not as_stored.has_unbiased:
        return None
    between, within = map(float, as_stored.split())
    found = _Pair(experts, as_stored.n, {"between": None, "within": None})
    if as_stored.has_blocks:  # with one row per class, both are the same thing
        found.split["between"] = between
        # Only where both have as many rows of a class does the k-th meet the k-th.
        if torch.equal(sides[1].sort().values.cpu(), sides[3].sort().values.cpu()):
            found.split["within"] = within
    random = config.model_copy(update={"reshuffle": True})
    rows, shuffle = streams.generator("rows"), streams.generator("shuffle")
    for _ in range(draws):
        pair = Statistics(*paired_features(*sides, rows, random))
        found.values.append({**_plain(pair), "floor": float(pair.floor())})
        for _ in range(orders):
            order = torch.randperm(pair.n, generator=shuffle).to(pair.a.device)
            found.baseline.append(_plain(pair.in_order(order)))
    return found


def _plain(pair: Statistics) -> Values:
    return {
        "biased": float(pair.correlation(unbiased=False)),
        "unbiased": float(pair.correlation(unbiased=True)),
        "cka": float(pair.cka()),
    }


def _report(pairs: Sequence[_Pair], layer: str) -> Diversity:
    means = [_means(pair.values) | pair.split for pair in pairs]
    # The k-th orders of all pairs make one value of the mean over pairs, whose spread counts.
    together = [_means(rows) for rows in zip(*(pair.baseline for pair in pairs), strict=True)]
    listed = [
        PairDiversity.model_validate(
            {
                **mean,
                "experts": pair.experts,
                "shuffled": _shuffled(pair.baseline),
                "rows": pair.rows,
            }
        )
        for pair, mean in zip(pairs, means, strict=True)
    ]
    return Diversity.model_validate(
        {
            **_means(means),
            "shuffled": _shuffled(together),
            "pairs": listed if len(listed) > 1 else [],
            "rows": min(pair.rows for pair in pairs),
            "layer": layer,
        }
    )


def _means(rows: Sequence[Values]) -> Values:
    """Means over rows by name; None where a row has none."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    known = {key: [v for v in values if v is not None] for key, values in columns.items()}
    return {key: fmean(v) if len(v) == len(rows) else None for key, v in known.items()}


def _shuffled(baseline: Sequence[Values]) -> Shuffled:
    columns = {key: [v for row in baseline if (v := row[key]) is not None] for key in baseline[0]}
    spread = {f"{key}_std": stdev(values) for key, values in columns.items()}
    return Shuffled.model_validate({**_means(baseline), **spread, "orders": len(baseline)})
