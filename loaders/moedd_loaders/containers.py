"""Whether the Parquet files and the tars of a set hold the very rows of its tensors."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.hashes import to_view
from moedd_loaders.manifest import parquet_path, tar_path
from moedd_loaders.parquetrows import parquet_rows
from moedd_loaders.read import StoredSet
from moedd_loaders.tarrows import INFO, check_info, tar_rows

__all__ = ["check_containers"]


def check_containers(stored: StoredSet) -> None:
    """Compare all three containers, row by row.

    Parquet and tar must hold the same rows in the same order; their PNGs must be the rounded,
    clipped floats; the `.npy` files must be the floats bit for bit.

    Raises:
        InvalidSetError: names the file, and the row where there is one.
    """
    expected = _Expected(stored)
    shards = sum(len(entry.shards) for entry in stored.manifest.experts)
    lengths: list[int] = []
    for entry in stored.manifest.experts:
        for kind in ("parquet", "tar"):
            row = expected.first(entry.id)
            for shard in entry.shards:
                first = row
                name = parquet_path(shard, shards) if kind == "parquet" else tar_path(shard)
                path = stored.folder / name
                left = expected.first(entry.id + 1) - first
                rows = expected.parquet(path, left) if kind == "parquet" else tar_rows(path)
                for found in rows:
                    expected.compare(path, row, entry.id, found)
                    row += 1
                if kind == "tar":
                    lengths.append(row - first)
            if row != expected.first(entry.id + 1):
                missing = expected.first(entry.id + 1) - row
                raise InvalidSetError(f"{path} ends {missing} rows too early")
    tars = [Path(tar_path(shard)).name for shard in range(shards)]
    check_info(stored.folder / INFO, tars, lengths)


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

    def parquet(self, path: Path, rows: int) -> Any:
        # A PNG of noise is a little larger than its pixels.
        return parquet_rows(path, self.manifest.classes, 2 * self.views[:1].nbytes + 4096, rows)

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
                    f"{path}, row {self.ids[row]}: {key} is {_shown(found[key])}, "
                    f"the tensors say {value!r}"
                )
        where = f"{path}, row {self.ids[row]}"
        view = self.views[row]
        if not np.array_equal(_decode_png(where, found["png"], view.shape), view):
            raise InvalidSetError(
                f"{where}: the PNG is not the rounded, clipped view of the float pixels"
            )
        if "npy" in found:
            pixels = _decode_npy(where, found["npy"], self.images[row].shape)
            if pixels.tobytes() != self.images[row].tobytes():
                raise InvalidSetError(f"{where}: the .npy pixels differ from the tensors")


def _shown(value: Any) -> str:
    """A foreign value in a sentence, however long it is."""
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 120 else f"{text[:100]}…"


def _decode_png(where: str, data: bytes | None, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels (H, W, C) of a PNG, which must say beforehand that it has this shape."""
    from PIL import Image

    height, width, channels = shape
    if data is None or data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise InvalidSetError(f"{where}: bad PNG: {'no bytes' if not data else 'no PNG header'}")
    says = struct.unpack(">II", data[16:24])
    if says != (width, height):
        raise InvalidSetError(
            f"{where}: the PNG claims {says[0]}x{says[1]} pixels (width x height), expected "
            f"{width}x{height}"
        )
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidSetError(f"{where}: bad PNG: {error}") from None
    if mode != ("L" if channels == 1 else "RGB"):
        raise InvalidSetError(
            f"{where}: bad PNG: its pixels are {mode}, expected 8 bits in {channels} channels"
        )
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _decode_npy(where: str, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a `.npy` file; its header is compared before any memory is taken for it."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}, expected (1, 0)")
        says = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError) as error:
        raise InvalidSetError(f"{where}: bad .npy: {error}") from None
    if says != (shape, False, np.dtype("<f4")):
        raise InvalidSetError(
            f"{where}: bad .npy: it claims {says[2]} {says[0]}, expected float32 {shape}"
        )
    rest = data[file.tell() :]
    if len(rest) != 4 * int(np.prod(shape)):
        raise InvalidSetError(f"{where}: bad .npy: {len(rest)} bytes of pixels in {shape}")
    return np.frombuffer(rest, "<f4").reshape(shape)
