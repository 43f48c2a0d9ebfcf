"""Whether a set is the one its manifest was published with: rows, rules, spaces, step sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import content_sha256, to_view, training_sha256, view_sha256
from moedd_loaders.manifest import MANIFEST

if TYPE_CHECKING:
    from moedd_loaders.read import StoredSet

__all__ = ["check_training", "check_view"]


def check_training(stored: StoredSet) -> None:
    """Check the two hashes over everything that training depends on.

    Raises:
        InvalidSetError: `content_sha256` or `training_sha256` is not what the set gives: pixels,
            labels, a decode rule, a space or a step size was edited.
    """
    manifest = stored.manifest
    content = content_sha256(stored.ids, stored.labels, stored.experts, stored.images)
    _compare(stored, "content_sha256", content)
    training = training_sha256(
        content,
        stored.soft_labels,
        [entry.decode for entry in manifest.experts],
        [entry.trained_in for entry in manifest.experts],
        [entry.step_size for entry in manifest.experts],
    )
    _compare(stored, "training_sha256", training)


def check_view(stored: StoredSet) -> None:
    """Check the hash over the 8-bit views. Raises InvalidSetError: it differs."""
    view = view_sha256(stored.ids, stored.labels, stored.experts, to_view(stored.images))
    _compare(stored, "view_sha256", view)


def _compare(stored: StoredSet, key: str, found: str) -> None:
    said = getattr(stored.manifest, key)
    if said != found:
        raise InvalidSetError(
            f"{stored.folder / MANIFEST}: {key} is {said}, the rows of the set give {found}"
        )
