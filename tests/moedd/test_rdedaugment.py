"""What RDED's students see: permuted mosaics, crops as torchvision draws them, mirror images."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from moedd.rdedaugment import augment_rded, crop_box


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_mosaics_only_mirroring_is_left() -> None:
    """RandomResizedCrop of the whole area is the whole image (notes, section 4)."""
    images = torch.randn(200, 3, 8, 8, generator=generator(9))
    seen = augment_rded(images, generator(), 1, flip=True)
    mirrored = torch.tensor([torch.equal(s, i.flip(2)) for s, i in zip(seen, images, strict=True)])
    same = torch.tensor([torch.equal(s, i) for s, i in zip(seen, images, strict=True)])
    assert (mirrored ^ same).all()
    # Binomial(200, 1/2): five standard deviations are 35.
    assert abs(int(mirrored.sum()) - 100) < 36
    assert torch.equal(augment_rded(images, generator(), 1, flip=False), images)


def test_columns_and_rows_of_crops_are_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moedd.rdedaugment._cropped", lambda image, factor, generator: image)
    cells = torch.arange(9.0).view(1, 1, 3, 3)
    images = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(300, 1, 6, 6)
    seen = augment_rded(images, generator(), 3, flip=False)
    grids = {tuple(image[0, ::2, ::2].flatten().tolist()) for image in seen}
    grid = cells[0, 0]
    possible = {
        tuple(grid[list(rows)][:, list(columns)].flatten().tolist())
        for rows in permutations(range(3))
        for columns in permutations(range(3))
    }
    # 36 arrangements in 300 draws: each is missed with probability (35/36)^300, 0.02 %.
    assert grids == possible
    assert torch.equal(seen[:, :, 1::2, 1::2], seen[:, :, ::2, ::2])  # crops stay whole


def test_crops_are_those_of_torchvision() -> None:
    """The same distribution: areas, ratios and the share of falls to the centred crop."""
    height, width, n = 32, 40, 3000
    ours, theirs = [], []
    image, draws = torch.empty(3, height, width), generator(5)
    torch.manual_seed(0)
    for _ in range(n):
        ours.append(crop_box(height, width, 0.5, draws))
        theirs.append(RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]))
    a, b = torch.tensor(ours).double(), torch.tensor(theirs).double()
    for columns in (a, b):
        assert (columns[:, 0] + columns[:, 2] <= height).all()
        assert (columns[:, 1] + columns[:, 3] <= width).all()
        assert (columns >= 0).all()
    for name, measure in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }.items():
        x, y = measure(a), measure(b)
        error = ((x.var() + y.var()) / n).sqrt()
        assert abs(float(x.mean() - y.mean())) < 4 * float(error), name
        assert float(x.std() / y.std()) == pytest.approx(1, abs=0.08), name


@pytest.mark.parametrize(("size", "box"), [((8, 32), (0, 10, 8, 11)), ((32, 8), (10, 0, 11, 8))])
def test_what_no_ratio_fits_is_the_largest_centred_crop(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert crop_box(*size, 1.0, generator()) == box


def test_crops_come_back_at_full_size_and_are_repeatable() -> None:
    images = torch.rand(5, 3, 16, 16, generator=generator(2))
    seen = augment_rded(images, generator(3), 2, flip=True)
    assert seen.shape == images.shape
    assert seen.dtype == images.dtype
    # Bilinear values lie between those of the image.
    assert (seen.amin((1, 2, 3)) >= images.amin((1, 2, 3)) - 1e-6).all()
    assert (seen.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-6).all()
    assert torch.equal(augment_rded(images, generator(3), 2, flip=True), seen)
    assert not torch.equal(augment_rded(images, generator(4), 2, flip=True), seen)
