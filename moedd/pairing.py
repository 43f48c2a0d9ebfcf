"""Who is compared with whom: pairs of experts, and within a pair the rows of each class.

Distance correlation needs row p of one expert beside row p of the other, and independently made
images have no natural partners. Rows are paired within classes, in an order drawn anew at every
call, so that nothing depends on the order they are stored in.
"""

from itertools import combinations

import torch
from torch import Tensor

from moedd_loaders.errors import UsageError


def all_pairs(experts: int) -> list[tuple[int, int]]:
    """Every unordered pair of experts i < j. Raises UsageError: fewer than two experts."""
    if experts < 2:
        raise UsageError(
            f"a pair was asked of {experts} expert(s), but diversity needs two: "
            "use at least two experts, or switch it off (every=0)"
        )
    return list(combinations(range(experts), 2))


def draw_pair(experts: int, generator: torch.Generator) -> tuple[int, int]:
    """One unordered pair of experts i < j, uniform over all of them."""
    pairs = all_pairs(experts)
    return pairs[int(torch.randint(len(pairs), (), generator=generator))]


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


def _preview(labels: Tensor) -> str:
    known = torch.unique(labels).tolist()
    return str(known[:5])[:-1] + (", ...]" if len(known) > 5 else "]")
