"""`ds.batches(...)`: the same draws as item by item, every anchor once, its own order per epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_rows, make_set, make_source
from images_in_memory import epoch, memory
from torch import Tensor

from moedd_loaders.dataset import load_distilled
from moedd_loaders.fuse import ExpertMix
from moedd_loaders.manifest import NoDecode


def test_batch_transform_sees_normalised_images_before_mixing() -> None:
    seen: list[Tensor] = []

    def square(images: Tensor) -> Tensor:
        seen.append(images)
        return images**2

    ds, other = memory(fuse="mixup", normalize=True), memory(fuse="mixup")
    (got, _), *_ = ds.batches(12, shuffle=False, batch_transform=square)
    assert len(seen[0]) == 24
    torch.testing.assert_close(seen[0][::2, 0, 0, 0], (torch.arange(12) - 0.5) / 0.25)
    plan = other.plan(np.arange(12), np.zeros(12, np.int64))
    rows = ((torch.arange(12) - 0.5) / 0.25) ** 2
    lam, partner = torch.from_numpy(plan.weight[:, 0]), torch.from_numpy(plan.partner[:, 0])
    torch.testing.assert_close(got[:, 0, 0, 0], lam * rows + (1 - lam) * rows[partner])


def test_batches_cover_every_anchor_once_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        loader = memory(13, seed=seed).batches(4)
        assert len(loader) == 4
        for _ in range(2):
            parts = list(loader)
            assert [len(images) for images, _ in parts] == [4, 4, 4, 1]
            order = torch.cat([images[:, 0, 0, 0] for images, _ in parts]).long().tolist()
            assert sorted(order) == list(range(13))
            orders.append(order)
    assert orders[:2] == orders[2:4]
    assert orders[0] != orders[1]
    assert orders[0] != orders[4]
    dropping = memory(13).batches(4, drop_last=True)
    assert len(list(dropping)) == len(dropping) == 3


def test_unequal_experts_still_have_every_anchor_once(tmp_path: Path) -> None:
    source = make_source()
    experts = [make_rows(source, [10] * 3), make_rows(source, [3] * 3, NoDecode(), seed=1)]
    make_set(tmp_path / "uneven", experts=experts)
    ds = load_distilled(tmp_path / "uneven", fuse=ExpertMix(3, alpha=0.0))
    images, labels = (torch.cat(part) for part in zip(*ds.batches(7, shuffle=False), strict=True))
    assert torch.equal(images, ds.images)
    assert torch.equal(labels.argmax(1), ds.labels)


def test_batches_go_on_with_resuming() -> None:
    straight, resumed = memory(fuse="mixup", seed=3), memory(fuse="mixup", seed=3)
    epochs = [[x.clone() for x, _ in straight.batches(5)] for _ in range(3)]
    resumed.set_epoch(2)
    for a, (b, _) in zip(epochs[2], resumed.batches(5), strict=True):
        assert torch.equal(a, b)


def test_batch_wide_lam() -> None:
    ds = memory(fuse=ExpertMix(3, lam="batch"))
    rows = ds.images[:, 0, 0, 0]
    for start, (images, _) in zip((0, 6), ds.batches(6, shuffle=False), strict=True):
        index = np.arange(start, start + 6)
        plan = ds.plan(index, np.zeros(6, np.int64))
        assert len(np.unique(plan.weight[:, 0])) == 1
        lam, partner = float(plan.weight[0, 0]), plan.partner[:, 0]
        want = lam * rows[index] + (1 - lam) * rows[partner]
        torch.testing.assert_close(images[:, 0, 0, 0], want)


@pytest.mark.parametrize("fuse", ["mixup", "cutmix", "dirichlet", "vanilla"])
@pytest.mark.parametrize("size", [(2, 3), (7, 5), (32, 32)])
def test_items_batches_and_device_batches_are_bit_identical(
    fuse: str, size: tuple[int, int]
) -> None:
    given = {"experts": 3, "size": size, "fuse": ExpertMix.named(fuse, 3, alpha=0.4), "seed": 9}
    whole, single, resident = (memory(33, **given) for _ in range(3))
    for _ in range(2):
        images, labels = epoch(whole)
        for i in reversed(range(33)):
            image, label = single[i]
            assert torch.equal(image, images[i])
            assert torch.equal(label, labels[i])
        at = 0
        for batch, targets in resident.batches(8, shuffle=False):
            assert torch.equal(batch, images[at : at + len(batch)])
            assert torch.equal(targets, labels[at : at + len(batch)])
            at += len(batch)
        assert at == 33
