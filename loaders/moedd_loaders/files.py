"""Writing files so that none is ever seen half-written."""

from __future__ import annotations

import glob
import os
import secrets
from pathlib import Path

__all__ = ["put", "remove_scratch", "scratch_name"]


def scratch_name(path: Path) -> Path:
    """A fresh hidden sibling of `path`, on the same file system, so that a rename is atomic."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_scratch(path: Path) -> None:
    """Take away what writers of the file `path` that were killed have left. Nobody may be at it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink()


def put(path: Path, data: bytes) -> None:
    """Write `data` to `path`, making its folder: afterwards the file is whole or untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_name(path)
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
