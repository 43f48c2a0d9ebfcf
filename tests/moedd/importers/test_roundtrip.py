"""What was imported and exported again: the same tensors, the same labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import releasefactories as made
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from moedd.importers import Answers, Choice, Imported, Request, import_release
from moedd_loaders.read import read_tensors
from moedd_publish.export import export_set

NAMES = ",".join(made.CLASSES)
NORMALIZED = {"space": "normalized:cifar10", "classes": NAMES}
CLOSE = 2e-6
"""Of values around 1 to 5: some units in the last place of float32, times 1 / std."""


def taken(tmp_path: Path, path: Path, name: str = "taken", **said: Any) -> Imported:
    request = Request(str(path), Answers(**said), Choice(), name)
    return import_release(request, tmp_path / "sets")


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("method", ["dm", "idm"])
def test_dc(tmp_path: Path, method: str) -> None:
    path = made.make_dc(tmp_path)
    decode = None if method == "dm" else "2"
    found = taken(tmp_path, path, **NORMALIZED, method=method, decode=decode)
    export_set(found.folder, tmp_path / "out", "dc")
    (images, labels), *more = load(tmp_path / "out" / path.name)["data"]
    assert not more
    near(images, made.pixels())
    assert torch.equal(labels, made.by_class())


@pytest.mark.parametrize("space", ["unit", "normalized:cifar10", "normalized:imagenet"])
@pytest.mark.parametrize("to", ["mtt", "ddranking"])
def test_tensor_files(tmp_path: Path, to: str, space: str) -> None:
    make = made.make_mtt if to == "mtt" else made.make_ddranking
    path = make(tmp_path / "run")
    found = taken(tmp_path, path, method="mtt", space=space, classes=NAMES)
    files = export_set(found.folder, tmp_path / "out", to)
    near(load(tmp_path / "out" / path.name), made.pixels())
    labels = next(file for file in files if file.name.startswith("labels"))
    assert torch.equal(load(labels), made.by_class())


def test_what_leaves_comes_back_the_same(tmp_path: Path) -> None:
    """An export is a release: importing it again with the same words gives the same set."""
    path = made.make_mtt(tmp_path / "run", lr=0.02)
    said = {"method": "mtt", "space": "normalized:cifar10", "classes": NAMES}
    first = taken(tmp_path, path, **said)
    export_set(first.folder, tmp_path / "out", "mtt")
    again = taken(tmp_path, tmp_path / "out", "again", **said)
    one, other = (read_tensors(found.folder, found.manifest).images for found in (first, again))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert again.manifest.experts[0].step_size == first.manifest.experts[0].step_size


def test_whitened_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    matrix = torch.eye(192) * 2 + 0.02 * torch.randn(192, 192, generator=generator)
    save_file({"mean": torch.rand(192, generator=generator), "matrix": matrix},
              tmp_path / "w.safetensors")  # fmt: skip
    images = made.pixels() * 0.25
    path = made.make_mtt(tmp_path / "run", images)
    found = taken(tmp_path, path, method="mtt", space=f"zca:{tmp_path / 'w.safetensors'}",
                  classes=NAMES)  # fmt: skip
    export_set(found.folder, tmp_path / "out", "mtt")
    near(load(tmp_path / "out" / "images_best.pt"), images)
    assert torch.equal(load_file(tmp_path / "out" / "whitening.safetensors")["matrix"], matrix)


def test_soft_labels(tmp_path: Path) -> None:
    rows = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    rows[torch.arange(6), made.by_class()] += 1
    rows /= rows.sum(1, keepdim=True)
    for kind, labels in (("probabilities", rows), ("logits", rows.log() + 3)):
        path = made.make_mtt(tmp_path / kind, labels=labels)
        found = taken(tmp_path, path, kind, **NORMALIZED, method="datm", soft_labels=kind)
        export_set(found.folder, tmp_path / f"out-{kind}", "mtt")
        back = load(tmp_path / f"out-{kind}" / "labels_best.pt")
        if kind == "probabilities":
            assert torch.equal(back, rows)
        else:  # logits are what softmax makes of them
            torch.testing.assert_close(back.softmax(1), labels.softmax(1))


def test_idc_idm_and_kip_leave_as_tensors(tmp_path: Path) -> None:
    idc = taken(tmp_path, made.make_idc(tmp_path), "idc", method="idc", space="unit", decode="2",
                classes=NAMES)  # fmt: skip
    export_set(idc.folder, tmp_path / "idc", "ddranking", space="trained")
    assert torch.equal(load(tmp_path / "idc" / "images.pt"), made.pixels() * 0.3 + 0.5)
    idm = taken(tmp_path, made.make_idm(tmp_path), "idm", **NORMALIZED, decode="2")
    (file,) = [p for p in export_set(idm.folder, tmp_path / "idm", "dc") if p.suffix == ".pt"]
    assert file.name == "res_IDM_UNKNOWN_unknown_2ipc.pt"
    near(load(file)["data"][0][0], made.pixels())
    kip = taken(tmp_path, made.make_kip(tmp_path), "kip", **NORMALIZED)
    export_set(kip.folder, tmp_path / "kip", "ddranking", space="trained")
    near(load(tmp_path / "kip" / "images.pt"), made.pixels())
    assert torch.equal(load(tmp_path / "kip" / "labels.pt"), made.by_class())


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_pictures(tmp_path: Path, ending: str) -> None:
    names = ("cat", "dog", "owl")
    root = made.make_folders(tmp_path / "release", names, ending=ending)
    found = taken(tmp_path, root, method="sre2l")
    export_set(found.folder, tmp_path / "out", "imagefolder")
    for name in names:
        before = sorted((root / name).iterdir())
        after = sorted((tmp_path / "out" / "train" / name).iterdir())
        assert len(before) == len(after) == 2
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
    again = taken(tmp_path, tmp_path / "out", "again", method="sre2l")
    assert again.manifest.content_sha256 == found.manifest.content_sha256


def test_a_hub_set(tmp_path: Path) -> None:
    found = taken(tmp_path, made.make_parquet(tmp_path / "clone"), method="sre2l")
    files = export_set(found.folder, tmp_path / "out", "imagefolder")
    pngs = [path for path in files if path.suffix == ".png"]
    pixels = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in pngs])
    assert np.array_equal(pixels, made.pictures())
    lines = (tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == made.by_class().tolist()
