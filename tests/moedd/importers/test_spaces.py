"""Conversions to unit space against float64, and whitenings that are named, fitted or singular."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import releasefactories as made
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from moedd.importers import Answers, Choice, Request, import_release
from moedd.importers.spaces import convert
from moedd_loaders.errors import DataError, UsageError
from moedd_loaders.read import read_tensors

GREY = (1, 8, 8)


@settings(deadline=None, max_examples=25)
@given(
    mean=st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3),
    std=st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3),
)
def test_normalised_there_and_back(mean: list[float], std: list[float]) -> None:
    images = made.pixels()
    found = convert(images, Answers(space="normalized", mean=tuple(mean), std=tuple(std)))
    m, s = (np.array(values)[None, :, None, None] for values in (mean, std))
    expected = images.double().numpy() * s + m
    np.testing.assert_allclose(found.images.double().numpy(), expected, rtol=1e-7, atol=1e-7)
    back = (found.images.double().numpy() - m) / s
    assert np.abs(back - images.double().numpy()).max() < 1e-5


def whitening(tmp_path: Path, scale: float = 1.0) -> Path:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator).double())[0]
    matrix = basis @ torch.diag(torch.linspace(0.3, 3.0, 64).double() * scale) @ basis.T
    path = tmp_path / "zca.safetensors"
    save_file({"mean": torch.rand(64, generator=generator), "matrix": matrix.float()}, path)
    return path


def taken(tmp_path: Path, path: Path, **said: Any) -> Any:
    names = ",".join(made.CLASSES)
    request = Request(str(path), Answers(**{"method": "mtt", "classes": names, **said}), Choice(),
                      "taken")  # fmt: skip
    return import_release(request, tmp_path / "sets")


def test_a_whitening_in_a_file(tmp_path: Path) -> None:
    file = whitening(tmp_path)
    images = made.pixels(shape=GREY) * 0.2
    path = made.make_mtt(tmp_path / "run", images)
    found = taken(tmp_path, path, space=f"zca:{file}")
    tensors = {key: value.double().numpy() for key, value in load_file(file).items()}
    flat = images.double().numpy().reshape(6, -1)
    expected = flat @ np.linalg.inv(tensors["matrix"]) + tensors["mean"]
    stored = read_tensors(found.folder, found.manifest).images
    np.testing.assert_allclose(stored.numpy().reshape(6, -1), expected, rtol=0, atol=1e-6)
    entry = found.manifest.experts[0]
    assert entry.trained_in.space == "zca"
    assert entry.trained_in.matrix in found.manifest.files
    carried = load_file(found.folder / entry.trained_in.matrix)
    assert torch.equal(carried["matrix"], load_file(file)["matrix"])
    assert found.record["said"]["space"] == "zca:zca.safetensors"


def test_a_whitening_that_is_fitted_to_the_real_data(tmp_path: Path) -> None:
    """MTT's scripts fit it anew in each run: the same numbers follow from the same data."""
    from moedd.realdata import load_real

    real = load_real("digits").train.images.double().numpy().reshape(-1, 64) / 255
    mean = real.mean(0)
    covariance = (real - mean).T @ (real - mean) / (len(real) - 1)
    spectrum, basis = np.linalg.eigh(covariance)
    matrix = basis @ np.diag((np.clip(spectrum, 0, None) + 0.1) ** -0.5) @ basis.T
    pixels = load_digits().images[:6] / 16
    white = torch.from_numpy(((pixels.reshape(6, -1) - mean) @ matrix).reshape(6, *GREY)).float()
    labels = made.by_class(10, 1)[[0, 1, 2, 3, 4, 5]]
    path = made.make_mtt(tmp_path / "run", white, labels)
    found = taken(tmp_path, path, space="zca", data="digits", classes=None)
    stored = read_tensors(found.folder, found.manifest).images
    np.testing.assert_allclose(stored.numpy()[:, 0], pixels, atol=2e-5)
    assert "fitted by moedd to the 1438 training images" in "".join(found.manifest.source.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["matrix"].zero_(), "has no inverse"),
        (lambda t: t["matrix"].fill_(torch.nan), "has no inverse"),
        (lambda t: t["matrix"][0].copy_(t["matrix"][1]), "has no inverse"),
        (lambda t: t.pop("mean"), "expected mean"),
        (lambda t: t.update(matrix=torch.eye(3)), "expected mean"),
    ],
)
def test_what_cannot_be_brought_back_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    file = whitening(tmp_path)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    path = made.make_mtt(tmp_path / "run", made.pixels(shape=GREY))
    with pytest.raises(DataError, match=said):
        taken(tmp_path, path, space=f"zca:{file}")


def test_whitening_without_matrix_or_data(tmp_path: Path) -> None:
    path = made.make_mtt(tmp_path / "run", made.pixels(shape=GREY))
    with pytest.raises(UsageError, match=r"give zca:FILE\.safetensors"):
        taken(tmp_path, path, space="zca")
    with pytest.raises(DataError, match="there is no whitening file"):
        taken(tmp_path, path, space="zca:nowhere.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="is no safetensors file"):
        taken(tmp_path, path, space=f"zca:{tmp_path / 'bad.safetensors'}")
