"""Whether a set is the one its manifest was published with: rows, rules, spaces, step sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import content_sha256, to_view, training_sha256, view_sha256
from moedd_loaders.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from moedd_loaders.read import StoredSet

__all__ = ["check_rules", "check_training", "check_view"]


def check_training(stored: StoredSet) -> None:
    """Check the two hashes over everything that training depends on.

    Raises:
        InvalidSetError: `content_sha256` or `training_sha256` is not what the set gives: pixels,
            labels, a decode rule, a space or a step size was edited.
    """
    manifest, path = stored.manifest, stored.folder / MANIFEST
    content = content_sha256(stored.ids, stored.labels, stored.experts, stored.images)
    _compare(path, manifest, "content_sha256", content)
    check_rules(path, manifest, stored.soft_labels)


def check_rules(path: Path | str, manifest: Manifest, soft_labels: Tensor | None) -> None:
    """Check `training_sha256`, for rows whose `content_sha256` is that of the manifest.

    Args:
        path: of the manifest, or its address.
        soft_labels: (N, classes) float32, or None.

    Raises:
        InvalidSetError: soft labels, a decode rule, a space or a step size was edited.
    """
    training = training_sha256(
        manifest.content_sha256,
        soft_labels,
        [entry.decode for entry in manifest.experts],
        [entry.trained_in for entry in manifest.experts],
        [entry.step_size for entry in manifest.experts],
    )
    _compare(path, manifest, "training_sha256", training)


def check_view(stored: StoredSet) -> None:
    """Check the hash over the 8-bit views. Raises InvalidSetError: it differs."""
    view = view_sha256(stored.ids, stored.labels, stored.experts, to_view(stored.images))
    _compare(stored.folder / MANIFEST, stored.manifest, "view_sha256", view)


def _compare(path: Path | str, manifest: Manifest, key: str, found: str) -> None:
    said = getattr(manifest, key)
    if said != found:
        raise InvalidSetError(f"{path}: {key} is {said}, the rows of the set give {found}")
