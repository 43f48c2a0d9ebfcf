"""Whether what a manifest says fits together: numbers, classes, shards, decode rules, spaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from moedd_loaders.decode import decode_factor
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import (
    MANIFEST,
    TENSORS,
    ExpertEntry,
    Manifest,
    parquet_path,
    tar_path,
)
from moedd_loaders.names import is_slug

__all__ = ["check_entries", "check_shards"]


def check_entries(path: Path | str, manifest: Manifest) -> None:
    """Check everything in the manifest that training depends on; no file but it is looked at.

    Args:
        path: of the manifest, or its address.

    Raises:
        InvalidSetError: names the entry and what is wrong with it.
    """
    source = manifest.source
    if not is_slug(manifest.name):
        raise InvalidSetError(
            f"{path} names the set {manifest.name!r}, expected [a-z0-9][a-z0-9_+.-]*"
        )
    if min(source.shape) < 1 or not len(source.mean) == len(source.std) == source.shape[0]:
        raise InvalidSetError(
            f"{path}: shape {source.shape}, mean and std do not fit one another "
            "(one value per channel expected)"
        )
    _check_constants(path, "source", source.mean, source.std)
    twice = next((name for name in source.classes if source.classes.count(name) > 1), None)
    if twice is not None:
        raise InvalidSetError(f"{path} names the class {twice!r} more than once")
    for entry in manifest.experts:
        _check_expert(path, entry, manifest)
    _check_room(path, manifest)


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Check that the shards are numbered through and that all their files are listed."""
    path = folder / MANIFEST
    shards = [shard for entry in manifest.experts for shard in entry.shards]
    if shards != list(range(len(shards))) or not all(entry.shards for entry in manifest.experts):
        raise InvalidSetError(f"{path}: shards are {shards}, expected 0, 1, ... over the experts")
    for shard in shards:
        for name in (parquet_path(shard, len(shards)), tar_path(shard)):
            if name not in manifest.files:
                raise InvalidSetError(f"{path} does not list {name}, shard {shard} of its experts")
    if TENSORS not in manifest.files:
        raise InvalidSetError(f"{path} does not list {TENSORS}")


def _check_room(path: Path | str, manifest: Manifest) -> None:
    """Counts that no file has room for are refused before memory is taken for their rows."""
    rows = sum(sum(entry.stored_per_class) for entry in manifest.experts)
    entered = manifest.files.get(TENSORS)
    needed = 4 * rows * math.prod(manifest.shape)
    if entered is not None and entered.size < needed:
        raise InvalidSetError(
            f"{path} counts {rows:,} images, whose pixels are {needed:,} bytes, and lists "
            f"{TENSORS} with {entered.size:,}"
        )


def _check_expert(path: Path | str, entry: ExpertEntry, manifest: Manifest) -> None:
    channels, height, width = manifest.shape
    factor = decode_factor(entry.decode)
    if factor > min(height, width):
        raise InvalidSetError(
            f"{path}: expert {entry.id} decodes {factor}x{factor} tiles from images of "
            f"{height}x{width}"
        )
    if entry.decoded_per_class != [count * factor**2 for count in entry.stored_per_class]:
        raise InvalidSetError(
            f"{path}: expert {entry.id} decodes to {entry.decoded_per_class} per class, "
            f"its rule gives {factor**2} times what is stored"
        )
    if entry.step_size is not None and not math.isfinite(entry.step_size):
        raise InvalidSetError(f"{path}: expert {entry.id} has the step size {entry.step_size}")
    space = entry.trained_in
    if space.space == "normalized":
        mean, std = space.mean or [], space.std or []
        if not len(mean) == len(std) == channels:
            raise InvalidSetError(
                f"{path}: expert {entry.id} was trained in normalised space with {len(mean)} means "
                f"and {len(std)} standard deviations, expected {channels} of each"
            )
        _check_constants(path, f"expert {entry.id}", mean, std)
    if space.space == "zca" and space.matrix is None:
        raise InvalidSetError(
            f"{path}: expert {entry.id} was trained in zca space and names no matrix"
        )
    if space.matrix is not None and space.matrix not in manifest.files:
        raise InvalidSetError(f"{path} does not list {space.matrix}, matrix of expert {entry.id}")


def _check_constants(
    path: Path | str, who: str, mean: Sequence[float], std: Sequence[float]
) -> None:
    if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise InvalidSetError(
            f"{path}: {who} has mean {list(mean)} and std {list(std)}, expected finite numbers and "
            "a positive std"
        )
