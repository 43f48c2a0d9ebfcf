"""Items of one batch that remember the batch they were cut from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map

__all__ = ["Item", "Items"]


class Item(tuple[Any, ...]):
    """`(image, label)` or `(image, label, expert)`: a plain tuple for everybody but collate."""

    __slots__ = ()


class Items(list[tuple[Any, ...]]):
    """What `DistilledDataset.__getitems__` returns.

    `default_collate` would stack the images again, one by one; as long as the list is what it was,
    it gets the tensors that the items are views of. Whoever collates in another way sees a list of
    tuples.
    """

    def __init__(self, items: Iterable[tuple[Any, ...]], batch: tuple[Tensor, ...]) -> None:
        super().__init__(map(Item, items))
        self._batch, self._made = batch, tuple(self)

    def stacked(self) -> list[Tensor] | None:
        """The batch, or None if an item was replaced, moved or taken away."""
        same = len(self) == len(self._made) and all(map(operator.is_, self, self._made))
        return list(self._batch) if same else None


def _collate_items(
    items: list[tuple[Any, ...]], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None
) -> list[Any]:
    stacked = items.stacked() if isinstance(items, Items) else None
    if stacked is not None:
        return stacked
    return [collate(part, collate_fn_map=collate_fn_map) for part in zip(*items, strict=True)]


default_collate_fn_map[Item] = _collate_items
