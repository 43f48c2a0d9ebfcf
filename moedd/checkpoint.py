"""Checkpoints: everything a run needs to go on, in one file that is whole or absent.

The file is safetensors; what is not a tensor travels as JSON in its header. It is written beside
its place and moved there, so a kill at any moment leaves the previous checkpoint or the new one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from moedd_loaders.errors import MoeddError
from moedd_loaders.files import scratch_name


def write_atomically(path: Path, payload: bytes) -> None:
    """Put `payload` at `path` in one step: readers see the old bytes or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write tensors (any shape, any dtype) and JSON-able `meta` to `path`, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={"meta": json.dumps(meta)}))


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote; a damaged file is a `MoeddError` that names it."""
    return _read(path, with_tensors=True)


def load_meta(path: Path) -> dict[str, Any]:
    """The `meta` of a checkpoint alone; its tensors stay on the disk."""
    return _read(path, with_tensors=False)[1]


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            names = list(file.keys()) if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise MoeddError(
            f"checkpoint {path} cannot be read ({error}); delete it to start the run anew"
        ) from error
    return tensors, meta
