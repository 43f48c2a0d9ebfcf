"""Fusion in a `collate_fn`, and torchvision's way of calling the batch transform."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from images_in_memory import memory
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from moedd_loaders.collate import MixCollate
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix, Pool
from moedd_loaders.samplers import ExpertBatchSampler

N = 24


def items(n: int = N) -> TensorDataset:
    """(image constant = row number, label, expert)."""
    rows = torch.arange(n)
    images = rows.float().view(-1, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return TensorDataset(images, rows // 2 % 3, rows % 2)


def loader(mix: ExpertMix, workers: int = 0, **given: Any) -> DataLoader[Any]:
    return DataLoader(
        items(), batch_size=6, collate_fn=MixCollate(mix), num_workers=workers, **given
    )


def lams(batches: Any) -> list[float]:
    """Weights of the anchors, found from pixels: lam * row + (1 - lam) * partner, in order."""
    return [float(value) for images, _ in batches for value in images[:, 0, 0, 0]]


def test_items_are_mixed_and_labels_follow() -> None:
    mix = ExpertMix(3)
    for images, labels in DataLoader(items(), batch_size=5, collate_fn=MixCollate(mix)):
        assert labels.shape == (len(images), 3)
        assert labels.dtype == torch.float32
        torch.testing.assert_close(labels.sum(1), torch.ones(len(images)))
    same = ExpertMix(3)
    batch = default_collate([items()[i] for i in range(5)])
    got = MixCollate(ExpertMix(3))([items()[i] for i in range(5)])
    for a, b in zip(got, same(*batch), strict=True):
        assert torch.equal(a, b)


def test_a_pool_gives_partners_to_batches_of_one() -> None:
    pool = Pool(*items().tensors)
    found = DataLoader(items(), batch_size=1, collate_fn=MixCollate(ExpertMix(3), pool))
    assert sum(1 for _ in found) == N
    with pytest.raises(UsageError, match="finds no partner"):
        next(iter(DataLoader(items(), batch_size=1, collate_fn=MixCollate(ExpertMix(3)))))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_and_epochs_draw_from_streams_of_their_own(context: str) -> None:
    def run(persistent: bool) -> list[list[float]]:
        found = loader(
            ExpertMix(3), 2, multiprocessing_context=context, persistent_workers=persistent
        )
        return [lams(found) for _ in range(2)]

    first = run(persistent=context == "spawn")  # starting a process takes long
    # Batches 0 and 1 come from different workers, and the second epoch from new copies of both.
    parts = [tuple(lam % 1 for lam in epoch[at : at + 6]) for epoch in first for at in (0, 6)]
    assert len(set(parts)) == 4
    if context == "fork":  # repeatable, and persistent workers draw the same
        assert run(persistent=False) == first
        assert run(persistent=True) == first


def test_the_transform_called_by_hand_in_a_collate_function_is_as_safe() -> None:
    mix = ExpertMix(3)

    def collate(given: list[Any]) -> Any:
        return mix(*default_collate(given))

    found = DataLoader(items(), batch_size=6, collate_fn=collate, num_workers=2)
    parts = [tuple(lam % 1 for lam in lams([batch])) for _ in range(2) for batch in found]
    assert len(set(parts)) == len(parts) == 8


def test_items_without_experts_are_told_apart() -> None:
    with pytest.raises(UsageError, match="return_expert=True"):
        MixCollate(ExpertMix(3))([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2), 1)])


def test_a_data_set_with_experts_feeds_it() -> None:
    ds = memory(return_expert=True)
    sampler = ExpertBatchSampler(ds.experts, 4, labels=ds.labels)
    found = DataLoader(ds, batch_sampler=sampler, collate_fn=MixCollate(ExpertMix(3)))
    for images, labels in found:
        assert images.shape == (4, 1, 2, 3)
        assert labels.shape == (4, 3)


def test_called_as_torchvision_calls_its_transforms() -> None:
    images, labels, experts = items().tensors
    want = ExpertMix(3)(images, labels, experts)
    one_argument = ExpertMix(3)((images, labels, experts))
    composed = v2.Compose([v2.Identity(), ExpertMix(3)])(images, labels, experts)
    wrapped = ExpertMix(3)(tv_tensors.Image(images), labels, experts)
    for got in (one_argument, composed, wrapped):
        assert torch.equal(torch.as_tensor(got[0]), want[0])
        assert torch.equal(got[1], want[1])
    pooled: tuple[Tensor, ...] = ExpertMix(3)(
        [images, labels, experts], pool=Pool(*items().tensors)
    )
    assert pooled[0].shape == images.shape
    for wrong in ((images,), (images, labels)):
        with pytest.raises(UsageError, match=rf"called with {len(wrong)} tensors"):
            ExpertMix(3)(*wrong)
