"""Layouts of pictures: `imagefolder` (class folders of PNGs) and `webdataset` (tars for timm)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moedd_loaders.files import put
from moedd_loaders.hashes import to_view
from moedd_loaders.manifest import Manifest
from moedd_publish.exportrows import ExportRows
from moedd_publish.rows import Rows, encode_png
from moedd_publish.webdataset import info_bytes, tar_bytes

__all__ = ["class_folders", "write_imagefolder", "write_webdataset"]

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _+.-]*[A-Za-z0-9_+-]|[A-Za-z0-9]")
_SHARD_ROWS = 10_000


def write_imagefolder(folder: Path, manifest: Manifest, rows: ExportRows) -> dict[str, Any]:
    """`train/CLASS/ID.png` for torchvision, `train/metadata.jsonl` for `datasets`.

    Readers sort folder names, and an order of classes that this does not give back would be lost:
    then the folders are numbered. `metadata.jsonl` names label and expert of every file, so that
    nothing has to be read off the folders.
    """
    names = class_folders(manifest.classes)
    lines = []
    for i, view in enumerate(to_view(rows.images)):
        label = int(rows.labels[i])
        file = f"{names[label]}/{rows.ids[i]}.png"
        put(folder / "train" / file, encode_png(view))
        described: dict[str, Any] = {
            "file_name": file,
            "label": label,
            "class": manifest.classes[label],
            "expert": int(rows.experts[i]),
        }
        if rows.soft is not None:
            described["soft_label"] = rows.soft[i].tolist()
        lines.append(json.dumps(described, ensure_ascii=False) + "\n")
    put(folder / "train" / "metadata.jsonl", "".join(lines).encode())
    put(folder / "classes.txt", "".join(f"{name}\n" for name in manifest.classes).encode())
    return {
        "pixels": "8-bit PNG: clipped to [0, 1] and rounded",
        "labels": "class numbers"
        + ("" if rows.soft is None else ", and soft_label in metadata.jsonl"),
        "folders": names,
    }


def class_folders(classes: Sequence[str]) -> list[str]:
    """Folder names whose plain string order is the order of the classes."""
    plain = all(_SAFE.fullmatch(name) for name in classes) and sorted(classes) == list(classes)
    if plain and len({name.lower() for name in classes}) == len(classes):
        return list(classes)
    return [f"{number:05d}" for number in range(len(classes))]


def write_webdataset(folder: Path, manifest: Manifest, rows: ExportRows) -> dict[str, Any]:
    """Tars of `.cls .json .npy .png`, one expert after the other, and `_info.json` for timm."""
    tars: list[str] = []
    lengths: list[int] = []
    for entry in manifest.experts:
        own = rows.of(entry.id)
        for start in range(0, len(own.ids), _SHARD_ROWS):
            part = slice(start, start + _SHARD_ROWS)
            views = [encode_png(view) for view in to_view(own.images[part])]
            shard = Rows(
                ids=own.ids[part],
                labels=own.labels[part].tolist(),
                ks=own.ks[part].tolist(),
                expert=entry.id,
                method=entry.method,
                images=own.images[part],
                views=views,
            )
            tars.append(f"train-{len(tars):05d}.tar")
            lengths.append(len(views))
            put(folder / tars[-1], tar_bytes(shard, manifest.classes))
    put(folder / "_info.json", info_bytes(manifest.name, tars, lengths))
    lost = "" if rows.soft is None else " (the set's soft labels are no part of this layout)"
    return {
        "pixels": "unit space: exact floats in .npy, clipped and rounded to 8 bits in .png",
        "labels": f"class numbers{lost}",
    }
