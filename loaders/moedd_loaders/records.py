"""Benchmark records: one JSON line for each network trained on a set (or beside it).

Records of a set in `$MOEDD_HOME/sets` lie in the set, in `benchmarks/results.jsonl`; those of
bundled sets and of sets on the Hub in `$MOEDD_HOME/records/<training_sha256>.jsonl`. Readers merge
both. A record belongs to a set if it carries its `training_sha256`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moedd_loaders.errors import InvalidSetError, from_oserror
from moedd_loaders.manifest import RESULTS, Manifest

__all__ = ["Record", "append_records", "read_records", "records_in", "records_path"]


class Record(BaseModel):
    """One trained network.

    `accuracy` and `chance` are fractions in [0, 1] on `test_images` test images. `variant` says
    what was trained on ("distilled", "random", "full", ...), `fuse` how experts were mixed.
    `set_hash` is the set's `training_sha256`. `n_train` counts the training images after decoding.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    data: str
    set_name: str
    methods: list[str]
    ipc: int
    experts: int
    variant: str
    fuse: str
    network: str
    protocol: str
    epochs: int
    schedule_fraction: float = 1.0
    seed: int
    accuracy: float = Field(ge=0, le=1)
    chance: float = Field(ge=0, le=1)
    set_hash: str
    hardware: str = ""
    versions: dict[str, str] = {}
    data_fingerprint: str = ""
    created: str
    optimizer_steps: int = 0
    seconds: float = 0.0
    config: dict[str, Any] = {}
    n_train: int
    test_images: int

    @property
    def identity(self) -> tuple[str | int, ...]:
        """Which network this is: a second record of the same one replaces the first."""
        # A stranger's record may hold anything here, and an identity must be hashable.
        width, repeat, draw, profile = (
            value if isinstance(value, (int, str)) else repr(value)
            for value in (
                *(self.config.get(key, 0) for key in ("width", "repeat", "draw")),
                self.config.get("profile", "float32"),
            )
        )
        return (
            self.data_fingerprint, self.variant, self.fuse, self.network, self.protocol, width,
            self.seed, repeat, draw, profile,
        )  # fmt: skip


def records_path(set_folder: Path | None, training_sha256: str) -> Path:
    """Where new records of a set go: into its folder, or under `$MOEDD_HOME/records`."""
    if set_folder is not None:
        return Path(set_folder) / RESULTS
    # Imported late: resolving names and keeping records know each other.
    from moedd_loaders.resolve import home

    return home() / "records" / f"{training_sha256}.jsonl"


def append_records(
    set_folder: Path | None, records: Sequence[Record], training_sha256: str
) -> Path:
    """Append records (in one write, so that two runs do not mix lines) and return the file.

    Args:
        set_folder: the set's folder if records may lie in it, else None.

    Raises:
        DiskFullError: the disk is full; none of the records was kept.
    """
    path = records_path(set_folder, training_sha256)
    data = "".join(record.model_dump_json() + "\n" for record in records).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, data)
    except OSError as error:
        raise from_oserror(error, f"writing records to {path}") from error
    return path


def read_records(manifest: Manifest, folder: Path | str | None) -> list[Record]:
    """All records of a set: those in its folder, then those in `$MOEDD_HOME/records`.

    Of two records of one and the same network the later one counts.

    Records of the same name that carry another `training_sha256` (the set was made anew since)
    are left out.

    Raises:
        InvalidSetError: a line is not a record; names the file and the line.
    """
    wanted = manifest.training_sha256
    paths = [records_path(None, wanted)]
    if folder is not None:
        paths.insert(0, records_path(Path(folder), wanted))
    found: dict[tuple[str | int, ...], Record] = {}
    for path in paths:
        for record in records_in(path):
            if record.set_hash == wanted:
                found[record.identity] = record
    return list(found.values())


def records_in(path: Path) -> list[Record]:
    """All records of one file, in order, of whatever set; none if there is no such file.

    Raises:
        InvalidSetError: a line is not a record; names the file and the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        records.append(record_in(line, f"{path}, line {number}"))
    return records


def record_in(line: bytes | str, place: str) -> Record:
    """The record of one line of JSON. Raises InvalidSetError, which names the place."""
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidSetError(
            f"{place} is not a record ({where}: {first['msg']}): remove the line"
        ) from None


def _append(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(handle, data[written:])
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)
