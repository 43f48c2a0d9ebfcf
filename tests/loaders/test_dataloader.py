"""DataLoader truths: any worker count, persistent or not, forked or spawned: the same draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from images_in_memory import memory
from torch import Tensor
from torch.utils.data import DataLoader

from moedd_loaders.dataset import DistilledDataset

N, CLASSES = 22, 3
Epoch = tuple[Tensor, Tensor]


def dataset(**given: Any) -> DistilledDataset:
    return memory(N, **{"fuse": "mixup", "seed": 5, **given})


def epochs(loader: DataLoader[Any], count: int) -> Iterator[Epoch]:
    for _ in range(count):
        images, labels = zip(*loader, strict=True)
        assert len(images) == len(loader)
        yield torch.cat(images), torch.cat(labels)


@pytest.fixture(scope="module")
def reference() -> list[Epoch]:
    """Three epochs in order without workers."""
    return list(epochs(DataLoader(dataset(), batch_size=5), 3))


def same(a: list[Epoch], b: list[Epoch]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def test_without_workers_every_epoch_differs(reference: list[Epoch]) -> None:
    assert reference[0][0].shape == (N, 1, 2, 3)
    assert reference[0][1].shape == (N, CLASSES)
    assert reference[0][1].dtype == torch.float32
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not (reference[a][0] == reference[b][0]).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize("batch_size", [None, 1, 7, N + 1])
def test_batch_size_does_not_matter(reference: list[Epoch], batch_size: int | None) -> None:
    if batch_size is None:  # no automatic batching: one item at a time
        images, labels = zip(*DataLoader(dataset(), batch_size=None), strict=True)
        got = [(torch.stack(images), torch.stack(labels))]
    else:
        got = list(epochs(DataLoader(dataset(), batch_size=batch_size), 1))
    assert same(got, reference[:1])


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_forked_workers_draw_alike(reference: list[Epoch], workers: int, persistent: bool) -> None:
    loader = DataLoader(
        dataset(),
        batch_size=5,
        num_workers=workers,
        persistent_workers=persistent,
        multiprocessing_context="fork",
    )
    assert same(list(epochs(loader, 3)), reference)


def test_spawned_workers_draw_alike(reference: list[Epoch]) -> None:
    """Two that live for one epoch, then two that persist: they count in the same place."""
    ds, found = dataset(), []
    for persistent, count in ((False, 1), (True, 2)):
        loader = DataLoader(
            ds,
            batch_size=5,
            num_workers=2,
            persistent_workers=persistent,
            multiprocessing_context="spawn",
        )
        found += list(epochs(loader, count))
    assert same(found, reference)


def test_the_parents_own_use_and_the_workers_count_together(reference: list[Epoch]) -> None:
    ds = dataset()
    loader = DataLoader(ds, batch_size=5, num_workers=2, multiprocessing_context="fork")
    assert same(list(epochs(loader, 1)), reference[:1])
    assert same(list(epochs(DataLoader(ds, batch_size=5), 1)), reference[1:2])
    ds.set_epoch(0)
    assert same(list(epochs(loader, 1)), reference[:1])


def test_others_seeding_changes_only_the_order() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(list(epochs(DataLoader(dataset(), batch_size=4, shuffle=True), 2)))
    for (a, _), (b, _) in zip(*found, strict=True):
        assert not torch.equal(a, b)
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_integer_labels_collate_to_int64() -> None:
    images, labels = next(iter(DataLoader(dataset(fuse=None), batch_size=4)))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 0, 1, 1]
    assert images.dtype == torch.float32
