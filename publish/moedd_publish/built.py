"""The rows of all experts put together: order, ids, shards, hashes; nothing touches the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moedd_loaders.decode import decode_factor
from moedd_loaders.errors import DataError, NonFiniteError
from moedd_loaders.hashes import content_sha256, row_id, to_view, training_sha256, view_sha256
from moedd_loaders.manifest import Budget, DecodeRule, ExpertEntry, Part, Source, TrainedIn
from moedd_publish.rows import Rows, encode_png

__all__ = ["Built", "ExpertRows"]


@dataclass(frozen=True)
class ExpertRows:
    """What one expert contributes to a set.

    Attributes:
        method, config, part, decode, trained_in, step_size: go into the manifest as they are.
        images: (n, C, H, W) float32 in UNIT space (0 black, 1 white), not clipped.
        labels: (n,) int64, not decreasing: rows are ordered (label, k).
        files: further payload by path in the set, under tensors/ (a whitening matrix, which
            `trained_in.matrix` names); experts may share one.
    """

    method: str
    config: dict[str, Any]
    part: Part
    decode: DecodeRule
    trained_in: TrainedIn
    step_size: float | None
    images: Tensor
    labels: Tensor
    files: dict[str, bytes] = field(default_factory=dict)


class Built:
    """The rows in the order of the set (expert, label, k), and all that follows from them.

    Attributes:
        images: (N, C, H, W) float32; pixels: their uint8 view; labels, experts, k: (N,) int64;
        soft_labels: (N, classes) float32 or None; ids: N row ids; entries: for the manifest;
        shards: the rows of each shard, each of one expert; files: further payload.
    """

    def __init__(
        self,
        source: Source,
        experts: Sequence[ExpertRows],
        soft_labels: Tensor | None,
        rows_per_shard: int,
    ) -> None:
        for number, rows in enumerate(experts):
            _check_rows(number, rows, source)
        self.source = source
        self.images = torch.cat([_plain(rows.images) for rows in experts])
        self.labels = torch.cat([_plain(rows.labels) for rows in experts])
        sizes = [len(rows.labels) for rows in experts]
        self.experts = torch.arange(len(experts)).repeat_interleave(torch.tensor(sizes))
        self.k = torch.cat([_places(rows.labels) for rows in experts])
        self.soft_labels = None if soft_labels is None else _plain(soft_labels)
        self._check_soft_labels()
        self.entries: list[ExpertEntry] = []
        self.shards: list[slice] = []
        start = 0
        for number, (rows, size) in enumerate(zip(experts, sizes, strict=True)):
            first = len(self.shards)
            self.shards += [
                slice(i, min(i + rows_per_shard, start + size))
                for i in range(start, start + size, rows_per_shard)
            ]
            start += size
            self.entries.append(_entry(number, rows, source, list(range(first, len(self.shards)))))
        self.ids = [
            row_id(*row)
            for row in zip(
                self.experts.tolist(), self.labels.tolist(), self.k.tolist(), strict=True
            )
        ]
        self.pixels = to_view(self.images)
        self.files = {name: data for rows in experts for name, data in rows.files.items()}

    @property
    def budget(self) -> Budget:
        label_bytes = self.labels.nbytes
        if self.soft_labels is not None:
            label_bytes += self.soft_labels.nbytes
        return Budget(
            images=len(self.labels), image_bytes=self.images.nbytes, label_bytes=label_bytes
        )

    @property
    def hashes(self) -> dict[str, str]:
        content = content_sha256(self.ids, self.labels, self.experts, self.images)
        return {
            "content_sha256": content,
            "view_sha256": view_sha256(self.ids, self.labels, self.experts, self.pixels),
            "training_sha256": training_sha256(
                content,
                self.soft_labels,
                [entry.decode for entry in self.entries],
                [entry.trained_in for entry in self.entries],
                [entry.step_size for entry in self.entries],
            ),
        }

    def tensors(self) -> dict[str, Tensor]:
        named = {"images": self.images, "labels": self.labels, "experts": self.experts, "k": self.k}
        return named if self.soft_labels is None else {**named, "soft_labels": self.soft_labels}

    def rows(self, part: slice) -> Rows:
        expert = int(self.experts[part.start])
        return Rows(
            ids=self.ids[part],
            labels=self.labels[part].tolist(),
            ks=self.k[part].tolist(),
            expert=expert,
            method=self.entries[expert].method,
            images=self.images[part],
            views=[encode_png(pixels) for pixels in self.pixels[part]],
        )

    def _check_soft_labels(self) -> None:
        if self.soft_labels is None:
            return
        expected = (len(self.labels), len(self.source.classes))
        if tuple(self.soft_labels.shape) != expected or self.soft_labels.dtype != torch.float32:
            raise DataError(
                f"soft labels are {self.soft_labels.dtype} {tuple(self.soft_labels.shape)}, "
                f"expected float32 {expected}: one row per image, one column per class"
            )
        if not bool(torch.isfinite(self.soft_labels).all()):
            raise NonFiniteError("soft labels hold NaN or infinity")
        sums = (self.soft_labels.sum(1) - 1).abs()
        if bool((self.soft_labels < 0).any() or (sums > 1e-3).any()):
            raise DataError(
                "soft labels are no probabilities, expected no negative number and rows that add "
                "up to 1: apply a softmax to logits"
            )


def _check_rows(number: int, rows: ExpertRows, source: Source) -> None:
    who = f"expert {number} ({rows.method})"
    images, labels = rows.images, rows.labels
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != source.shape:
        raise DataError(
            f"{who} has {images.dtype} images of shape {tuple(images.shape[1:])}, "
            f"expected float32 of the source's shape {source.shape}"
        )
    if labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),) or not len(labels):
        raise DataError(
            f"{who} has {labels.dtype} labels of shape {tuple(labels.shape)} for {len(images)} "
            "images, expected one int64 label per image and at least one image"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(source.classes):
        raise DataError(f"{who} has a label outside 0..{len(source.classes) - 1}")
    matrix = rows.trained_in.matrix
    if matrix is not None and matrix not in rows.files:
        raise DataError(f"{who} was trained in the space of {matrix}, which is not among its files")
    if bool((labels[1:] < labels[:-1]).any()):
        raise DataError(f"{who} has rows out of order, expected them ordered by label")
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError(f"{who} has NaN or infinity among its pixels")


def _entry(number: int, rows: ExpertRows, source: Source, shards: list[int]) -> ExpertEntry:
    stored = torch.bincount(rows.labels, minlength=len(source.classes)).tolist()
    grid = decode_factor(rows.decode) ** 2
    return ExpertEntry(
        id=number,
        method=rows.method,
        config=rows.config,
        part=rows.part,
        stored_per_class=stored,
        decoded_per_class=[n * grid for n in stored],
        decode=rows.decode,
        trained_in=rows.trained_in,
        step_size=rows.step_size,
        shards=shards,
    )


def _places(labels: Tensor) -> Tensor:
    """Place of each row within its class, for labels that do not decrease."""
    starts = torch.searchsorted(labels, labels)
    return torch.arange(len(labels)) - starts


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
