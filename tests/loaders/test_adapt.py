"""Sizes, channels, dtypes; and the transform that brings test images into the same form."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_set
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from moedd import imageread
from moedd_loaders import load_distilled
from moedd_loaders.adapt import EvalTransform, Form, as_size, fit_channels, fit_size, fit_statistics
from moedd_loaders.errors import UsageError


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "toy"
    make_set(folder)
    return folder


@pytest.mark.parametrize(
    ("have", "want"), [((8, 8), (12, 12)), ((9, 14), (6, 6)), ((5, 8), (16, 7)), ((8, 8), (8, 8))]
)
def test_size_is_torchvisions_antialiased_bilinear_then_a_centre_crop(
    have: tuple[int, int], want: tuple[int, int]
) -> None:
    images = picture(2, 3, *have)
    scale = max(want[0] / have[0], want[1] / have[1])
    covering = [max(want[0], round(have[0] * scale)), max(want[1], round(have[1] * scale))]
    top, left = (covering[0] - want[0]) // 2, (covering[1] - want[1]) // 2
    scaled = tvf.resize(images, covering, antialias=True)
    oracle = scaled[..., top : top + want[0], left : left + want[1]]
    torch.testing.assert_close(fit_size(images, want), oracle)
    # And it is what reading real data does, up to the rounding of 8 bits.
    pixels = (images[0] * 255).round().to(torch.uint8)
    read, _ = imageread.fit_size(pixels.numpy(), want)
    assert (fit_size(pixels[None].float(), want)[0] - torch.from_numpy(read)).abs().max() < 1.01


def test_channels() -> None:
    grey, colour = picture(1, 4, 4), picture(2, 3, 4, 4)
    assert torch.equal(fit_channels(grey, 3), grey.repeat(3, 1, 1))
    pixels = (colour[0] * 255).round().to(torch.uint8)
    pillow = np.asarray(Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L"))
    ours = fit_channels(pixels.float(), 1)[0]
    assert (ours - torch.from_numpy(pillow.astype(np.float32))).abs().max() <= 1
    assert fit_statistics([0.5], [0.2], 3) == ([0.5] * 3, [0.2] * 3)
    mean, std = fit_statistics([0.1, 0.2, 0.3], [0.2, 0.2, 0.2], 1)
    assert mean == pytest.approx([0.1 * 0.299 + 0.2 * 0.587 + 0.3 * 0.114])
    assert std == pytest.approx([0.2])
    with pytest.raises(UsageError, match="2 channels cannot"):
        fit_channels(picture(2, 4, 4), 3)


def test_loading_in_another_form(toy: Path) -> None:
    plain = load_distilled(toy)
    ds = load_distilled(toy, size=(12, 10), channels=1, dtype=torch.float64, normalize=True)
    assert ds.images.shape == (30, 1, 12, 10)
    assert ds[0][0].dtype == torch.float64
    mean, std = fit_statistics(plain.mean, plain.std, 1)
    assert ds.mean == pytest.approx(mean)
    want = (fit_size(fit_channels(plain.images, 1), (12, 10)) - mean[0]) / std[0]
    torch.testing.assert_close(ds.images, want.double(), atol=1e-6, rtol=1e-6)
    assert load_distilled(toy, size=5).images.shape == (30, 3, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_what_is_handed_out(toy: Path, dtype: torch.dtype) -> None:
    seen = []

    def transform(image: Tensor) -> Tensor:
        seen.append(image.dtype)
        return image

    for given in (
        {},
        {"fuse": "mixup"},
        {"transform": transform},
        {"fuse": "cutmix", "normalize": True},
    ):
        ds = load_distilled(toy, dtype=dtype, **given)
        assert ds[0][0].dtype == dtype
        images, labels = next(iter(ds.batches(4)))
        assert images.dtype == dtype
        assert labels.dtype == (torch.float32 if "fuse" in given else torch.int64)
        reference = load_distilled(toy, **given)
        expected, found = reference[3][0], ds[3][0].float()
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    "given", [{}, {"size": 12}, {"size": (6, 9), "channels": 1}, {"dtype": torch.float64}]
)
@pytest.mark.parametrize("normalize", [False, True])
def test_train_and_test_images_go_through_the_same(
    toy: Path, given: dict[str, Any], normalize: bool
) -> None:
    # A test image equal to a training image must come out as that training image.
    raw = load_distilled(toy).images.clamp(0, 1)
    ds = load_distilled(toy, normalize=normalize, **given)
    transform = ds.test_transform()
    direct = Form((3, 8, 8), given.get("channels"), as_size(given.get("size")))(raw)
    wanted = ds.normalized(direct) if normalize else direct
    torch.testing.assert_close(transform(raw), wanted.to(ds.dtype), atol=1e-5, rtol=1e-5)
    one = transform(raw[3])
    assert one.shape == ds[3][0].shape
    assert one.dtype == ds[3][0].dtype
    torch.testing.assert_close(one, transform(raw)[3], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pickle.loads(pickle.dumps(transform))(raw[3]), one)


def test_test_images_of_any_kind() -> None:
    transform = EvalTransform(Form((3, 8, 8)), None, None, torch.float32)
    pixels = (picture(3, 8, 8) * 255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    want = pixels.float() / 255
    kinds: list[Any] = [
        pixels,
        want,
        array,
        Image.fromarray(array),
        v2.ToImage()(Image.fromarray(array)),
    ]
    for kind in kinds:
        assert torch.equal(transform(kind), want)
    grey = transform(Image.fromarray(array[:, :, 0]))
    assert torch.equal(grey, want[:1].expand(3, 8, 8))
    assert torch.equal(transform(array[:, :, 0]), grey)
    assert transform(Image.new("RGB", (20, 14))).shape == (3, 8, 8)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (transform(clear) == 1).all()  # transparent is white
    assert transform(pixels[None].repeat(5, 1, 1, 1)).shape == (5, 3, 8, 8)
    assert "size=(8, 8)" in repr(transform)


def test_a_grey_set_shown_in_colour_sees_grey_test_images() -> None:
    form = Form((1, 4, 4), channels=3, size=(8, 8))
    out = EvalTransform(form, None, None, torch.float32)(picture(3, 16, 16))
    assert out.shape == (3, 8, 8)
    assert torch.equal(out[0], out[2])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture(3, 8, 8) * 255, r"expected floats in \[0, 1\]"),
        ((picture(3, 8, 8) - 0.5) / 0.2, "leave out other normalisation"),
        (torch.ones(3, 8, 8, dtype=torch.int64), "is torch.int64"),
        (torch.ones(8, 8), r"shape \(8, 8\)"),
        ("image.png", "is a str"),
    ],
)
def test_test_images_that_cannot_be_meant(image: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EvalTransform(Form((3, 8, 8)), None, None, torch.float32)(image)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": (3, 4, 5)}, "expected a side such as 64"),
        ({"size": 8.5}, "size is 8.5"),
        ({"channels": 2}, "channels is 2"),
        ({"dtype": torch.uint8}, "expected a float type"),
        ({"dtype": "float32"}, "expected a float type"),
    ],
)
def test_forms_that_cannot_be_meant(toy: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_distilled(toy, **given)
