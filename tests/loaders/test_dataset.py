"""load_distilled and DistilledDataset, on small real sets written by the publisher."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import COLUMN_TILES, make_set, make_source
from images_in_memory import epoch, memory
from safetensors.torch import load_file
from torch import Tensor

from moedd_loaders.dataset import DistilledDataset, load_distilled
from moedd_loaders.decode import decode, decode_index
from moedd_loaders.errors import InvalidSetError, SetNotFoundError, UsageError
from moedd_loaders.fuse import ExpertMix


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 2 images each of a tiles expert (24 decoded) and of a plain one (6)."""
    folder = tmp_path_factory.mktemp("sets") / "toy-idm+idm_plain-2x2"
    make_set(folder)
    return folder


def test_decoded_rows_are_what_the_rules_say(toy: Path) -> None:
    stored = load_file(toy / "tensors" / "distilled.safetensors")
    ds = load_distilled(toy)
    first = stored["experts"] == 0
    mean = make_source().mean
    want = torch.cat(
        [decode(stored["images"][first], COLUMN_TILES, mean), stored["images"][~first]]
    )
    assert torch.equal(ds.images, want)
    index = torch.cat([decode_index(6, COLUMN_TILES), torch.arange(6, 12)])
    assert torch.equal(ds.labels, stored["labels"][index])
    assert torch.equal(ds.experts, stored["experts"][index])
    assert len(ds) == 24 + 6


def test_torchvision_vocabulary(toy: Path) -> None:
    ds = load_distilled(toy)
    assert ds.classes == ["class a", "class b", "class c"]
    assert ds.class_to_idx == {"class a": 0, "class b": 1, "class c": 2}
    assert ds.targets == ds.labels.tolist()
    assert ds.mean == tuple(make_source().mean)
    assert ds.std == tuple(make_source().std)
    assert ds.manifest is not None
    assert ds.manifest.name == toy.name
    assert ds.origin == "folder"
    assert ds.transform is None
    image, label = ds[3]
    assert isinstance(label, int)
    assert image.dtype == torch.float32
    assert image.shape == (3, 8, 8)
    assert label == ds.targets[3]
    assert torch.equal(image, ds.images[3])
    assert "30 images" in repr(ds)
    assert sum(1 for _ in ds) == 30


def test_odd_sides_are_padded_with_the_source_mean(tmp_path: Path) -> None:
    make_set(tmp_path / "odd", shape=(3, 9, 11))
    stored = load_file(tmp_path / "odd" / "tensors" / "distilled.safetensors")["images"]
    ds = load_distilled(tmp_path / "odd")
    assert torch.equal(ds.images[:24], decode(stored[:6], COLUMN_TILES, make_source().mean))


def test_decode_false_and_expert_filter(toy: Path) -> None:
    stored = load_file(toy / "tensors" / "distilled.safetensors")
    raw = load_distilled(toy, decode=False)
    assert torch.equal(raw.images, stored["images"])
    assert raw.targets == stored["labels"].tolist()
    one = load_distilled(toy, experts=[1])
    assert torch.equal(one.images, stored["images"][6:])
    assert one.experts.tolist() == [1] * 6
    assert len(load_distilled(toy, experts=[1, 0])) == 30


def test_labels_by_kind_of_fusion(toy: Path) -> None:
    for fuse in ("none", "mixup", "vanilla", "same", "cutmix", "dirichlet"):
        image, label = load_distilled(toy, fuse=fuse)[0]
        assert image.shape == (3, 8, 8)
        assert image.dtype == label.dtype == torch.float32
        assert label.shape == (3,)
        assert label.sum() == pytest.approx(1)
    mix = ExpertMix(3, same_class=True)
    ds = load_distilled(toy, fuse=mix)
    image, label = ds[0]
    assert label == ds.targets[0]
    assert isinstance(label, int)
    assert not torch.equal(image, ds.images[0])


def test_none_is_one_hot_and_unmixed(toy: Path) -> None:
    plain = load_distilled(toy)
    images, labels = epoch(load_distilled(toy, fuse="none"))
    assert torch.equal(images, plain.images)
    assert torch.equal(labels, F.one_hot(plain.labels, 3).float())


def test_soft_labels(tmp_path: Path) -> None:
    make_set(tmp_path / "soft", soft=True)
    soft = load_file(tmp_path / "soft" / "tensors" / "distilled.safetensors")["soft_labels"]
    ds = load_distilled(tmp_path / "soft")
    index = torch.cat([decode_index(6, COLUMN_TILES), torch.arange(6, 12)])
    assert torch.equal(epoch(ds)[1], soft[index])
    assert torch.equal(epoch(load_distilled(tmp_path / "soft", fuse="none"))[1], soft[index])
    _, mixed = epoch(load_distilled(tmp_path / "soft", fuse="mixup"))
    torch.testing.assert_close(mixed.sum(1), torch.ones(30))
    assert not torch.equal(mixed, soft[index])


@pytest.mark.parametrize("fuse", ["mixup", "cutmix", "dirichlet"])
def test_one_expert_is_an_error_that_names_the_alternatives(toy: Path, fuse: str) -> None:
    with pytest.raises(ValueError, match=r"only expert 0.*vanilla.*none"):
        load_distilled(toy, fuse=fuse, experts=[0])
    for allowed in ("vanilla", "none", "same", None):
        load_distilled(toy, fuse=allowed, experts=[0])[0]


def test_partners_are_of_another_expert_and_labels_share_lam() -> None:
    ds = memory(60, experts=3, fuse="mixup", seed=4)
    one_hot = torch.eye(3)[ds.labels]
    for served in range(20):
        plan = ds.plan(np.arange(60), np.full(60, served))
        partner, lam = torch.from_numpy(plan.partner[:, 0]), torch.from_numpy(plan.weight[:, 0])
        assert (ds.experts[partner] != ds.experts).all()
        images, labels = epoch(ds)
        want = lam * torch.arange(60) + (1 - lam) * partner
        torch.testing.assert_close(images[:, 0, 0, 0], want)
        torch.testing.assert_close(
            labels, lam[:, None] * one_hot + (1 - lam)[:, None] * one_hot[partner]
        )


def test_every_epoch_differs_and_the_seed_repeats_them() -> None:
    a, b = memory(fuse="mixup", seed=1), memory(fuse="mixup", seed=1)
    first, second = epoch(a)[0], epoch(a)[0]
    assert not (first == second).all(dim=(1, 2, 3)).any()
    assert torch.equal(epoch(b)[0], first)
    assert torch.equal(epoch(b)[0], second)
    assert not torch.equal(epoch(memory(fuse="mixup", seed=2))[0], first)
    b.set_epoch(0)
    assert torch.equal(epoch(b)[0], first)
    b.set_epoch(1)
    assert torch.equal(epoch(b)[0], second)


def test_repeats_within_a_batch_count_as_served_again() -> None:
    a, b = memory(fuse="mixup"), memory(fuse="mixup")
    together = a.__getitems__([5, 3, 5, 5, 3])
    one_by_one = [b[i] for i in (5, 3, 5, 5, 3)]
    for (x, _), (y, _) in zip(together, one_by_one, strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(together[0][0], together[2][0])
    assert torch.equal(a[5][0], b[5][0])


def test_global_generators_neither_matter_nor_move() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    a = epoch(memory(fuse="mixup"))[0]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    torch.manual_seed(99)
    ds = memory(fuse="mixup")
    list(ds.batches(4))
    ds.set_epoch(0)
    assert torch.equal(epoch(ds)[0], a)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_pickles_and_deep_copies_go_on_alike_but_count_for_themselves() -> None:
    ds = memory(fuse="mixup")
    epoch(ds)
    copies = [pickle.loads(pickle.dumps(ds)), copy.deepcopy(ds)]
    want = epoch(ds)[0]
    for other in copies:
        assert torch.equal(epoch(other)[0], want)
        assert other.served_counts._counts.is_shared()
    assert not torch.equal(epoch(ds)[0], want)


def test_nothing_views_memory_that_torch_moves_when_it_shares_a_tensor() -> None:
    ds = memory(fuse=ExpertMix(3, same_class=True))
    arrays = [ds._labels, ds._experts, *vars(ds._groups).values()]
    for array in [part for part in arrays if isinstance(part, np.ndarray)]:
        for tensor in (ds.labels, ds.experts):
            assert not np.shares_memory(array, tensor.numpy())


def test_partner_is_transformed_too_and_then_mixed() -> None:
    # x -> x**2 does not commute with mixing: the order shows.
    ds = memory(fuse="mixup", transform=lambda x: x**2)
    plan = ds.plan(np.arange(12), np.zeros(12, np.int64))
    lam, partner = torch.from_numpy(plan.weight[:, 0]), torch.from_numpy(plan.partner[:, 0])
    want = lam * torch.arange(12) ** 2 + (1 - lam) * partner**2
    torch.testing.assert_close(epoch(ds)[0][:, 0, 0, 0], want)
    ds.set_epoch(0)
    images = torch.cat([images for images, _ in ds.batches(5, shuffle=False)])
    torch.testing.assert_close(images[:, 0, 0, 0], want)


def test_normalize_comes_after_the_transform() -> None:
    rows = torch.arange(12).float()
    plain = epoch(memory(normalize=True))[0][:, 0, 0, 0]
    torch.testing.assert_close(plain, (rows - 0.5) / 0.25)
    squared = epoch(memory(normalize=True, transform=lambda x: x**2))[0][:, 0, 0, 0]
    torch.testing.assert_close(squared, (rows**2 - 0.5) / 0.25)
    mixed, direct = (memory(fuse="mixup", normalize=n) for n in (True, False))
    torch.testing.assert_close(
        epoch(mixed)[0], (epoch(direct)[0] - 0.5) / 0.25, atol=1e-4, rtol=1e-5
    )


def test_cutmix_boxes_fit_the_transformed_size() -> None:
    def enlarge(image: Tensor) -> Tensor:
        return image.repeat_interleave(8, 1).repeat_interleave(8, 2)

    ds = memory(200, fuse="cutmix", transform=enlarge)
    images, labels = epoch(ds)
    assert images.shape == (200, 1, 16, 24)
    pasted = (images[:, 0] != torch.arange(200).view(-1, 1, 1)).float().mean((1, 2))
    plan = ds.plan(np.arange(200), np.zeros(200, np.int64), (16, 24))
    torch.testing.assert_close(torch.from_numpy(plan.weight[:, 1]), pasted)
    kept = torch.where(ds.labels[plan.partner[:, 0]] == ds.labels, 1.0, 1 - pasted)
    torch.testing.assert_close(labels[torch.arange(200), ds.labels], kept)
    assert pasted.max() > 0.5


def test_target_transform_gets_the_label_as_delivered() -> None:
    ds = memory(target_transform=lambda label: label + 10)
    assert ds[3][1] == ds.targets[3] + 10
    fused = memory(fuse="mixup", target_transform=lambda row: row.argmax())
    (_, labels), *_ = fused.batches(4)
    assert labels.shape == (4,)
    assert fused[0][1].dim() == 0


def test_without_fusion_a_transform_may_return_anything() -> None:
    assert memory(transform=lambda image: "text")[0] == ("text", 0)
    for given in ({"fuse": "mixup"}, {"normalize": True}):
        with pytest.raises(UsageError, match=r"the transform returned str"):
            memory(transform=lambda image: "text", **given)[0]


def test_what_is_handed_out_is_not_the_data_set_itself() -> None:
    for given in ({}, {"fuse": "none"}, {"transform": lambda image: image.mul_(0)}):
        ds = memory(**given)
        before = ds.images.clone()
        ds[0][0].add_(1)
        ds.__getitems__([0, 1])[1][0].add_(1)
        next(iter(ds.batches(4, shuffle=False)))[0].add_(1)
        assert torch.equal(ds.images, before)


def test_wrong_use_is_one_clear_sentence(toy: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fuse": "mixap"}, "did you mean 'mixup'"),
        ({"fuse": ExpertMix(10)}, r"ExpertMix of 10 classes and the set has 3"),
        ({"experts": [2]}, r"no expert 2: choose among \[0, 1\]"),
        ({"experts": []}, "empty list"),
        ({"experts": 1}, r"list of expert ids such as \[0\]"),
    ]
    for given, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            load_distilled(toy, **given)
        assert "\n" not in str(caught.value)
    ds = load_distilled(toy)
    with pytest.raises(IndexError, match="30"):
        ds[30]
    assert torch.equal(ds[-1][0], ds[29][0])
    with pytest.raises(TypeError):
        ds[0:2]  # type: ignore[index]
    with pytest.raises(UsageError, match="batch_size is 0"):
        ds.batches(0)
    with pytest.raises(UsageError, match="epoch is -1"):
        ds.set_epoch(-1)
    with pytest.raises(UsageError, match="cannot be used here"):
        ds.batches(4, device="tpu_or_so")


def test_same_class_without_partners_is_said_at_once() -> None:
    images, labels = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 2])
    with pytest.raises(UsageError, match="no partner of the same class"):
        DistilledDataset(
            images,
            labels,
            torch.tensor([0, 0, 1, 1]),
            classes=["a", "b", "c"],
            mean=[0.0],
            std=[1.0],
            fuse=ExpertMix(3, same_class=True),
        )


def test_damaged_and_missing_sets(toy: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "bad")
    tensors = tmp_path / "bad" / "tensors" / "distilled.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(InvalidSetError, match=r"distilled\.safetensors"):
        load_distilled(tmp_path / "bad")
    load_distilled(tmp_path / "bad", verify=False)
    with pytest.raises(SetNotFoundError):
        load_distilled(tmp_path / "nothing")


def test_import_is_light_and_names_are_lazy() -> None:
    code = (
        "import sys, moedd_loaders; "
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules; "
        "from moedd_loaders import load_distilled, ExpertMix; "
        "heavy = {'datasets', 'huggingface_hub', 'PIL', 'fsspec.implementations', 'webdataset', "
        "'torchvision', 'moedd', 'moedd_publish', 'pydantic', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "assert all(getattr(moedd_loaders, name) is not None for name in moedd_loaders.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
