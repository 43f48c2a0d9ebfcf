"""Small image files in every shape that real folders have, for the tests of the data readers."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def noise(*shape: int, seed: int = 0, high: int = 256, dtype: Any = np.uint8) -> np.ndarray:
    """Uniform integers of that shape."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of one image file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> bytes:
    """A PNG of noise."""
    pixels = noise(height, width, channels, seed=seed)
    return encoded(pixels[..., 0] if channels == 1 else pixels)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of uint16 (H, W, 1..4), written by hand because Pillow cannot."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files by relative path."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def class_folders(
    root: Path, counts: Mapping[str, int], split: str = "", shape: tuple[int, int, int] = (8, 8, 3)
) -> Path:
    """CLASS/0.png, CLASS/1.png, ... with as many images as `counts` says, of (H, W, C) `shape`."""
    prefix = f"{split}/" if split else ""
    for number, (name, count) in enumerate(counts.items()):
        (root / prefix / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            data = png(*shape, seed=1000 * number + k + 7 * len(split))
            (root / prefix / name / f"{k}.png").write_bytes(data)
    return root


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: Sequence[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    more: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """One Parquet file as the Hub writes it, with ClassLabel metadata if `names` are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        image_column: pa.array(
            [{"bytes": data, "path": None} for data in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        label_column: pa.array(labels, pa.int64()),
        **(more or {}),
    }
    table = pa.table(columns)
    if names is not None:
        features = {
            image_column: {"_type": "Image"},
            label_column: {"_type": "ClassLabel", "names": list(names)},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """One uncompressed tar with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
