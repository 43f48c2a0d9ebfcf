"""Fusion that is switched off in the last epochs: by the count of a sample, or as announced."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images_in_memory import epoch, memory
from torch.utils.data import DataLoader

from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.arange(8)
    return rows.float().view(-1, 1, 1, 1).expand(8, 1, 2, 2), rows % 3, rows % 2


def test_a_data_set_stops_mixing_by_itself_and_keeps_float_labels() -> None:
    ds = memory(fuse=ExpertMix(3, off_epoch=2))
    one_hot = F.one_hot(ds.labels, 3).float()
    for number in range(4):
        images, labels = epoch(ds)
        assert labels.dtype == torch.float32
        assert torch.equal(images, ds.images) == (number >= 2)
        assert torch.equal(labels, one_hot) == (number >= 2)


@pytest.mark.parametrize("op", ["mixup", "cutmix", "dirichlet"])
def test_before_it_stops_nothing_else_is_different(op: str) -> None:
    index, size = np.arange(12), (4, 4)
    with_end, without = (memory(fuse=ExpertMix(3, op=op, off_epoch=end)) for end in (3, None))
    for served in (0, 2):
        a, b = (ds.plan(index, np.full(12, served), size) for ds in (with_end, without))
        np.testing.assert_array_equal(a.partner, b.partner)
        np.testing.assert_array_equal(a.weight, b.weight)
    assert not with_end.plan(index, np.full(12, 3)).mixed.any()
    mixed = with_end.plan(index, np.arange(12)).mixed  # each sample by its own count
    assert mixed.tolist() == [True] * 3 + [False] * 9


def test_batches_and_workers_stop_at_the_same_epoch() -> None:
    resident, workers = (memory(20, fuse=ExpertMix(3, off_epoch=1)) for _ in range(2))
    ways = (
        resident.batches(8, shuffle=False),
        DataLoader(workers, batch_size=8, num_workers=2, persistent_workers=True),
    )
    for number in range(3):
        for way in ways:
            images = torch.cat([images for images, _ in way])
            assert torch.equal(images, resident.images) == (number >= 1)


def test_a_transform_is_told_the_epoch() -> None:
    mix = ExpertMix(3, off_epoch=5)
    images, labels, experts = batch()
    with pytest.raises(UsageError, match=r"off_epoch is 5 and no epoch.*set_epoch"):
        mix(images, labels, experts)
    mix.set_epoch(4)
    assert not torch.equal(mix(images, labels, experts)[0], images)
    mix.set_epoch(5)
    for other in (mix, pickle.loads(pickle.dumps(mix))):
        mixed, targets = other(images, labels, experts)
        assert torch.equal(mixed, images)
        assert torch.equal(targets, F.one_hot(labels, 3).float())
    alone = mix(images[:1], labels[:1], experts[:1])  # no partner, and none needed any more
    assert torch.equal(alone[0], images[:1])
    assert mix.settings()["off_epoch"] == 5
    assert "off_epoch" not in ExpertMix(3).settings()
    for call in (lambda: ExpertMix(3, off_epoch=-1), lambda: mix.set_epoch(-1)):
        with pytest.raises(UsageError, match="expected 0 or more"):
            call()
