from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moedd_publish import preview_grid


def draw(
    path: Path,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 2,
    experts: int = 2,
    ipc: int = 3,
    value: float | None = None,
) -> np.ndarray:
    n = classes * experts * ipc
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, *shape, generator=generator)
    if value is not None:
        images = torch.full_like(images, value)
    labels = torch.arange(classes).repeat_interleave(ipc).repeat(experts)
    owners = torch.arange(experts).repeat_interleave(classes * ipc)
    names = [f"name {c}" for c in range(classes)]
    preview_grid(images, labels, owners, names, path / "p.png", title="a-set")
    with Image.open(path / "p.png") as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def blocks(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(-1).sum())


def test_every_image_is_there_enlarged(tmp_path: Path) -> None:
    # Images of one colour that nothing else has: their area is the number of images times 96².
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 3, 32, 32, generator=generator)
    images[5] = torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1)
    labels = torch.arange(2).repeat_interleave(3).repeat(2)
    experts = torch.arange(2).repeat_interleave(6)
    preview_grid(images, labels, experts, ["a", "b"], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert blocks(np.asarray(picture), (255, 0, 128)) == 96 * 96


def test_small_images_keep_their_pixels(tmp_path: Path) -> None:
    # A single image: find its block by the known pixels, each enlarged by a whole factor.
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, 0, 0] = image[0, 1, 0, 1] = image[0, 2, 1, 0] = 1.0
    zero = torch.zeros(1, dtype=torch.int64)
    preview_grid(image, zero, zero, ["a"], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)):
        ys, xs = np.nonzero((pixels == colour).all(-1))
        if colour != (0, 0, 0):
            assert len(ys) == 48 * 48
            assert (np.ptp(ys), np.ptp(xs)) == (47, 47)


def test_names_and_headings_are_written(tmp_path: Path) -> None:
    one = draw(tmp_path, classes=2, value=1.0)
    dark = (one < 128).all(-1)
    # White images on white paper: all ink is text. Title and headings on top, names at the left.
    rows = np.nonzero(dark.any(1))[0]
    columns = np.nonzero(dark[70:].any(0))[0]
    assert rows.min() < 40
    assert columns.max() < 90
    assert dark[70:].any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 13), (3, 33, 17), (3, 224, 200), (3, 1, 300)])
def test_any_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    pixels = draw(tmp_path, shape)
    assert pixels.shape[0] < 800
    assert pixels.shape[1] < 1200


def test_many_classes_and_experts_stay_a_picture(tmp_path: Path) -> None:
    pixels = draw(tmp_path, (3, 32, 32), classes=200, experts=12, ipc=2)
    assert pixels.shape[0] < 2300
    assert pixels.shape[1] < 2300


def test_unequal_counts_long_names_and_nan(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0] = float("nan")
    labels, experts = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])
    names = ["a very " + "very " * 50 + "long name\nwith a line break", "ü 日本"]
    preview_grid(images, labels, experts, names, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width < 1000
        # Two images of each class and expert would fit: five of the eight places are empty.
        assert blocks(np.asarray(picture), (236, 238, 243)) == 5 * 96 * 96


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    draw(tmp_path)
    first = (tmp_path / "p.png").read_bytes()
    draw(tmp_path)
    assert (tmp_path / "p.png").read_bytes() == first
