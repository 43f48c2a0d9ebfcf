"""Whether the Parquet files and the tars of a set hold the very rows of its tensors."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import to_view
from moedd_loaders.manifest import parquet_path, tar_path
from moedd_loaders.read import StoredSet

__all__ = ["check_containers"]

_COLUMNS = ["id", "image", "label", "expert", "method", "k"]


def check_containers(stored: StoredSet) -> None:
    """Compare all three containers, row by row.

    Parquet and tar must hold the same rows in the same order; their PNGs must be the rounded,
    clipped floats; the `.npy` files must be the floats bit for bit.

    Raises:
        InvalidSetError: names the file, and the row where there is one.
    """
    expected = _Expected(stored)
    shards = sum(len(entry.shards) for entry in stored.manifest.experts)
    for entry in stored.manifest.experts:
        for kind in ("parquet", "tar"):
            row = expected.first(entry.id)
            for shard in entry.shards:
                name = parquet_path(shard, shards) if kind == "parquet" else tar_path(shard)
                path = stored.folder / name
                rows = _parquet_rows(path, expected) if kind == "parquet" else _tar_rows(path)
                for found in rows:
                    expected.compare(path, row, entry.id, found)
                    row += 1
            if row != expected.first(entry.id + 1):
                missing = expected.first(entry.id + 1) - row
                raise InvalidSetError(f"{path} ends {missing} rows too early")


class _Expected:
    """The rows as the tensors have them."""

    def __init__(self, stored: StoredSet) -> None:
        self.manifest = stored.manifest
        self.ids = stored.ids
        self.labels = stored.labels.tolist()
        self.ks = stored.k.tolist()
        self.images = stored.images.numpy()
        self.views = to_view(stored.images).permute(0, 2, 3, 1).numpy()
        sizes = [sum(entry.stored_per_class) for entry in stored.manifest.experts]
        self.starts = [sum(sizes[:e]) for e in range(len(sizes) + 1)]

    def first(self, expert: int) -> int:
        return self.starts[expert]

    def compare(self, path: Path, row: int, expert: int, found: dict[str, Any]) -> None:
        if row >= self.starts[expert + 1]:
            raise InvalidSetError(f"{path} holds more rows than expert {expert} has")
        label = self.labels[row]
        wanted = {
            "id": self.ids[row],
            "label": label,
            "expert": expert,
            "method": self.manifest.experts[expert].method,
            "k": self.ks[row],
            "class": self.manifest.classes[label],
        }
        for key, value in wanted.items():
            if key in found and found[key] != value:
                raise InvalidSetError(
                    f"{path}, row {self.ids[row]}: {key} is {found[key]!r}, "
                    f"the tensors say {value!r}"
                )
        if not np.array_equal(_decode_png(path, found), self.views[row]):
            raise InvalidSetError(
                f"{path}, row {self.ids[row]}: the PNG is not the rounded, clipped view of the "
                "float pixels"
            )
        if "npy" in found and not _same_bits(_decode_npy(path, found), self.images[row]):
            raise InvalidSetError(
                f"{path}, row {self.ids[row]}: the .npy pixels differ from the tensors"
            )


def _parquet_rows(path: Path, expected: _Expected) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file: with the path alone, pyarrow would look for partitions in the folder's name.
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise InvalidSetError(f"{path} is not a readable Parquet file: {error}") from None
    if table.column_names != _COLUMNS:
        raise InvalidSetError(f"{path} has the columns {table.column_names}, expected {_COLUMNS}")
    declared = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = declared.get("info", {}).get("features", {}).get("label", {}).get("names")
    if names != expected.manifest.classes:
        raise InvalidSetError(f"{path} names other classes than the manifest")
    for row in table.to_pylist():
        image = row.pop("image") or {}
        yield {**row, "png": image.get("bytes")}


def _tar_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for first in members:
                group = [first, *islice(members, 3)]
                yield _tar_row(path, tar, group)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidSetError(f"{path} is not a whole tar file: {error}") from None


def _tar_row(path: Path, tar: tarfile.TarFile, group: list[tarfile.TarInfo]) -> dict[str, Any]:
    key = group[0].name.partition(".")[0]
    parts: dict[str, bytes] = {}
    for member in group:
        stem, _, field = member.name.partition(".")
        file = tar.extractfile(member) if member.isfile() else None
        if stem != key or file is None or field in parts:
            raise InvalidSetError(f"{path}: unexpected member {member.name!r} in row {key!r}")
        parts[field] = file.read()
    if sorted(parts) != ["cls", "json", "npy", "png"]:
        raise InvalidSetError(
            f"{path}, row {key}: holds {sorted(parts)}, expected ['cls', 'json', 'npy', 'png']"
        )
    try:
        row = json.loads(parts["json"])
        label = int(parts["cls"])
        if not isinstance(row, dict) or row.get("id") != key or row.get("label") != label:
            raise ValueError("the parts disagree")
    except ValueError as error:
        raise InvalidSetError(f"{path}, row {key}: bad .json or .cls: {error}") from None
    return {**row, "png": parts["png"], "npy": parts["npy"]}


def _decode_png(path: Path, found: dict[str, Any]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(found["png"]), formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise InvalidSetError(f"{path}, row {found.get('id')}: bad PNG: {error}") from None
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _decode_npy(path: Path, found: dict[str, Any]) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(found["npy"]), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidSetError(f"{path}, row {found.get('id')}: bad .npy: {error}") from None


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and left.tobytes() == right.tobytes()
