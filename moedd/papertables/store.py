"""The folder of records: one JSON line per trained network, `DIR/tables-NAME.jsonl`.

A record of a cell carries the cell's address in `config["cell"]`; other files in the folder, and
records without an address, are left alone. Lines are appended in one write each, so several
processes may write to one file. What a machine that lost power left half-written is no JSON: it is
skipped, and its cell runs again.
"""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from moedd_loaders.errors import MoeddWarning, from_oserror
from moedd_loaders.records import Record, record_in

PREFIX = "tables-"


def read_cells(folder: Path) -> dict[str, Record]:
    """Records of cells by address, from the `tables-*.jsonl` of the folder; of two of one cell
    the first one counts.

    Raises InvalidSetError: a line is JSON and no record; names the file and the line.
    """
    found: dict[str, Record] = {}
    for path in sorted(folder.glob(f"{PREFIX}*.jsonl")) if folder.is_dir() else []:
        for record in _read(path):
            address = record.config.get("cell")
            if isinstance(address, str):
                found.setdefault(address, record)
    return found


def find_cell(folder: Path, name: str, address: str) -> Record | None:
    """The record of one cell, from the file of the sets called `name`."""
    path = _path(folder, name)
    records = _read(path) if path.is_file() else []
    return next((record for record in records if record.config.get("cell") == address), None)


def append_cell(folder: Path, name: str, record: Record) -> Path:
    """Append a record to the file of the sets called `name`.

    Raises DiskFullError and the like: nothing was kept.
    """
    path = _path(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _append(path, (record.model_dump_json() + "\n").encode())
    except OSError as error:
        raise from_oserror(error, f"writing records to {path}") from error
    return path


def _path(folder: Path, name: str) -> Path:
    return folder / f"{PREFIX}{name}.jsonl"


def _append(path: Path, line: bytes) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        before = os.fstat(handle).st_size
        if before and os.pread(handle, 1, before - 1) != b"\n":
            line = b"\n" + line  # after a half line, which stays a line of its own
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, before)
            raise OSError(28, os.strerror(28))
    finally:
        os.close(handle)


def _read(path: Path) -> Iterable[Record]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            json.loads(line)
        except ValueError:
            message = f"{path}, line {number} is half a line and is skipped"
            warnings.warn(message, MoeddWarning, stacklevel=2)
            continue
        yield record_in(line, f"{path}, line {number}")
