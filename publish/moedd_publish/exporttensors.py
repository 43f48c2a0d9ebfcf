"""Layouts of tensor files: `dc` (`res_*.pt`), `mtt` (`images_best.pt`, ...), `ddranking`.

They are what these projects' scripts read; all of it loads with `weights_only=True`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moedd_loaders.manifest import Manifest
from moedd_publish.exportrows import ExportRows
from moedd_publish.exportspace import ExportSpace, imported_from

__all__ = ["learned_step_size", "write_tensors"]

_TINY = 1e-30
"""Probabilities below are written as this one: the logarithm of 0 is no number."""


def write_tensors(
    folder: Path, to: str, manifest: Manifest, rows: ExportRows, space: ExportSpace
) -> dict[str, Any]:
    """Write the files of one layout into `folder`; returns what a reader must know of them."""
    images = space.convert(rows.images)
    labels, kind = _labels(to, manifest, rows)
    about: dict[str, Any] = {"space": space.plain(), "labels": kind, "order": "by class"}
    if to == "dc":
        torch.save({"data": [[images, labels]], "accs_all_exps": {}}, folder / _dc_name(manifest))
        return about
    plain = to == "ddranking"
    names = ["images.pt", "labels.pt", "lr.pt"]
    if not plain:
        names = ["images_best.pt", "labels_best.pt", "lr_best.pt"]
    torch.save(images, folder / names[0])
    torch.save(labels, folder / names[1])
    step_size = learned_step_size(manifest)
    if step_size is not None:
        torch.save(torch.tensor(step_size), folder / names[2])
        about["step_size"] = step_size
        about.update(_several(manifest))
    if space.mean is not None and space.matrix is not None:
        tensors = {"mean": space.mean, "matrix": space.matrix.contiguous()}
        save_file(tensors, folder / "whitening.safetensors", metadata={"format": "pt"})
        about["space"] = {"space": "zca", "matrix": "whitening.safetensors"}
    return about


def learned_step_size(manifest: Manifest) -> float | None:
    """The experts' learned step size; of several the geometric mean, since it scales.

    Sizes that have no such mean, for one is not positive: the first.
    """
    sizes = [entry.step_size for entry in manifest.experts if entry.step_size is not None]
    if not sizes or len(set(sizes)) == 1 or min(sizes) <= 0:
        return sizes[0] if sizes else None
    return math.exp(sum(map(math.log, sizes)) / len(sizes))


def _several(manifest: Manifest) -> dict[str, Any]:
    """What the one step size stands for, where experts have several, or some have none."""
    sizes = [entry.step_size for entry in manifest.experts]
    if len(set(sizes)) == 1:
        return {}
    known = [size for size in sizes if size is not None]
    one = "the first" if min(known) <= 0 else "the geometric mean"
    one = "the one" if len(set(known)) == 1 else one
    return {
        "step_sizes": sizes,
        "step_size_is": f"{one} of the experts' learned step sizes; step_sizes has each expert's",
    }


def _labels(to: str, manifest: Manifest, rows: ExportRows) -> tuple[Tensor, str]:
    """Labels as the layout's scripts take them: DATM and DD-Ranking apply softmax to soft ones."""
    if rows.soft is None or to == "dc":
        lost = "" if rows.soft is None else " (the set's soft labels are no part of this layout)"
        return rows.labels, f"class numbers{lost}"
    told = {
        entry.config.get("imported", {}).get("concluded", {}).get("soft_labels")
        for entry in manifest.experts
    }
    if imported_from(manifest) == {to} and told == {"probabilities"}:
        return rows.soft, "probabilities"
    return rows.soft.clamp(min=_TINY).log(), "logits (logarithms of the probabilities)"


def _dc_name(manifest: Manifest) -> str:
    """The name of the file that was imported, or one made like it."""
    files = list(manifest.experts[0].config.get("imported", {}).get("files", {}))
    if len(manifest.experts) == 1 and files and re.fullmatch(r"res_[\w.+-]+\.pt", files[0]):
        return str(files[0])
    methods = "+".join(dict.fromkeys(entry.method.upper() for entry in manifest.experts))
    per_class = max(map(sum, zip(*(e.stored_per_class for e in manifest.experts), strict=True)))
    return f"res_{methods}_{manifest.source.data.upper()}_unknown_{per_class}ipc.pt"
