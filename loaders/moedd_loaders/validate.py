"""The gate: whether a set on disk is whole, unchanged, and says the same in all its containers.

Import, evaluation and publishing pass through `validate_set`. Loading needs the tensors alone (of
a set on the Hub nothing else is fetched) and passes through its first half, `read_tensors`.
"""

from __future__ import annotations

from pathlib import Path

from moedd_loaders.containers import check_containers
from moedd_loaders.entries import check_entries, check_shards
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.identity import check_training, check_view
from moedd_loaders.manifest import MANIFEST, Manifest, read_manifest
from moedd_loaders.read import StoredSet, read_tensors
from moedd_loaders.setfiles import check_files, check_json
from moedd_loaders.whitening import check_whitening

__all__ = ["validate_set"]


def validate_set(folder: Path | str) -> Manifest:
    """Check the set in `folder` completely and return its manifest.

    Checked: the manifest's schema; paths stay inside the folder and nothing is a link; no file is
    missing, changed or unlisted; `checksums.sha256` agrees; shapes, counts, order, label range,
    finite values; the three containers hold the same rows; all hashes. Sizes are compared before
    anything is unpacked. The card, the records and the preview may change and are not checked.

    Raises:
        InvalidSetError: names the file and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidSetError(f"{folder} is not a folder: give the folder of a set")
    check_json(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    check_entries(folder / MANIFEST, manifest)
    check_shards(folder, manifest)
    stored = read_tensors(folder, manifest, verify=False)
    _check_budget(folder, stored)
    check_whitening(folder, manifest)
    check_containers(stored)
    check_training(stored)
    check_view(stored)
    return manifest


def _check_budget(folder: Path, stored: StoredSet) -> None:
    budget = stored.manifest.budget
    labels = stored.labels.nbytes
    if stored.soft_labels is not None:
        labels += stored.soft_labels.nbytes
    found = (len(stored.labels), stored.images.nbytes, labels)
    said = (budget.images, budget.image_bytes, budget.label_bytes)
    if found != said:
        raise InvalidSetError(
            f"{folder / MANIFEST}: the budget (images, image bytes, label bytes) is {said}, "
            f"the tensors hold {found}"
        )
