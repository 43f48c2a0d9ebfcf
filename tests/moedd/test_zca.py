"""ZCA: a symmetric, invertible map that travels with a set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from enginefactories import digits, random_data
from factories import make_rows, make_set, make_source

from moedd.parts import whole
from moedd.zca import EPS, Whitening, check_zca, fit_zca, load_zca, save_zca, space_of
from moedd_loaders.errors import DataError, InvalidSetError, UsageError
from moedd_loaders.manifest import TrainedIn
from moedd_loaders.validate import validate_set
from moedd_publish import ExpertRows

PART = whole(digits(3, 40))


def test_it_is_the_references_matrix() -> None:
    """By the singular value decomposition of the covariance, as the reference has it."""
    found = fit_zca(PART)
    x = PART.images.double().flatten(1) / 255
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / (len(x) - 1)
    u, s, _ = torch.linalg.svd(covariance)
    expected = u @ torch.diag((s + EPS).rsqrt()) @ u.T
    torch.testing.assert_close(found.mean.double(), x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-5, atol=1e-5)
    white = found.whiten(PART.unit(torch.arange(len(x))))
    torch.testing.assert_close(
        white.flatten(1).double(), (x - x.mean(0)) @ expected, rtol=1e-4, atol=1e-4
    )
    spectrum = torch.linalg.eigvalsh(white.flatten(1).double().T.cov())
    torch.testing.assert_close(spectrum.max(), (s / (s + EPS)).max(), rtol=1e-3, atol=1e-3)


def test_it_is_inverted_exactly_and_without_clipping() -> None:
    space = fit_zca(PART)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(space.unit(space.whiten(images)), images, rtol=1e-4, atol=1e-4)
    assert space.unit(images).abs().max() > 1


def test_the_order_of_the_images_does_not_matter() -> None:
    order = torch.randperm(len(PART.labels), generator=torch.Generator().manual_seed(1))
    other = fit_zca(replace(PART, images=PART.images[order]))
    torch.testing.assert_close(other.matrix, fit_zca(PART).matrix, rtol=1e-5, atol=1e-5)


def test_a_pixel_that_never_changes_and_a_single_image_stay_finite() -> None:
    one = replace(PART, images=PART.images[:1])
    for part in (PART, one):  # digits' corners are black in every image
        assert fit_zca(part).matrix.isfinite().all()


def test_it_is_kept_on_disk_to_the_bit(tmp_path: Path) -> None:
    space = fit_zca(PART)
    save_zca(tmp_path / "w.safetensors", space)
    again = load_zca(tmp_path / "w.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(vars(space).values(), vars(again).values(), strict=True)
    )


def test_images_that_are_too_large_are_refused() -> None:
    check_zca((3, 64, 64))
    with pytest.raises(UsageError, match=r"3x128x128 needs a matrix of 49152 .* leave zca off"):
        check_zca((3, 128, 128))
    with pytest.raises(UsageError, match="zca=true"):
        fit_zca(whole(random_data((2, 2), (3, 72, 72))))


# -- in a set --------------------------------------------------------------------------------
def rows(space: Whitening | None, seed: int = 0) -> ExpertRows:
    """One expert that was trained in `space` (None: normalised)."""
    source = make_source(3, (1, 8, 8))
    if space is None:
        return make_rows(source, [2, 2, 2], seed=seed)
    path, data = space.file()
    return make_rows(
        source, [2, 2, 2], seed=seed, method="mtt", files={path: data},
        trained_in=TrainedIn(space="zca", matrix=path),
    )  # fmt: skip


def test_a_set_carries_its_matrix_once(tmp_path: Path) -> None:
    space = fit_zca(PART)
    folder = tmp_path / "s"
    made = make_set(folder, shape=(1, 8, 8), experts=[rows(space), rows(space, 1)])
    manifest = validate_set(folder)
    assert manifest.training_sha256 == made.training_sha256
    path, data = space.file()
    assert [name for name in manifest.files if "zca" in name] == [path]
    assert (folder / path).read_bytes() == data
    found = space_of(manifest, folder)
    assert found is not None
    assert torch.equal(found.matrix, space.matrix)
    assert torch.equal(found.mean, space.mean)


def test_experts_of_different_spaces_have_none_in_common(tmp_path: Path) -> None:
    one, other = fit_zca(PART), fit_zca(whole(digits(3, 20)))
    for number, experts in enumerate(([one, other], [one, None], [None])):
        folder = tmp_path / f"s{number}"
        made = make_set(folder, shape=(1, 8, 8), experts=[rows(e) for e in experts])
        assert space_of(made, folder) is None


def test_a_matrix_that_is_missing_damaged_or_of_another_size_is_named(tmp_path: Path) -> None:
    space = fit_zca(PART)
    folder = tmp_path / "s"
    made = make_set(folder, shape=(1, 8, 8), experts=[rows(space)])
    path = folder / space.file()[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InvalidSetError, match="sha256"):
        space_of(made, folder)
    path.unlink()
    with pytest.raises(InvalidSetError, match="missing"):
        space_of(made, folder)
    small = Whitening(torch.zeros(4), torch.eye(4))
    other = make_set(tmp_path / "t", shape=(1, 8, 8), experts=[rows(small)])
    with pytest.raises(InvalidSetError, match=r"expected mean \(64,\) and matrix \(64, 64\)"):
        space_of(other, tmp_path / "t")


def test_a_named_matrix_must_be_given(tmp_path: Path) -> None:
    lacking = replace(rows(fit_zca(PART)), files={})
    with pytest.raises(DataError, match=r"expert 0 \(mtt\) was trained in the space of"):
        make_set(tmp_path / "s", shape=(1, 8, 8), experts=[lacking])
    assert not (tmp_path / "s").exists()
