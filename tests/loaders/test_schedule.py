"""Fusion that is switched off in the last epochs: by the count of a sample, or as announced."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images_in_memory import epoch, memory
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from moedd_loaders.dataset import DistilledDataset
from moedd_loaders.epochs import Epochs
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix
from moedd_loaders.ranks import SentRank
from moedd_loaders.samplers import ExpertBatchSampler


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


def ending(n: int = 20, off: int = 2, **given: Any) -> DistilledDataset:
    return memory(n, fuse=ExpertMix(3, off_epoch=off, fallback="vanilla"), **given)


def whole(loader: Iterable[Any]) -> float:
    """Share of a pass's images that are as they are: pixels are whole numbers only unmixed."""
    pixels = torch.cat([images[:, 0, 0, 0] for images, _ in loader])
    return float((pixels == pixels.round()).float().mean())


WAYS: dict[str, dict[str, Any]] = {
    "shuffled": {"shuffle": True},
    "dropping": {"shuffle": True, "drop_last": True},  # serves 18 of 20
    "weighted": {"sampler": WeightedRandomSampler([1.0] * 2 + [30.0] * 18, 20)},
    "replacing": {"sampler": RandomSampler(range(20), replacement=True, num_samples=20)},
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_fusion_ends_with_a_pass_whatever_the_sampler_repeats(way: str, workers: int) -> None:
    persistent = {"persistent_workers": True} if workers and way != "dropping" else {}
    loader = DataLoader(ending(), batch_size=6, num_workers=workers, **WAYS[way], **persistent)
    assert [whole(loader) for _ in range(4)] == [0, 0, 1, 1]


def test_many_passes_without_the_last_batch_stay_in_step() -> None:
    loader = DataLoader(ending(off=30), batch_size=6, drop_last=True)
    assert [whole(loader) for _ in range(31)] == [0] * 30 + [1]


def test_a_sampler_of_ours_says_which_epoch_it_is() -> None:
    # One expert of 16, one of 4: a pass serves 32 images of 20.
    experts = torch.tensor([0] * 16 + [1] * 4)
    for workers in (0, 2):
        ds = DistilledDataset(
            torch.arange(20.0).view(-1, 1, 1, 1), experts, experts, classes=["a", "b"],
            mean=[0.0], std=[1.0], fuse=ExpertMix(2, off_epoch=2),
        )  # fmt: skip
        sampler = ExpertBatchSampler(experts, 8)
        loader = DataLoader(ds, batch_sampler=sampler, num_workers=workers)
        assert [whole(loader) for _ in range(3)] == [0, 0, 1]
        sampler.set_epoch(0)
        assert whole(loader) == 0
        ds.set_epoch(1)  # resumed: the sampler's own count goes on from here
        assert [whole(loader) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("samples", [7, 60])
def test_what_is_announced_wins_over_counting(samples: int, persistent: bool) -> None:
    ds = ending()
    sampler = RandomSampler(ds, replacement=True, num_samples=samples)
    workers = {"num_workers": 2, "persistent_workers": True} if persistent else {}
    loader = DataLoader(ds, batch_size=6, sampler=sampler, **workers)
    found = []
    for number in range(4):
        ds.set_epoch(number)
        found.append(whole(loader))
    assert found == [0, 0, 1, 1]


def test_announced_epochs_reach_spawned_workers_that_stay() -> None:
    ds = ending()
    loader = DataLoader(
        ds, batch_size=20, num_workers=1, persistent_workers=True, multiprocessing_context="spawn"
    )
    found = []
    for number in (0, 0, 0, 2):
        ds.set_epoch(number)
        found.append(whole(loader))
    assert found == [0, 0, 0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_needs_one_announcement(workers: int) -> None:
    ds = ending(off=11)
    ds.set_epoch(9)
    loader = DataLoader(ds, batch_size=6, shuffle=True, num_workers=workers)
    assert [whole(loader) for _ in range(3)] == [0, 0, 1]
    ds.set_epoch(9)
    assert [whole(ds.batches(6)) for _ in range(3)] == [0, 0, 1]


def test_passes_of_all_forms_add_up() -> None:
    ds = ending(off=4)
    loader = DataLoader(ds, batch_size=6)
    ds[3]  # looked at
    assert whole(loader) == whole(ds.batches(6, drop_last=True)) == whole(loader) == 0
    other = copy.deepcopy(ds)
    pixels, _ = ds.numpy()
    assert (pixels != pixels.round()).all()
    assert [whole(loader), whole(ds.batches(6))] == [1, 1]
    assert [whole(other.batches(6)), whole(other.batches(6))] == [0, 1]


def test_a_repeated_sample_is_mixed_anew_in_an_epoch_that_is_announced() -> None:
    ds = memory(4, fuse="mixup")
    drawn = []
    for number in range(3):
        ds.set_epoch(number)
        for rows in BatchSampler(SequentialSampler(range(4)), 4, False):
            drawn += [float(image[0, 0, 0]) for image, _ in ds.__getitems__(rows * 2)]
    assert len(set(drawn)) == 24


@pytest.mark.parametrize(
    ("n", "world", "sizes"),
    [
        (13, 2, [3, 3, 1]),  # DistributedSampler repeats one
        (13, 2, [3, 3]),  # and leaves one out
        (13, 2, [4, 2]),
        (13, 2, [4]),
        (12, 3, [4]),
        (7, 1, [3, 3, 1]),
        (7, 1, [1] * 7),
        (5, 1, [5]),
    ],
)
def test_the_share_of_a_rank_is_a_pass(
    n: int, world: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentRank, "world", lambda self: world)
    epochs = Epochs(n, SentRank())
    for number in range(40):
        assert {epochs.of([0] * size) for size in sizes} == {number}
