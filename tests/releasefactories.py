"""Files as other projects release them, made here: one maker per format, small made-up pixels."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""The constants that the field normalises CIFAR-10 by."""
CLASSES = ("cat", "dog", "owl")


def pixels(
    count: int = 6, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0, spread: float = 1.1
) -> Tensor:
    """Normalised-looking images (count, C, H, W) float32."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * spread


def by_class(classes: int = 3, ipc: int = 2) -> Tensor:
    """Class numbers in order, int64."""
    return torch.arange(classes).repeat_interleave(ipc)


def make_dc(
    folder: Path,
    images: Sequence[Tensor] | None = None,
    labels: Tensor | None = None,
    *,
    method: str = "DM",
    data: str = "CIFAR10",
    ipc: int = 2,
) -> Path:
    """`res_DM_CIFAR10_ConvNet_2ipc.pt` of one experiment for each tensor of images.

    Accuracies are `numpy.float64`, as the scripts store them.
    """
    sets = [pixels()] if images is None else list(images)
    numbers = by_class() if labels is None else labels
    whole = {
        "data": [[one, numbers] for one in sets],
        "accs_all_exps": {"ConvNet": [np.float64(0.25), np.mean([0.2, 0.4])]},
    }
    path = folder / f"res_{method}_{data}_ConvNet_{ipc}ipc.pt"
    torch.save(whole, path)
    return path


def make_idm(
    folder: Path, images: Tensor | None = None, labels: Tensor | None = None, *, device: str = "cpu"
) -> Path:
    """IDM's best set, a plain pickle; with another device as if it had been saved from there."""
    place = folder / "CIFAR10_ipc_2_aug_True_model_ConvNet"
    place.mkdir(parents=True, exist_ok=True)
    path = place / "acc_0.5863.pkl"
    pair = (pixels() if images is None else images, by_class() if labels is None else labels)
    # The tag is all that a file knows of its device.
    with mock.patch("torch.serialization.location_tag", return_value=device):
        path.write_bytes(pickle.dumps(pair))
    return path


def make_mtt(
    folder: Path,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    lr: float | Tensor | None = None,
    *,
    name: str = "images_best.pt",
) -> Path:
    """`images_best.pt` and its companions; lr as DATM stores it, a tensor of one number."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.removesuffix(".pt").replace("images_zca", "images")
    torch.save(pixels() if images is None else images, folder / name)
    found = by_class() if labels is None else labels
    torch.save(found, folder / f"{stem.replace('images', 'labels')}.pt")
    if lr is not None:
        torch.save(torch.as_tensor(lr), folder / f"{stem.replace('images', 'lr')}.pt")
    return folder / name


def make_idc(folder: Path, images: Tensor | None = None, labels: Tensor | None = None) -> Path:
    """`data.pt`: [images in unit space, labels]; some pixels lie outside of [0, 1]."""
    unit = pixels() * 0.3 + 0.5 if images is None else images
    path = folder / "data.pt"
    torch.save([unit, by_class() if labels is None else labels], path)
    return path


def make_ddranking(
    folder: Path, images: Tensor | None = None, labels: Tensor | None = None
) -> Path:
    """`images.pt` and `labels.pt`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(pixels() if images is None else images, folder / "images.pt")
    torch.save(by_class() if labels is None else labels, folder / "labels.pt")
    return folder / "images.pt"


def make_kip(folder: Path, images: Tensor | None = None, labels: Any = None) -> Path:
    """An .npz of float64 images, channels last, and one-hot labels minus 1 / classes."""
    found = pixels() if images is None else images
    rows = np.eye(3)[by_class().numpy()] - 1 / 3 if labels is None else labels
    path = folder / "kip_cifar10_ConvNet_ssize6_nozca_nol_noaug_ckpt1000.npz"
    np.savez(path, images=found.double().permute(0, 2, 3, 1).numpy(), labels=rows)
    return path


def pictures(count: int = 6, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> np.ndarray:
    """8-bit images (count, C, H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture file of one (C, H, W) uint8 image."""
    array = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, kind)
    return buffer.getvalue()


def make_folders(
    root: Path,
    names: Sequence[str] = ("00000", "00001", "00002"),
    images: np.ndarray | None = None,
    *,
    ending: str = "jpg",
) -> Path:
    """Class folders as RDED (`00000/class00000_id00000.jpg`) or SRe2L (`new000/...`) has them."""
    found = pictures(2 * len(names)) if images is None else images
    per_class = len(found) // len(names)
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            data = encoded(found[c * per_class + k], "JPEG" if ending == "jpg" else "PNG")
            (root / name / f"class{c:05d}_id{k:05d}.{ending}").write_bytes(data)
    return root


def make_parquet(
    root: Path,
    images: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = CLASSES,
) -> Path:
    """A clone of a Hub set: `data/train-00000-of-00001.parquet` with image and label."""
    found = pictures() if images is None else images
    numbers = by_class().tolist() if labels is None else list(labels)
    column = [{"bytes": encoded(image), "path": None} for image in found]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label: dict[str, Any] = {"dtype": "int64", "_type": "Value"}
    if names is not None:
        label = {"names": list(names), "_type": "ClassLabel"}
    info = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    table = pa.table(
        [pa.array(column, kind), pa.array(numbers, pa.int64())],
        schema=pa.schema([("image", kind), ("label", pa.int64())], metadata={"huggingface": info}),
    )
    (root / "data").mkdir(parents=True)
    pq.write_table(table, root / "data" / "train-00000-of-00001.parquet")
    return root
