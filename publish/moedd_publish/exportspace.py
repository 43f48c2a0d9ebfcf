"""In which pixel space an export is written, and the conversion into it.

A layout that stores pixels as its method's scripts train on them gets what the set came from where
it came from that very layout, and normalised pixels else. All conversions are computed in float64
and rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import Manifest, TrainedIn
from moedd_loaders.read import StoredSet, check_file
from moedd_loaders.whitening import read_whitening

__all__ = ["ExportSpace", "imported_from", "space_for"]

_SPACES = ("unit", "normalized", "trained")


@dataclass(frozen=True)
class ExportSpace:
    """Where unit-space pixels are brought to; `mean`, `matrix` of a whitening where it is one."""

    made: TrainedIn
    mean: Tensor | None = None
    matrix: Tensor | None = None

    def convert(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 unit-space images into this space."""
        if self.made.space == "unit":
            return images
        exact = images.double()
        if self.made.space == "normalized":
            mean, std = (
                torch.tensor(values).double()[:, None, None]
                for values in (self.made.mean or [], self.made.std or [])
            )
            return ((exact - mean) / std).float()
        assert self.mean is not None
        assert self.matrix is not None
        white = (exact.flatten(1) - self.mean.double()) @ self.matrix.double()
        return white.view_as(exact).float()

    def plain(self) -> dict[str, Any]:
        """What a reader of the export must know."""
        return {key: value for key, value in self.made.model_dump().items() if value is not None}


def imported_from(manifest: Manifest) -> set[str]:
    """Formats that the experts were imported from; "" stands for those that were not imported."""
    return {entry.config.get("imported", {}).get("format", "") for entry in manifest.experts}


def space_for(stored: StoredSet, to: str, wanted: str | None) -> ExportSpace:
    """The space of an export `to` a layout of tensors.

    Args:
        wanted: "unit", "normalized" (by the source's constants), "trained" (as the experts were
            trained), or None for the rule above.

    Raises:
        UsageError: another word; experts trained in different spaces with "trained".
    """
    manifest = stored.manifest
    spaces = {entry.trained_in.model_dump_json() for entry in manifest.experts}
    own = manifest.experts[0].trained_in if len(spaces) == 1 else None
    source = TrainedIn(space="normalized", mean=manifest.source.mean, std=manifest.source.std)
    if wanted not in (None, *_SPACES):
        raise UsageError(f"--space {wanted!r} given, expected {', '.join(_SPACES)}")
    if wanted == "unit":
        return ExportSpace(TrainedIn(space="unit"))
    if wanted == "trained" and own is None:
        raise UsageError(
            f"--space trained given, and the experts of {manifest.name} were trained in different "
            "spaces: give unit or normalized"
        )
    if own is not None and wanted != "normalized":
        again = imported_from(manifest) == {to}
        fits = own.space == "normalized" or (own.space == "zca" and to == "mtt")
        if wanted == "trained" or again or fits:
            return _as_trained(stored, own)
    return ExportSpace(source)


def _as_trained(stored: StoredSet, own: TrainedIn) -> ExportSpace:
    if own.space != "zca":
        return ExportSpace(own)
    assert own.matrix is not None
    check_file(stored.folder, own.matrix, stored.manifest)
    return ExportSpace(
        own, *read_whitening(stored.folder / own.matrix, math.prod(stored.manifest.shape))
    )
