"""The three front doors: plain `datasets`, plain `webdataset`, plain `safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import factories
import numpy as np
import pytest
import webdataset
from safetensors.numpy import load_file

from moedd_loaders.hashes import content_sha256, view_sha256
from moedd_loaders.manifest import read_manifest

SHAPES = [(3, 8, 8), (1, 9, 13)]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Five images per class with four rows to a shard: experts have several shards.
    path = tmp_path_factory.mktemp("sets") / "toy-idm+idm_plain-5x2"
    factories.make_set(path, ipc=5, shape=request.param, rows_per_shard=4)
    return path


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(folder / "tensors" / "distilled.safetensors")
    return found


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[dict[str, Any]]:
    tars = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    assert len(tars) == 8
    return list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))


def view(images: np.ndarray) -> np.ndarray:
    """Rounded and clipped, computed without torch; channels last, no axis for one channel."""
    pixels = np.rint(np.clip(images, 0, 1) * np.float32(255)).astype(np.uint8)
    return (
        pixels.transpose(0, 2, 3, 1).squeeze(-1)
        if images.shape[1] == 1
        else pixels.transpose(0, 2, 3, 1)
    )


def load(folder: Path, cache: Path, *name: str) -> Any:
    return datasets.load_dataset(str(folder), *name, cache_dir=str(cache))


def test_safetensors(tensors: dict[str, np.ndarray]) -> None:
    assert {k: str(v.dtype) for k, v in tensors.items()} == {
        "images": "float32",
        "labels": "int64",
        "experts": "int64",
        "k": "int64",
    }
    outside = np.mean((tensors["images"] < 0) | (tensors["images"] > 1))
    assert outside > 0.2, "the factory's images must leave the range, or clipping is not tested"
    order = list(zip(tensors["experts"], tensors["labels"], tensors["k"], strict=True))
    assert order == sorted(order)
    assert len(set(order)) == len(order) == 30


def test_webdataset_has_the_very_bits(
    samples: list[dict[str, Any]], tensors: dict[str, np.ndarray], folder: Path
) -> None:
    floats = np.stack([sample["npy"] for sample in samples])
    assert floats.dtype == np.float32
    assert floats.tobytes() == tensors["images"].tobytes()
    assert [sample["cls"] for sample in samples] == tensors["labels"].tolist()
    assert [s["json"]["expert"] for s in samples] == tensors["experts"].tolist()
    assert [s["json"]["k"] for s in samples] == tensors["k"].tolist()
    classes = read_manifest(folder).classes
    assert all(s["json"]["class"] == classes[s["cls"]] for s in samples)
    # webdataset's "pil" decodes grey images as they are, so no conversion hides a difference.
    pixels = np.stack([np.asarray(sample["png"]) for sample in samples])
    if pixels.ndim == 4 and tensors["images"].shape[1] == 1:
        pixels = pixels[..., 0]
    assert np.array_equal(pixels, view(tensors["images"]))


def test_datasets(
    folder: Path, tmp_path: Path, tensors: dict[str, np.ndarray], samples: list[dict[str, Any]]
) -> None:
    loaded = load(folder, tmp_path)
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert rows.column_names == ["id", "image", "label", "expert", "method", "k"]
    assert rows.features["label"].names == read_manifest(folder).classes
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows["label"][:] == tensors["labels"].tolist()
    assert rows["expert"][:] == tensors["experts"].tolist()
    assert rows["k"][:] == tensors["k"].tolist()
    assert rows["id"][:] == [sample["__key__"] for sample in samples]
    assert rows["method"][0] == "idm"
    assert rows["method"][-1] == "idm_plain"
    pixels = np.stack([np.asarray(image) for image in rows["image"]])
    assert np.array_equal(pixels, view(tensors["images"]))


def test_datasets_by_expert(folder: Path, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    loaded = load(folder, tmp_path, "by_expert")
    assert list(loaded) == ["expert_0", "expert_1"]
    for expert in range(2):
        mine = tensors["labels"][tensors["experts"] == expert]
        assert loaded[f"expert_{expert}"]["label"][:] == mine.tolist()
        assert set(loaded[f"expert_{expert}"]["expert"][:]) == {expert}


def test_datasets_reads_the_tars_too(
    folder: Path, tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    files = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path)
    )
    floats = np.asarray(rows.with_format("numpy")["npy"][:], np.float32)
    assert np.array_equal(floats, tensors["images"])


def test_hashes_agree_across_containers(
    folder: Path, samples: list[dict[str, Any]], tensors: dict[str, np.ndarray]
) -> None:
    import torch

    manifest = read_manifest(folder)
    ids = [sample["json"]["id"] for sample in samples]
    labels = torch.tensor([sample["cls"] for sample in samples])
    experts = torch.tensor([sample["json"]["expert"] for sample in samples])
    floats = torch.from_numpy(np.stack([sample["npy"] for sample in samples]))
    assert content_sha256(ids, labels, experts, floats) == manifest.content_sha256
    pixels = view(tensors["images"]).reshape(len(ids), *manifest.shape[1:], manifest.shape[0])
    channels_first = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    assert view_sha256(ids, labels, experts, channels_first) == manifest.view_sha256


def test_info_counts_what_the_tars_hold(folder: Path, samples: list[dict[str, Any]]) -> None:
    info = json.loads((folder / "webdataset" / "_info.json").read_text())["splits"]["train"]
    assert info["name"] == "train"
    assert info["num_samples"] == len(samples)
    counts = [
        len(list(webdataset.WebDataset(str(folder / "webdataset" / name), shardshuffle=False)))
        for name in info["filenames"]
    ]
    assert info["shard_lengths"] == counts == [4, 4, 4, 3, 4, 4, 4, 3]
