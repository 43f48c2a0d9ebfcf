"""Whether a set on disk is whole, unchanged, and says the same in each of its containers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from moedd_loaders.containers import check_containers
from moedd_loaders.decode import decode_factor
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import (
    content_sha256,
    file_sha256,
    to_view,
    training_sha256,
    view_sha256,
)
from moedd_loaders.manifest import (
    CHECKSUMS,
    MANIFEST,
    TENSORS,
    Manifest,
    parquet_path,
    read_manifest,
    tar_path,
)
from moedd_loaders.read import StoredSet, check_file, read_tensors

__all__ = ["validate_set"]

# Folders of payload: a file in them that the manifest does not list would still be read by
# whoever globs (`data/train-*.parquet`).
_PAYLOAD = ("data", "webdataset", "tensors", "recipe")


def validate_set(folder: Path | str) -> Manifest:
    """Check the set in `folder` completely and return its manifest.

    Checked: the manifest's schema; paths stay inside the folder and nothing is a link; no file is
    missing, changed or unlisted; `checksums.sha256` agrees; shapes, counts, order, label range,
    finite values; the three containers hold the same rows; all hashes. The card, the records and
    the preview may change and are not checked.

    Raises:
        InvalidSetError: names the file and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidSetError(f"{folder} is not a folder: give the folder of a set")
    manifest = read_manifest(folder)
    _check_paths(folder, manifest)
    _check_links(folder)
    for name in manifest.files:
        check_file(folder, name, manifest)
    _check_unlisted(folder, manifest)
    _check_checksums(folder, manifest)
    _check_entries(folder, manifest)
    stored = read_tensors(folder, manifest, verify=False)
    _check_budget(folder, stored)
    check_containers(stored)
    _check_hashes(folder, stored)
    return manifest


def _check_paths(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        inside = name == "/".join(parts) and parts and ".." not in parts and parts[0] != "/"
        if not inside or re.search(r"[\\:\x00-\x1f]", name):
            raise InvalidSetError(f"{folder / MANIFEST} lists {name!r}, which leaves the folder")
        if parts[0] not in _PAYLOAD:
            raise InvalidSetError(
                f"{folder / MANIFEST} lists {name!r}, expected files in {', '.join(_PAYLOAD)} only"
            )


def _check_links(folder: Path) -> None:
    for path in _walk(folder):
        if path.is_symlink():
            raise InvalidSetError(f"{path} is a symbolic link, which a set must not hold")


def _check_unlisted(folder: Path, manifest: Manifest) -> None:
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in _PAYLOAD and not path.is_dir() and name not in manifest.files:
            raise InvalidSetError(f"{path} is not listed in {MANIFEST}: remove it")


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below `folder`, links not followed; hidden folders (.git, .cache) left out."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(files)]:
            yield Path(at) / name


def _check_checksums(folder: Path, manifest: Manifest) -> None:
    path = folder / CHECKSUMS
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise InvalidSetError(f"{path} is missing") from None
    except UnicodeDecodeError:
        raise InvalidSetError(f"{path} is not text") from None
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise InvalidSetError(f"{path}, line {number} is not '<sha256>  <path>'")
        sums[match[2]] = match[1]
    wanted = {name: entry.sha256 for name, entry in manifest.files.items()}
    wanted[MANIFEST] = file_sha256(folder / MANIFEST)
    for name in sorted({*sums, *wanted}):
        if name not in sums or name not in wanted:
            where = MANIFEST if name in sums else CHECKSUMS
            raise InvalidSetError(f"{folder / where} does not list {name}")
        if sums[name] != wanted[name]:
            raise InvalidSetError(
                f"{folder / name} was edited: its sha256 is not that of {CHECKSUMS}"
            )


def _check_entries(folder: Path, manifest: Manifest) -> None:
    path = folder / MANIFEST
    source = manifest.source
    if min(source.shape) < 1 or not len(source.mean) == len(source.std) == source.shape[0]:
        raise InvalidSetError(
            f"{path}: shape {source.shape}, mean and std do not fit one another "
            "(one value per channel expected)"
        )
    shards = [shard for entry in manifest.experts for shard in entry.shards]
    if shards != list(range(len(shards))) or not all(entry.shards for entry in manifest.experts):
        raise InvalidSetError(f"{path}: shards are {shards}, expected 0, 1, ... over the experts")
    for shard in shards:
        for name in (parquet_path(shard, len(shards)), tar_path(shard)):
            if name not in manifest.files:
                raise InvalidSetError(f"{path} does not list {name}, shard {shard} of its experts")
    if TENSORS not in manifest.files:
        raise InvalidSetError(f"{path} does not list {TENSORS}")
    for entry in manifest.experts:
        grid = decode_factor(entry.decode) ** 2
        if entry.decoded_per_class != [count * grid for count in entry.stored_per_class]:
            raise InvalidSetError(
                f"{path}: expert {entry.id} decodes to {entry.decoded_per_class} per class, "
                f"its rule gives {grid} times what is stored"
            )
        matrix = entry.trained_in.matrix
        if matrix is not None and matrix not in manifest.files:
            raise InvalidSetError(f"{path} does not list {matrix}, matrix of expert {entry.id}")


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


def _check_hashes(folder: Path, stored: StoredSet) -> None:
    manifest, rows = stored.manifest, (stored.ids, stored.labels, stored.experts)
    content = content_sha256(*rows, stored.images)
    found = {
        "content_sha256": content,
        "view_sha256": view_sha256(*rows, to_view(stored.images)),
        "training_sha256": training_sha256(
            content,
            stored.soft_labels,
            [entry.decode for entry in manifest.experts],
            [entry.trained_in for entry in manifest.experts],
            [entry.step_size for entry in manifest.experts],
        ),
    }
    for key, value in found.items():
        if getattr(manifest, key) != value:
            raise InvalidSetError(
                f"{folder / MANIFEST}: {key} is {getattr(manifest, key)}, "
                f"the rows of the set give {value}"
            )
