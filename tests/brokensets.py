"""Ways to break a set so that only one thing is wrong with it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TAR = "webdataset/train-00001.tar"
PARQUET = "data/train-00001-of-00002.parquet"


def sign(folder: Path, edit: Callable[[dict[str, Any]], None] = lambda raw: None) -> None:
    """Make the manifest and the checksums fit again, so that only deeper checks can object."""
    raw = json.loads((folder / "moedd.json").read_text())
    for name, entry in raw["files"].items():
        data = (folder / name).read_bytes()
        entry.update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    edit(raw)
    (folder / "moedd.json").write_text(json.dumps(raw))
    sums = {name: entry["sha256"] for name, entry in raw["files"].items()}
    sums["moedd.json"] = hashlib.sha256((folder / "moedd.json").read_bytes()).hexdigest()
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (folder / "checksums.sha256").write_text(text)


def retar(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            data = change(member.name, file.read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    path.write_bytes(buffer.getvalue())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def repaint(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.array(image)
    pixels[0, 0] ^= 1
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def reparquet(path: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path)
    at = table.column_names.index(column)
    field = table.schema.field(at)
    values = pa.array(change(table.column(at).to_pylist()), field.type)
    pq.write_table(table.set_column(at, field, values), path)
