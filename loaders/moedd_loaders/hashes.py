"""What two sets have in common is decided by hashes of their content, not of their containers.

`content_sha256` covers ids, labels, experts and float pixels (safetensors and `.npy` agree),
`view_sha256` the 8-bit pixels (Parquet and `.png` agree), `training_sha256` everything that a
training run sees: the identity that benchmark records carry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

__all__ = [
    "content_sha256",
    "file_sha256",
    "row_id",
    "to_view",
    "training_sha256",
    "view_sha256",
]


def row_id(expert: int, label: int, k: int) -> str:
    """Id of a row, e.g. "e00-c0003-k0001": no dots, unique in the set, sorts as the rows do."""
    return f"e{expert:02d}-c{label:04d}-k{k:04d}"


def to_view(images: Tensor) -> Tensor:
    """The 8-bit view of unit-space images: float (..., C, H, W) -> uint8, clipped and rounded."""
    return images.detach().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)


def content_sha256(ids: Sequence[str], labels: Tensor, experts: Tensor, images: Tensor) -> str:
    """Hash of rows in order: ids, labels and experts (N,) int64, images (N, C, H, W) float32."""
    return _rows_sha256("content", ids, labels, experts, images.float())


def view_sha256(ids: Sequence[str], labels: Tensor, experts: Tensor, pixels: Tensor) -> str:
    """Hash of rows in order, as `content_sha256`, of the pixels (N, C, H, W) uint8."""
    assert pixels.dtype == torch.uint8, pixels.dtype
    return _rows_sha256("view", ids, labels, experts, pixels)


def training_sha256(
    content: str,
    soft_labels: Tensor | None,
    decode_rules: Sequence[Any],
    trained_in: Sequence[Any],
    step_sizes: Sequence[float | None],
) -> str:
    """Hash of everything that training on the set depends on.

    Args:
        content: the set's `content_sha256`.
        soft_labels: (N, classes) float32, or None for hard labels.
        decode_rules, trained_in, step_sizes: one per expert, in order (pydantic models or plain
            JSON values).
    """
    plain = {
        "content": content,
        "decode": [_plain(rule) for rule in decode_rules],
        "trained_in": [_plain(space) for space in trained_in],
        "step_sizes": list(step_sizes),
        "soft_labels": None if soft_labels is None else list(soft_labels.shape),
    }
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(b"moedd-training/1\n" + text.encode())
    if soft_labels is not None:
        digest.update(_bytes(soft_labels.float()))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows_sha256(
    kind: str, ids: Sequence[str], labels: Tensor, experts: Tensor, pixels: Tensor
) -> str:
    assert len(ids) == len(labels) == len(experts) == len(pixels)
    head = json.dumps({"shape": list(pixels.shape), "ids": list(ids)}, separators=(",", ":"))
    digest = hashlib.sha256(f"moedd-{kind}/1\n{head}\n".encode())
    for tensor in (labels.long(), experts.long(), pixels):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """Raw little-endian bytes in C order, on any machine."""
    array = tensor.detach().cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
