"""Items collate to the batch that they were cut from, and only to that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from images_in_memory import memory
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from moedd_loaders.items import Items


def test_collating_gives_the_batch_itself() -> None:
    ds = memory(fuse="mixup", return_expert=True)
    items = ds.__getitems__([4, 1, 7])
    images, labels, experts = default_collate(items)
    by_hand = default_collate([tuple(item) for item in items])
    for a, b in zip((images, labels, experts), by_hand, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    assert images.data_ptr() == items[0][0].data_ptr()
    assert experts.tolist() == [0, 1, 1]
    assert isinstance(items, list)
    assert all(isinstance(item, tuple) for item in items)


@pytest.mark.parametrize("change", ["replace", "swap", "drop", "append"])
def test_a_list_that_was_changed_is_stacked_as_it_is(change: str) -> None:
    items: Any = memory().__getitems__([0, 1, 2])
    other = (torch.full((1, 2, 3), 9.0), 2)
    if change == "replace":
        items[1] = other
    elif change == "swap":
        items[0], items[2] = items[2], items[0]
    elif change == "drop":
        del items[0]
    else:
        items.append(other)
    assert isinstance(items, Items)
    images, labels = default_collate(items)
    assert torch.equal(images, torch.stack([image for image, _ in items]))
    assert labels.tolist() == [label for _, label in items]


class Brighter(Dataset[Any]):
    """Somebody's wrapper around a data set."""

    def __init__(self, ds: Any) -> None:
        self.ds = ds

    def __getitems__(self, indices: list[int]) -> Any:
        return [(image + 100, label) for image, label in self.ds.__getitems__(indices)]

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __len__(self) -> int:
        return len(self.ds)


def test_wrappers_are_respected() -> None:
    images, labels = next(iter(DataLoader(Brighter(memory()), batch_size=4)))
    assert images[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert labels.dtype == torch.int64
    images, _ = next(iter(DataLoader(Subset(memory(), [5, 3]), batch_size=2)))
    assert images[:, 0, 0, 0].tolist() == [5, 3]
    both = ConcatDataset([memory(), memory()])
    images, labels = next(iter(DataLoader(both, batch_size=24)))
    assert images[:, 0, 0, 0].tolist() == [*range(12), *range(12)]


def test_a_target_transform_is_collated_item_by_item() -> None:
    ds = memory(target_transform=lambda label: {"label": label})
    _, labels = next(iter(DataLoader(ds, batch_size=3)))
    assert labels["label"].tolist() == ds.targets[:3]
