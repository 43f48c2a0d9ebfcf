"""What `load_distilled` can be told: experts in the items, NumPy, settings of the fusion."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_set
from images_in_memory import epoch, memory
from torch.utils.data import DataLoader

from moedd_loaders import load_distilled
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "toy"
    make_set(folder)
    return folder


@pytest.mark.parametrize("fuse", [None, "mixup"])
def test_experts_come_with_the_items(toy: Path, fuse: str | None) -> None:
    ds = load_distilled(toy, fuse=fuse, return_expert=True)
    *_, expert = ds[25]
    assert expert == 1
    assert isinstance(expert, int)
    ways: list[Any] = [DataLoader(ds, batch_size=7), ds.batches(7, shuffle=False)]
    for way in ways:
        images, _, experts = (torch.cat(part) for part in zip(*way, strict=True))
        assert torch.equal(experts, ds.experts)
        assert experts.dtype == torch.int64
        assert len(images) == 30
    shuffled = load_distilled(toy, return_expert=True)
    for images, _, experts in shuffled.batches(7):
        rows = [(shuffled.images == image).all((1, 2, 3)).nonzero()[0, 0] for image in images]
        assert torch.equal(experts, shuffled.experts[torch.stack(rows)])


def test_numpy_is_the_next_epoch(toy: Path) -> None:
    ds, same = (load_distilled(toy, fuse="mixup", seed=3) for _ in range(2))
    for _ in range(2):
        images, labels = ds.numpy()
        want_images, want_labels = epoch(same)
        np.testing.assert_array_equal(images, want_images)
        np.testing.assert_array_equal(labels, want_labels)
    last, _ = ds.numpy(channels_last=True)
    assert last.shape == (30, 8, 8, 3)
    assert last.flags.c_contiguous
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), epoch(same)[0])


def test_numpy_without_fusion_and_of_other_kinds(toy: Path) -> None:
    ds = load_distilled(toy, return_expert=True, dtype=torch.bfloat16)
    images, labels, experts = ds.numpy()
    assert images.dtype == np.float32
    assert labels.dtype == experts.dtype == np.int64
    np.testing.assert_array_equal(labels, ds.targets)
    images += 1  # a copy: the set itself is not touched
    assert not np.allclose(ds.numpy()[0], images)
    tens = memory(target_transform=lambda label: label * 10).numpy()[1]
    assert tens.tolist() == [10 * label for label in memory().targets]


def test_settings_of_the_fusion_are_passed_on(toy: Path) -> None:
    given = {"alpha": 0.3, "lam": "batch", "prob": 0.5, "partner": "sample", "off_epoch": 7}
    ds = load_distilled(toy, fuse="cutmix", **given)
    assert ds.mix is not None
    want = ExpertMix(3, op="cutmix", **given)  # type: ignore[arg-type]
    assert ds.mix.settings() == want.settings()
    same = load_distilled(toy, fuse="mixup", same_class=True)
    assert isinstance(same[0][1], int)
    plain, other = (load_distilled(toy, fuse="mixup", alpha=a) for a in (1.0, 0.1))
    assert not torch.equal(epoch(plain)[0], epoch(other)[0])
    assert torch.equal(epoch(load_distilled(toy, fuse="mixup", prob=0.0))[0], plain.images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fuse": "mixup", "alhpa": 0.3}, r"unknown argument.*'alhpa'.*did you mean 'alpha'"),
        ({"alpha": 0.3}, 'fuse is None.*add fuse="mixup"'),
        ({"fuse": ExpertMix(3), "prob": 0.3}, "give it to ExpertMix"),
        ({"fuse": "mixup", "alpha": -1}, "alpha is -1"),
        ({"fuse": "mixup", "experts": [1], "alpha": 1.0}, "there is only expert 1"),
    ],
)
def test_settings_that_cannot_be_meant(toy: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_distilled(toy, **given)


def test_deep_copies_keep_every_option(toy: Path) -> None:
    ds = load_distilled(toy, fuse="mixup", return_expert=True, size=4, off_epoch=1)
    ds.align_to(["class b", "class a", "new", "class c"])
    other = copy.deepcopy(ds)
    for _ in range(2):
        for a, b in zip(ds.batches(9), other.batches(9), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_planned_ahead_notice_what_changes_in_between() -> None:
    ds, fresh = memory(24, fuse="mixup"), memory(24, fuse="mixup")
    batches = ds.batches(10, shuffle=False)
    next(iter(batches))  # planned for many epochs; only one batch of this one was served
    fresh.__getitems__(range(10))
    assert torch.equal(torch.cat([x for x, _ in batches]), epoch(fresh)[0])
    ds[3], fresh[3]
    assert torch.equal(torch.cat([x for x, _ in batches]), epoch(fresh)[0])
    ds.set_epoch(9)
    fresh.set_epoch(9)
    assert torch.equal(torch.cat([x for x, _ in batches]), epoch(fresh)[0])
    for one in (ds, fresh):
        assert one.mix is not None
        one.mix.prob = 0.5
    assert torch.equal(torch.cat([x for x, _ in batches]), epoch(fresh)[0])


def test_a_transform_may_be_set_later_as_long_as_it_can_come_first(toy: Path) -> None:
    given, later = (load_distilled(toy, fuse="mixup", transform=t) for t in (torch.square, None))
    later.transform = torch.square
    for _ in range(2):
        for (a, _), (b, _) in zip(given.batches(8), later.batches(8), strict=True):
            assert torch.equal(a, b)
    normalised = load_distilled(toy, normalize=True)
    with pytest.raises(UsageError, match="normalised or in another dtype already"):
        normalised.transform = torch.square
    with pytest.raises(AttributeError):
        normalised.normalize = False  # type: ignore[misc]
    with_transform = load_distilled(toy, normalize=True, transform=torch.square)
    with_transform.transform = None
    for way in (with_transform.batches(30, shuffle=False), DataLoader(with_transform, 30)):
        assert torch.equal(next(iter(way))[0], normalised.images)


def test_labels_of_a_batch_are_their_own() -> None:
    ds = memory(24, fuse="mixup")
    for _, labels in ds.batches(8):
        assert labels.untyped_storage().nbytes() == labels.numel() * 4
