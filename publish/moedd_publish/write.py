"""Writing a set: everything into a hidden sibling folder, the manifest last, then one rename."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from moedd_loaders.errors import (
    ConflictError,
    DataError,
    InvalidSetError,
    UsageError,
    from_oserror,
)
from moedd_loaders.files import put, scratch_name
from moedd_loaders.manifest import (
    CHECKSUMS,
    MANIFEST,
    PREVIEW,
    RESULTS,
    TENSORS,
    Diversity,
    ExpertEntry,
    FileEntry,
    Labels,
    Manifest,
    Provenance,
    Source,
    TilesDecode,
    manifest_bytes,
    parquet_path,
    read_manifest,
    tar_path,
)
from moedd_loaders.names import is_slug
from moedd_publish.built import Built, ExpertRows
from moedd_publish.card import render_card
from moedd_publish.parquet import parquet_bytes
from moedd_publish.preview import preview_grid
from moedd_publish.webdataset import info_bytes, tar_bytes

__all__ = ["ExpertRows", "check_target", "write_set"]

_REPORTED = ("torch", "torchvision", "numpy", "safetensors", "pyarrow", "pillow")


def check_target(folder: Path, overwrite: bool) -> None:
    """Whether a set may be written to `folder`: worth asking before hours of distilling.

    Raises:
        ConflictError: it exists and `overwrite` is not set, or it holds something that is not a
            set and hence is not ours to replace.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConflictError(f"{folder} exists and is not a folder: choose another place")
    if not overwrite:
        raise ConflictError(
            f"{folder} exists already: give --overwrite to replace it, or another --name"
        )
    if not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ConflictError(
            f"{folder} is not a set (no {MANIFEST}) and will not be replaced: choose another place"
        )


def write_set(
    folder: Path,
    *,
    name: str,
    source: Source,
    experts: Sequence[ExpertRows],
    evaluation: dict[str, Any],
    diversity: Diversity | None,
    provenance: Provenance,
    recipe: dict[str, Any],
    soft_labels: Tensor | None = None,
    version: str = "1.0.0",
    created: str | None = None,
    overwrite: bool = False,
    rows_per_shard: int = 100_000,
    environment: str | None = None,
) -> Manifest:
    """Write a whole set to `folder`, or nothing.

    Args:
        folder: the set's folder; its parents are made.
        name: a slug, usually the folder's name.
        source: the real data; `source.shape` is the shape of every stored image.
        experts: at least one; expert e becomes number e.
        recipe: the resolved configuration (JSON values), kept in `recipe/config.json`.
        soft_labels: (N, classes) float32 over all rows in order, or None.
        created: time stamp (ISO 8601, UTC); now by default.
        overwrite: replace a set that is there (its records stay if it trains the same).
        rows_per_shard: an expert with more rows gets several shards.
        environment: text of `recipe/environment.txt`; this machine's versions by default.

    Returns:
        The manifest as written.

    Raises:
        ConflictError: `check_target` refuses. DataError: rows that do not fit `source`.
        NonFiniteError: NaN or infinity among pixels, labels or reported numbers.
        DiskFullError: the disk is full; what was there before is untouched.
    """
    folder = Path(os.path.abspath(folder))
    if not is_slug(name):
        raise UsageError(f"'{name}' cannot name a set: expected [a-z0-9][a-z0-9_+.-]*")
    if rows_per_shard < 1:
        raise UsageError(f"rows_per_shard is {rows_per_shard}, expected at least 1")
    check_target(folder, overwrite)
    if not experts:
        raise DataError(f"the set {name} has no experts: give at least one")
    built = Built(source, experts, soft_labels, rows_per_shard)
    try:
        with _replacing(folder) as scratch:
            files = _write_payload(scratch, name, built, recipe, environment)
            manifest = Manifest(
                name=name,
                version=version,
                created=created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                source=source,
                experts=built.entries,
                labels=Labels(kind="hard" if soft_labels is None else "soft"),
                budget=built.budget,
                evaluation=evaluation,
                diversity=diversity,
                provenance=provenance,
                files=files,
                **built.hashes,
            )
            _write_mutable(scratch, manifest, built, folder)
            _write_manifest(scratch, manifest)
    except OSError as error:
        raise from_oserror(error, f"writing the set {name} to {folder}") from error
    return manifest


def _write_payload(
    scratch: Path, name: str, built: Built, recipe: dict[str, Any], environment: str | None
) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}

    def payload(path: str, data: bytes) -> None:
        put(scratch / path, data)
        files[path] = FileEntry(sha256=sha256(data).hexdigest(), size=len(data))

    classes = built.source.classes
    for shard, part in enumerate(built.shards):
        rows = built.rows(part)
        payload(parquet_path(shard, len(built.shards)), parquet_bytes(rows, classes))
        payload(tar_path(shard), tar_bytes(rows, classes))
    tars = [Path(tar_path(shard)).name for shard in range(len(built.shards))]
    lengths = [part.stop - part.start for part in built.shards]
    payload("webdataset/_info.json", info_bytes(name, tars, lengths))
    # One key of metadata only: safetensors keeps several in an order that changes between runs.
    payload(TENSORS, save_tensors(built.tensors(), metadata={"format": "pt"}))
    for path, data in sorted(built.files.items()):
        payload(path, data)
    text = json.dumps(recipe, indent=1, ensure_ascii=False, default=str)
    payload("recipe/config.json", (text + "\n").encode())
    payload("recipe/environment.txt", (environment or _environment()).encode())
    return dict(sorted(files.items()))


def _write_mutable(scratch: Path, manifest: Manifest, built: Built, before: Path) -> None:
    put(scratch / "README.md", render_card(manifest).encode())
    preview_grid(
        built.images,
        built.labels,
        built.experts,
        manifest.classes,
        scratch / PREVIEW,
        headings=[_heading(entry) for entry in manifest.experts],
        title=manifest.name,
    )
    # Records are about what a set trains, so a set written anew from the same rows keeps them.
    results = before / RESULTS
    if results.is_file():
        try:
            same = read_manifest(before).training_sha256 == manifest.training_sha256
        except InvalidSetError:
            same = False
        if same:
            put(scratch / RESULTS, results.read_bytes())


def _write_manifest(scratch: Path, manifest: Manifest) -> None:
    data = manifest_bytes(manifest)
    sums = {path: entry.sha256 for path, entry in manifest.files.items()}
    sums[MANIFEST] = sha256(data).hexdigest()
    lines = [f"{digest}  {path}\n" for path, digest in sorted(sums.items())]
    put(scratch / CHECKSUMS, "".join(lines).encode())
    put(scratch / MANIFEST, data)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` at the end; on any error it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_name(folder)
    old = scratch_name(folder)
    try:
        scratch.mkdir()
        yield scratch
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(scratch, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _heading(entry: ExpertEntry) -> str:
    rule = entry.decode
    tiles = f", {rule.factor}x{rule.factor} tiles" if isinstance(rule, TilesDecode) else ""
    return f"expert {entry.id}: {entry.method}{tiles}"


def _environment() -> str:
    found = [f"python {platform.python_version()}"]
    for package in _REPORTED:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(found) + "\n"
