"""Reading the tensors of a set: all that training needs, exact, in one file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moedd_loaders.entries import check_entries
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import file_sha256, row_id
from moedd_loaders.identity import check_training
from moedd_loaders.manifest import CHECKSUMS, MANIFEST, TENSORS, Manifest
from moedd_loaders.sums import check_manifest_sum

__all__ = ["StoredSet", "check_file", "check_soft_labels", "expected_rows", "read_tensors"]


@dataclass(frozen=True)
class StoredSet:
    """The stored rows of a set, ordered (expert, label, k).

    Attributes:
        images: (N, C, H, W) float32 in unit space, not clipped, not decoded.
        labels, experts, k: (N,) int64: class, expert, place within class and expert.
        soft_labels: (N, classes) float32, or None.
        manifest, folder: where they come from.
    """

    images: Tensor
    labels: Tensor
    experts: Tensor
    k: Tensor
    soft_labels: Tensor | None
    manifest: Manifest
    folder: Path

    @property
    def ids(self) -> list[str]:
        """The N row ids."""
        rows = zip(self.experts.tolist(), self.labels.tolist(), self.k.tolist(), strict=True)
        return [row_id(*row) for row in rows]


def read_tensors(folder: Path | str, manifest: Manifest, verify: bool = True) -> StoredSet:
    """The rows of the set in `folder`, checked against its manifest.

    Args:
        verify: also compare the file's sha256, the hash of everything that training depends on
            and, where there is a `checksums.sha256`, that of the manifest (shapes, counts and
            values always are checked).

    Raises:
        InvalidSetError: the file is missing, damaged, or does not hold what the manifest says.
    """
    folder = Path(folder)
    check_entries(folder / MANIFEST, manifest)
    path = folder / TENSORS
    if verify or not path.is_file():
        check_file(folder, TENSORS, manifest)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, ValueError) as error:
        raise InvalidSetError(f"{path} is damaged: {error}") from None
    for key in ("images", "labels", "experts", "k"):
        if key not in tensors:
            raise InvalidSetError(f"{path} holds no tensor '{key}'")
    stored = StoredSet(
        images=tensors["images"],
        labels=tensors["labels"],
        experts=tensors["experts"],
        k=tensors["k"],
        soft_labels=tensors.get("soft_labels"),
        manifest=manifest,
        folder=folder,
    )
    _check_shapes(path, stored)
    _check_rows(path, stored)
    if stored.soft_labels is not None:
        check_soft_labels(path, stored.soft_labels, stored.experts, stored.labels, stored.k)
    if verify:
        check_training(stored)
        sums = folder / CHECKSUMS  # of a set elsewhere it is not fetched
        if sums.is_file():
            described = (folder / MANIFEST).read_bytes()
            check_manifest_sum(described, folder / MANIFEST, sums.read_bytes(), sums)
    return stored


def check_file(folder: Path, name: str, manifest: Manifest) -> None:
    """Compare one payload file with its entry in the manifest (size, then sha256)."""
    path = folder / name
    entry = manifest.files.get(name)
    if entry is None:
        raise InvalidSetError(f"the manifest of {folder} does not list {name}")
    if not path.is_file():
        raise InvalidSetError(f"{path} is missing: fetch or make the set again")
    size = path.stat().st_size
    if size != entry.size:
        raise InvalidSetError(
            f"{path} has {size} bytes, its manifest says {entry.size}: it was truncated or edited; "
            "fetch or make the set again"
        )
    if file_sha256(path) != entry.sha256:
        raise InvalidSetError(
            f"{path} is not the file of its manifest (sha256 differs): it was damaged or edited; "
            "fetch or make the set again"
        )


def _check_shapes(path: Path, stored: StoredSet) -> None:
    manifest = stored.manifest
    n = sum(sum(entry.stored_per_class) for entry in manifest.experts)
    expected: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]] = {
        "images": (stored.images, torch.float32, (n, *manifest.shape)),
        "labels": (stored.labels, torch.int64, (n,)),
        "experts": (stored.experts, torch.int64, (n,)),
        "k": (stored.k, torch.int64, (n,)),
    }
    if stored.soft_labels is not None:
        soft = (stored.soft_labels, torch.float32, (n, len(manifest.classes)))
        expected["soft_labels"] = soft
    for key, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise InvalidSetError(
                f"{path}: '{key}' is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the manifest says {dtype} {shape}"
            )
    if (stored.soft_labels is not None) != (manifest.labels.kind == "soft"):
        there = "holds no" if stored.soft_labels is None else "holds"
        raise InvalidSetError(
            f"{path} {there} soft labels, the manifest says {manifest.labels.kind} labels"
        )
    if not bool(torch.isfinite(stored.images).all()):
        raise InvalidSetError(f"{path}: 'images' holds NaN or infinity")


def check_soft_labels(
    path: Path | str, soft: Tensor, experts: Tensor, labels: Tensor, k: Tensor
) -> None:
    """Check soft labels (N, classes) of the rows with these (N,) experts, labels and k.

    Raises:
        InvalidSetError: a row is no probability distribution; names it.
    """
    if not bool(torch.isfinite(soft).all()):
        raise InvalidSetError(f"{path}: 'soft_labels' holds NaN or infinity")
    wrong = (soft < 0).any(1) | ((soft.sum(1) - 1).abs() > 1e-3)
    if bool(wrong.any()):
        row = int(torch.argmax(wrong.int()))
        name = row_id(int(experts[row]), int(labels[row]), int(k[row]))
        raise InvalidSetError(
            f"{path}: the soft label of row {name} is no probability distribution (no negative "
            "number, a sum of 1)"
        )


def expected_rows(manifest: Manifest, where: Path | str) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, experts and k, (N,) int64 each, of the rows that a manifest counts, in order.

    Raises:
        InvalidSetError: its counts cannot be meant; `where` says whose they are.
    """
    classes = len(manifest.classes)
    labels, experts, k = [], [], []
    for number, entry in enumerate(manifest.experts):
        if entry.id != number or len(entry.stored_per_class) != classes:
            raise InvalidSetError(
                f"the manifest of {where} counts {len(entry.stored_per_class)} classes for "
                f"expert {entry.id} in place {number}, expected {classes} classes and the ids 0, 1…"
            )
        if any(count < 0 for count in entry.stored_per_class):
            raise InvalidSetError(f"the manifest of {where} has a negative count")
        counts = torch.tensor(entry.stored_per_class)
        labels.append(torch.arange(classes).repeat_interleave(counts))
        experts.append(torch.full_like(labels[-1], number))
        k.append(torch.cat([torch.arange(count) for count in entry.stored_per_class]))
    return torch.cat(labels), torch.cat(experts), torch.cat(k)


def _check_rows(path: Path, stored: StoredSet) -> None:
    """Labels, experts and k must be exactly the rows that the manifest counts, in order."""
    labels, experts, k = expected_rows(stored.manifest, stored.folder)
    for number in range(len(stored.manifest.experts)):
        own = experts == number
        for key, found, expected in (
            ("labels", stored.labels, labels),
            ("experts", stored.experts, experts),
            ("k", stored.k, k),
        ):
            if not torch.equal(found[own], expected[own]):
                raise InvalidSetError(
                    f"{path}: '{key}' of expert {number} are not the rows that the manifest "
                    "counts, in the order (expert, label, k)"
                )
