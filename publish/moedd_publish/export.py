"""Writing a set as others store theirs: DC's result file, MTT's tensors, DD-Ranking, pictures.

Each export holds `moedd-export.json`, which says what such files do not: pixel space, decode rule,
order of classes, kind of labels, and which set they are from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moedd_loaders.errors import ConflictError, UsageError, from_oserror, unknown
from moedd_loaders.files import put, scratch_name
from moedd_loaders.hashes import file_sha256
from moedd_loaders.manifest import Manifest, NoDecode, read_manifest
from moedd_loaders.read import read_tensors
from moedd_publish.exportpictures import write_imagefolder, write_webdataset
from moedd_publish.exportrows import ExportRows, export_rows
from moedd_publish.exportspace import space_for
from moedd_publish.exporttensors import write_tensors

__all__ = ["ABOUT", "LAYOUTS", "export_set"]

LAYOUTS = ("ddranking", "mtt", "dc", "imagefolder", "webdataset")
"""What a set can be exported to."""
_TENSORS = ("ddranking", "mtt", "dc")
ABOUT = "moedd-export.json"


def export_set(
    folder: Path,
    target: Path,
    to: str,
    decoded: bool = False,
    *,
    space: str | None = None,
) -> list[Path]:
    """Write the set in `folder` to the new folder `target` in another layout.

    Args:
        to: one of `LAYOUTS`. Tensor layouts keep every float; pictures are 8-bit views, besides
            exact `.npy` in `webdataset`.
        decoded: training images instead of stored ones: tiles are cut and enlarged.
        space: of the pixels of a tensor layout: "unit", "normalized" (by the source's constants) or
            "trained"; by default that of the files the set was imported from, if they are of this
            layout, else what the layout's scripts expect: normalised, or whitened for `mtt`.

    Returns:
        The files written, sorted; `moedd-export.json` among them says how to read them.

    Raises:
        InvalidSetError: the set is damaged. ConflictError: `target` is there and not empty.
        UsageError: an unknown layout or space, or experts whose decode rules differ without
            `decoded`.
    """
    if to not in LAYOUTS:
        raise unknown("layout", to, LAYOUTS)
    if space is not None and to not in _TENSORS:
        raise UsageError(f"--space {space} given for {to}, whose pictures are always unit space")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConflictError(f"{target} exists already: choose another place with --out")
    manifest = read_manifest(folder)
    stored = read_tensors(folder, manifest)
    rows = export_rows(stored, decoded)
    with _new_folder(target) as scratch:
        if to in _TENSORS:
            about = write_tensors(scratch, to, manifest, rows, space_for(stored, to, space))
        elif to == "imagefolder":
            about = write_imagefolder(scratch, manifest, rows)
        else:
            about = write_webdataset(scratch, manifest, rows)
        _write_about(scratch, manifest, rows, {"to": to, "decoded": decoded, **about})
    return sorted(path for path in target.rglob("*") if path.is_file())


def _write_about(folder: Path, manifest: Manifest, rows: ExportRows, about: dict[str, Any]) -> None:
    rule = NoDecode() if about["decoded"] else manifest.experts[0].decode
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = {
        "set": manifest.name,
        "version": manifest.version,
        "content_sha256": manifest.content_sha256,
        "training_sha256": manifest.training_sha256,
        **about,
        "images": len(rows.ids),
        "shape": list(manifest.shape),
        "classes": manifest.classes,
        "decode": rule.model_dump(mode="json"),
        "experts": [entry.method for entry in manifest.experts],
        "source": manifest.source.data,
        "license": manifest.source.license,
        "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files},
    }
    put(folder / ABOUT, (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` at the end; on any error nothing is left."""
    target = Path(os.path.abspath(target))
    scratch = scratch_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        yield scratch
        if target.exists():
            target.rmdir()
        os.rename(scratch, target)
    except OSError as error:
        raise from_oserror(error, f"exporting to {target}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
