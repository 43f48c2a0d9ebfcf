"""The rows of a set as an export sees them: stored or decoded, in one order, with ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moedd_loaders.decode import decode, decode_factor
from moedd_loaders.errors import UsageError
from moedd_loaders.hashes import row_id
from moedd_loaders.read import StoredSet

__all__ = ["ExportRows", "export_rows"]


@dataclass(frozen=True)
class ExportRows:
    """Rows in the order (label, expert, k, tile).

    Attributes:
        images: (N, C, H, W) float32 in unit space, not clipped.
        labels, experts, ks: (N,) int64. soft: (N, classes) float32 probabilities, or None.
        ids: row ids; of decoded tiles with the number of the tile, e.g. "e00-c0003-k0001-t2".
    """

    images: Tensor
    labels: Tensor
    experts: Tensor
    ks: Tensor
    soft: Tensor | None
    ids: list[str]

    def of(self, expert: int) -> ExportRows:
        """The rows of one expert."""
        rows = torch.nonzero(self.experts == expert).flatten()
        return self.take(rows)

    def take(self, rows: Tensor) -> ExportRows:
        """The rows of these numbers, in this order."""
        return ExportRows(
            images=self.images[rows].contiguous(),
            labels=self.labels[rows],
            experts=self.experts[rows],
            ks=self.ks[rows],
            soft=None if self.soft is None else self.soft[rows].contiguous(),
            ids=[self.ids[row] for row in rows.tolist()],
        )


def export_rows(stored: StoredSet, decoded: bool) -> ExportRows:
    """All rows, decoded by each expert's own rule or as they are stored.

    Raises:
        UsageError: stored tiles are asked for and the experts do not all have the same rule, which
            no foreign layout can say.
    """
    manifest = stored.manifest
    rules = {entry.decode.model_dump_json() for entry in manifest.experts}
    if not decoded and len(rules) > 1:
        raise UsageError(
            f"the experts of {manifest.name} store their images by different rules "
            f"({', '.join(sorted(entry.decode.kind for entry in manifest.experts))}), which one "
            "file cannot say: give --decoded"
        )
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    ids: list[str] = []
    for entry in manifest.experts:
        own = torch.nonzero(stored.experts == entry.id).flatten()
        cells = decode_factor(entry.decode) ** 2 if decoded else 1
        images = stored.images[own]
        if cells > 1:
            images = decode(images, entry.decode, manifest.source.mean)
        # Decoding counts all images' first tiles first; here the tiles of an image stay together.
        grid = torch.arange(len(own) * cells).view(cells, len(own)).T.flatten()
        rows = own.repeat_interleave(cells)
        parts.append((images[grid], rows, torch.arange(cells).repeat(len(own))))
        ids += [
            _id(entry.id, int(stored.labels[row]), int(stored.k[row]), tile, cells)
            for row, tile in zip(rows.tolist(), parts[-1][2].tolist(), strict=True)
        ]
    images, rows = (torch.cat([part[i] for part in parts]) for i in range(2))
    whole = ExportRows(
        images=images,
        labels=stored.labels[rows],
        experts=stored.experts[rows],
        ks=stored.k[rows],
        soft=None if stored.soft_labels is None else stored.soft_labels[rows],
        ids=ids,
    )
    return whole.take(torch.sort(whole.labels, stable=True).indices)


def _id(expert: int, label: int, k: int, tile: int, cells: int) -> str:
    name = row_id(expert, label, k)
    return name if cells == 1 else f"{name}-t{tile}"
