"""Real images in a scratch file: the same pixels and the same results as in memory."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from enginefactories import digits, make_expert, make_pool, random_data
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefactories import class_folders, encoded, noise, png, write_parquet, write_tar, write_tree
from runfactories import cli, payload, tiny_arguments
from torch import Tensor

import moedd.imagescan as imagescan
import moedd.pixels as pixels
from moedd.evaluate import Job, Row, network_streams, train_and_test
from moedd.imagescan import Item, ScanProgress, scan
from moedd.networks import build_network
from moedd.parts import split_parts, whole
from moedd.pixels import HostImages, ImageFile, ImageWriter, on_device, rows_of, subset
from moedd.profile import Profile
from moedd.protocols import protocol_recipe
from moedd.realdata import RealData, RealSplit, load_real
from moedd.rowdata import UnitImages, full_images
from moedd.streams import Streams
from moedd.train import accuracy
from moedd.trajectories import TrajectoryConfig
from moedd.validation import with_validation_part
from moedd.zca import fit_zca
from moedd_loaders.errors import DiskFullError, MoeddError, UsageError


@pytest.fixture
def in_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real images in memory."""
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", "0")


def kept(images: Tensor) -> HostImages:
    """The same images in a scratch file."""
    writer = ImageWriter(len(images), tuple(images.shape[1:]), in_memory=False)
    for image in images:
        writer.add(image.numpy())
    found = writer.finish()
    assert isinstance(found, HostImages)
    return found


def on_disk(real: RealData) -> RealData:
    """The same data with both splits in scratch files."""
    train, test = (RealSplit(kept(s.images[:]), s.labels) for s in (real.train, real.test))
    return replace(real, train=train, test=test)


def bytes_of(count: int) -> Tensor:
    return (
        torch.arange(count * 3 * 8 * 9, dtype=torch.int64).remainder(251).byte().view(-1, 3, 8, 9)
    )


# --- rows of a file


@given(st.lists(st.integers(0, 6), max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_rows_are_those_of_the_tensor(rows: list[int]) -> None:
    images = bytes_of(7)
    index = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(kept(images)[index], images[index])


def test_rows_are_asked_for_in_every_way_of_a_tensor() -> None:
    images = bytes_of(7)
    there = kept(images)
    assert there.shape == images.shape
    assert torch.equal(there[3], images[3])
    for index in ([5, 1], slice(2, None, 2), slice(None), torch.tensor([True, False] * 3 + [True])):
        if isinstance(index, Tensor):  # a mask is no row number: never taken for zeros and ones
            index = index.nonzero().flatten()
        assert torch.equal(there[index], images[index])
    assert torch.equal(rows_of(there, torch.tensor([4])), images[[4]])


def test_a_subset_of_a_subset_copies_no_pixel() -> None:
    images = bytes_of(9)
    there = kept(images)
    chosen = subset(subset(there, torch.tensor([8, 3, 5, 0])), torch.tensor([2, 0]))
    assert isinstance(chosen, HostImages)
    assert chosen.base is there.base
    assert torch.equal(chosen[:], images[[5, 8]])


def test_batches_in_order_are_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    images = bytes_of(7)
    monkeypatch.setattr(pixels, "BATCH_BYTES", 3 * images[0].numel())
    for place in (images, kept(images)):
        found = list(pixels.in_batches(place))
        assert [len(batch) for batch in found] == [3, 3, 1]
        assert torch.equal(torch.cat(found), images)


def test_nothing_is_left_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOEDD_SCRATCH", str(tmp_path / "fast" / "disk"))
    there = kept(bytes_of(3))
    assert list((tmp_path / "fast" / "disk").iterdir()) == []  # while it is in use, too
    assert len(there[:]) == 3


# --- when the disk does not do what it should


def test_too_little_room_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match=r"0\.0 GB are free.*MOEDD_SCRATCH"):
        ImageWriter(1, (3, 8, 8), in_memory=False)


def test_a_disk_that_fills_up_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, in_file: None, home: Path
) -> None:
    full = Path("/dev/full").open("wb")  # noqa: SIM115
    monkeypatch.setattr(pixels.tempfile, "TemporaryFile", lambda **_: full)
    told = cli(*tiny_arguments())
    assert told.code == 1
    assert "the disk is full while keeping decoded real images" in told.sentence
    assert not (home / "sets").exists()


def test_a_folder_that_is_a_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOEDD_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="MOEDD_SCRATCH names another folder"):
        kept(bytes_of(1))


def test_lost_pixels_are_noticed() -> None:
    there = kept(bytes_of(3))
    assert isinstance(there.base, ImageFile)
    os.ftruncate(there.base._file.fileno(), 500)
    with pytest.raises(MoeddError, match="shorter than it was written"):
        there[:]
    there.base._file.close()
    with pytest.raises((MoeddError, ValueError)):
        there[:]


def test_a_read_error_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    there = kept(bytes_of(3))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pixels.os, "preadv", broken)
    with pytest.raises(MoeddError, match="cannot be read again"):
        there[:]


def test_what_lies_on_the_disk_is_counted() -> None:
    images = bytes_of(4)
    there = kept(images)
    assert (pixels.on_disk(images), pixels.on_disk(there)) == (0, images.numel())
    assert pixels.on_disk(HostImages(images, np.arange(4))) == 0


# --- how much may lie where


def test_what_does_not_fit_a_device_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device without memory, which takes any tensor and computes nothing."""
    images = bytes_of(4)
    size = images.numel()
    for place in (images, kept(images)):
        assert on_device(place, "cpu") is place
        monkeypatch.setenv("MOEDD_DATA_ON_DEVICE", str(size))
        there = on_device(place, "meta")
        assert isinstance(there, Tensor)
        assert (there.device.type, there.shape) == ("meta", images.shape)
        for share, copies in ((size - 1, 1), (2 * size - 1, 2)):
            monkeypatch.setenv("MOEDD_DATA_ON_DEVICE", str(share))
            left = on_device(place, "meta", copies)
            assert isinstance(left, HostImages)
            assert torch.equal(left.to("cpu")[:], images)
            assert left[[2, 3]].device.type == "meta"


def test_a_part_that_stays_on_the_host_hands_out_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = split_parts(digits(2, 12), 2, "stratified", Streams(0), 2)[0]
    monkeypatch.setenv("MOEDD_DATA_ON_DEVICE", str(part.images.shape.numel() * 2 - 1))
    moved = part.to("meta")
    assert isinstance(moved.images, HostImages)
    assert moved.images.device == moved.labels.device == torch.device("meta")
    assert moved.images[part.rows[0]].device.type == "meta"
    assert moved.to("meta") is moved


# --- reading


def folders(root: Path) -> Path:
    class_folders(root, {"a": 9, "b": 8}, "train")
    return class_folders(root, {"a": 3, "b": 2}, "test")


def parquet(root: Path) -> Path:
    for split, count in (("train-00000-of-00002", 70), ("train-00001-of-00002", 9), ("test", 5)):
        images = [png(seed=k) for k in range(count)]
        write_parquet(root / f"{split}.parquet", images, [k % 2 for k in range(count)], ["a", "b"])
    return root


def tars(root: Path) -> Path:
    members = [
        (f"{k}.{end}", data)
        for k in range(12)
        for end, data in (("png", png(seed=k)), ("cls", str(k % 2).encode()))
    ]
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("a\nb\n")
    write_tar(root / "train.tar", members)
    return root  # no test split: a fifth is held out


def grey_then_colour(root: Path) -> Path:
    class_folders(root, {"a": 6}, shape=(8, 8, 1))
    class_folders(root, {"b": 5}, shape=(8, 8, 3))
    return write_tree(root, {"b/broken.png": b"no image"})


@pytest.mark.parametrize("make", [folders, parquet, tars, grey_then_colour])
@pytest.mark.parametrize("held", [False, True])
def test_every_reader_gives_the_same_data(
    make: Callable[[Path], Path], held: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = make(tmp_path / "data")

    def read() -> RealData:
        real = load_real("mine", path=root, skip_bad=True)
        return with_validation_part(real) if held else real

    here = read()
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", "0")
    there = read()
    for one, other in ((here.train, there.train), (here.test, there.test)):
        assert isinstance(one.images, Tensor)
        assert isinstance(other.images, HostImages)
        assert torch.equal(one.images, other.images[:])
        assert torch.equal(one.labels, other.labels)
    assert replace(there, train=here.train, test=here.test) == here
    assert here.fingerprint.startswith("sha256:")


def test_both_splits_together_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", str(22 * 192 - 1))
    assert isinstance(load_real("mine", path=root).test.images, HostImages)
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", str(22 * 192))
    assert isinstance(load_real("mine", path=root).train.images, Tensor)


def test_decoded_images_are_never_all_in_memory(
    in_file: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's allocations are traced: at the most far less than the images take together."""
    monkeypatch.setattr(imagescan, "CHUNK_BYTES", 2**16)
    data = [encoded(noise(64, 64, 3, seed=k), "BMP") for k in range(3)]
    count = 1000

    def read(progress: ScanProgress) -> None:
        nonlocal found
        items = (Item(str(k), 0, data[k % 3]) for k in range(count))
        found = scan(items, count, channels=3, convert=False, size=None, progress=progress)

    found = None
    with ScanProgress(count) as progress:
        tracemalloc.start()
        try:
            read(progress)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found is not None
    assert found.images.shape == (count, 3, 64, 64)
    assert most < 0.4 * count * 3 * 64 * 64


# --- the same results


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("idm", {"batch_real": 8}),
        ("idc", {"batch_real": 8}),
        ("dm", {"batch_real": 8}),
        ("dc", {"batch_real": 8, "outer": 2, "inner": 1}),
        ("rded", {"observer_steps": 60, "observer_lr": 0.1, "images_per_class": 20}),
        ("herding", {}),
        ("random", {}),
    ],
)
def test_experts_make_the_same_images(method: str, given: dict[str, float]) -> None:
    real = digits(2, 24)
    parts = [split_parts(data, 2, "stratified", Streams(0), 2)[1] for data in (real, on_disk(real))]
    here, there = (make_expert(method, part, pool=make_pool(part), **given) for part in parts)
    for _ in range(min(2, here.steps)):
        assert here.step() == there.step()
    assert torch.equal(here.images, there.images)
    assert parts[0].fingerprint == parts[1].fingerprint


def test_whitening_is_the_same() -> None:
    real = digits(2, 24)
    here, there = (fit_zca(whole(data)) for data in (real, on_disk(real)))
    assert torch.equal(here.matrix, there.matrix)
    assert TrajectoryConfig(zca=True).zca  # the only user


def test_networks_are_tested_alike() -> None:
    real = random_data([20, 20], (3, 16, 16))
    network = build_network("convnet2", channels=3, classes=2, size=(16, 16), width=8)
    found = [
        accuracy(network, data.test.images, data.test.labels, data.normalized, batch=4)
        for data in (real, on_disk(real))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("fuse", ["none", "vanilla"])
def test_all_real_images_train_the_same_network(fuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = digits(2, 24)
    recipe = replace(protocol_recipe("common"), passes=2, batch=16)
    job = Job(Row("full", fuse), "convnet1", 0)

    def trained(data: RealData) -> tuple[Tensor, list[float]]:
        losses: list[float] = []
        images = full_images(data)
        lazy = isinstance(images[0], UnitImages)
        assert lazy == (data is not real)
        tested = train_and_test(
            job, images, data, recipe, network_streams(0, "convnet1", 0, 0), Profile(), width=8,
            on_epoch=lambda _, loss: losses.append(loss),
        )  # fmt: skip
        return torch.tensor(tested.accuracy), losses

    here = trained(real)
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", "0")
    assert trained(on_disk(real)) == here


@pytest.mark.parametrize("more", [[], ["--validation"]])
def test_a_run_makes_the_same_set(
    more: list[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    made = []
    for limit in (str(2**30), "0"):
        monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", limit)
        told = cli(*tiny_arguments("digits-idm+herding-2x2"), "--overwrite", *more)
        assert told.code == 0, told.err
        made.append(payload(home / "sets" / "digits-idm+herding-2x2"))
    assert made[0] == made[1]
    assert any(name.startswith("tensors") for name in made[1])
    assert list((home / "scratch").iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="hardware: no CUDA device")
@pytest.mark.parametrize("method", ["idm", "idc", "rded"])
def test_a_gpu_that_is_too_small_gets_batches(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"observer_steps": 60, "observer_lr": 0.1} if method == "rded" else {"batch_real": 8}
    found = []
    for limit in (2**30, 0):
        monkeypatch.setenv("MOEDD_DATA_ON_DEVICE", str(limit))
        part = whole(digits(2, 24)).to("cuda")
        assert isinstance(part.images, Tensor) == (limit > 0)
        expert = make_expert(method, part, **given)
        for _ in range(min(2, expert.steps)):
            expert.step()
        found.append(expert.images.cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found[0].numpy()).all()
