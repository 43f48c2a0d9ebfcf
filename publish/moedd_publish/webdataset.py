"""The WebDataset view of a set: tars of `<id>.png .cls .json .npy`, equal bytes for equal rows."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence

import numpy as np

from moedd_publish.rows import Rows

__all__ = ["info_bytes", "tar_bytes"]


def tar_bytes(rows: Rows, classes: Sequence[str]) -> bytes:
    """One shard. `.npy` holds the exact float32 (C, H, W) pixels in unit space, `.png` their view.

    The clock and the user stay out (mtime 0, owner 0). Each `.json` has the same keys and no null:
    readers infer the types from the first samples.
    """
    buffer = io.BytesIO()
    pixels = rows.images.numpy()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, row in enumerate(rows.ids):
            label = rows.labels[i]
            described = {
                "id": row,
                "label": label,
                "class": classes[label],
                "expert": rows.expert,
                "method": rows.method,
                "k": rows.ks[i],
            }
            _add(tar, f"{row}.cls", str(label).encode())
            _add(tar, f"{row}.json", json.dumps(described, ensure_ascii=False).encode())
            _add(tar, f"{row}.npy", _npy(pixels[i]))
            _add(tar, f"{row}.png", rows.views[i])
    return buffer.getvalue()


def info_bytes(name: str, tars: Sequence[str], lengths: Sequence[int]) -> bytes:
    """`_info.json` in timm's form: the number of samples in each tar, which tars do not tell."""
    split = {
        "name": "train",
        "num_samples": sum(lengths),
        "filenames": list(tars),
        "shard_lengths": list(lengths),
    }
    return (json.dumps({"name": name, "splits": {"train": split}}, indent=1) + "\n").encode()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array).astype("<f4", copy=False)
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mtime = 0
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
