"""What a file of somebody else holds, before anybody has said what it means."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moedd_loaders.errors import DataError
from moedd_loaders.hashes import file_sha256

__all__ = ["Released", "image_tensor", "source_files"]

_LISTED = 12
"""With more files than this, their hashes are summed up in one."""


@dataclass(frozen=True)
class Released:
    """Images and labels as they lie in the files, with everything the files themselves state.

    Attributes:
        format: which family of files it is (`FORMATS`).
        images: (N, C, H, W), float32 in a space that only people know, or uint8 (0 black, 255
            white).
        labels: (N,) int64, or (N, K) float32 of a kind that may have to be told.
        files: name, sha256 and size of what was read.
        classes: class names where the files state them, in label order; `class_rule` says how.
        folders: names of class folders whose order means nothing by itself, else None.
        method, data: as the file's name has them ("" where it has none).
        methods: which methods write such files; the choices where the method must be told.
        step_size: learned step size, where it lies beside the images.
        hints: what names and customs suggest about "space", "decode" and "labels"; never decisive.
        reported: accuracies that the file holds, by network; numbers of its makers, not ours.
        notes: conversions that were made on the way in.
    """

    format: str
    images: Tensor
    labels: Tensor
    files: dict[str, dict[str, Any]]
    classes: tuple[str, ...] | None = None
    class_rule: str = ""
    folders: tuple[str, ...] | None = None
    method: str = ""
    data: str = ""
    methods: tuple[str, ...] = ()
    step_size: float | None = None
    hints: dict[str, str] = field(default_factory=dict)
    reported: dict[str, list[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    license: str | None = None
    origin: str = ""

    @property
    def detected(self) -> dict[str, Any]:
        """What was found, as plain values: shown to people and kept in the manifest."""
        n, *shape = self.images.shape
        values = self.images.double()
        if self.images.dtype == torch.uint8:
            values = values / 255
        mean = values.mean((0, 2, 3))
        labels = self.labels
        if labels.dim() == 2:
            kind = f"float ({labels.shape[0]}, {labels.shape[1]})"
            classes, order = labels.shape[1], labels.argmax(1)
        else:
            kind = f"class numbers {int(labels.min())} to {int(labels.max())}"
            classes, order = int(labels.max()) + 1, labels
        counts = torch.bincount(order, minlength=classes)
        even = counts.unique().numel() == 1
        found: dict[str, Any] = {
            "format": self.format,
            "images": n,
            "shape": shape,
            "dtype": "8 bits" if self.images.dtype == torch.uint8 else "float32",
            "range": [round(float(value), 4) for value in values.aminmax()],
            "mean": [round(float(value), 4) for value in mean],
            "std": [round(float(value), 4) for value in values.std((0, 2, 3), correction=0)],
            "labels": kind,
            "classes": classes,
            "per_class": int(counts[0]) if even else counts.tolist(),
            "order": "by class" if bool((order[1:] >= order[:-1]).all()) else "mixed",
        }
        said = {"method": self.method, "data": self.data, "step_size": self.step_size}
        found.update({key: value for key, value in said.items() if value})
        if self.classes is not None:
            found["class_names"] = list(self.classes)
        if self.folders is not None:
            found["folders"] = list(self.folders)
        if self.reported:
            found["reported_accuracies"] = self.reported
        if self.notes:
            found["notes"] = list(self.notes)
        return found


def source_files(paths: Sequence[Path], root: Path | None = None) -> dict[str, dict[str, Any]]:
    """sha256 and size (bytes) by file name; of many files, one hash over `sha256sum`'s lines."""
    base = root or Path()
    names = [path.relative_to(base).as_posix() if root else path.name for path in paths]
    found: dict[str, dict[str, Any]] = {
        name: {"sha256": file_sha256(path), "size": path.stat().st_size}
        for name, path in zip(names, paths, strict=True)
    }
    if len(found) <= _LISTED:
        return found
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(found.items()))
    place = f"{root.resolve().name if root else 'several'} ({len(found)} files)"
    total = sum(entry["size"] for entry in found.values())
    return {place: {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "size": total}}


def image_tensor(path: Path, found: Any) -> tuple[Tensor, list[str]]:
    """(N, C, H, W) images, float32 or uint8, of what a file holds; and what was converted.

    A last axis of 1 or 3 where the second is neither is taken for channels; both is refused.

    Raises:
        DataError: no such tensor, or NaN or infinity among its numbers.
    """
    if isinstance(found, np.ndarray) and found.dtype.kind in "fiub":
        found = torch.from_numpy(np.ascontiguousarray(found, found.dtype.newbyteorder("=")))
    if not isinstance(found, Tensor) or found.dim() != 4 or not found.numel():
        shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        raise DataError(
            f"{path} holds a {type(found).__name__}{shape} where the images should be, expected a "
            "tensor of (images, channels, height, width)"
        )
    notes: list[str] = []
    first, last = found.shape[1] in (1, 3), found.shape[3] in (1, 3)
    if first and last:
        raise DataError(
            f"{path} holds images of shape {tuple(found.shape)}, whose channels could be the "
            "second or the last axis: save them as (images, channels, height, width)"
        )
    if last:
        found = found.permute(0, 3, 1, 2)
        notes.append("axes (image, height, width, channel) reordered")
    elif not first:
        raise DataError(
            f"{path} holds images of shape {tuple(found.shape)}, expected 1 or 3 channels"
        )
    if found.dtype == torch.uint8:
        return found.contiguous(), notes
    if not found.is_floating_point():
        raise DataError(f"{path} holds {found.dtype} images, expected floats or 8 bits")
    if not bool(torch.isfinite(found).all()):
        bad = (~torch.isfinite(found)).flatten(1).any(1)
        raise DataError(
            f"{path} holds NaN or infinity in {int(bad.sum())} of {len(found)} images (the first "
            f"is number {int(torch.argmax(bad.int()))}): its distillation diverged"
        )
    if found.dtype != torch.float32:
        notes.append(f"{str(found.dtype).removeprefix('torch.')} pixels converted to float32")
        found = found.float()
        if not bool(torch.isfinite(found).all()):
            raise DataError(f"{path} holds pixels beyond the range of float32")
    return found.contiguous(), notes
