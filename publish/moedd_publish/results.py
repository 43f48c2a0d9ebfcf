"""Benchmark records on their way out: which may be published, and their Parquet form."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from moedd_loaders.errors import InvalidSetError, UsageError
from moedd_loaders.manifest import RESULTS, Manifest
from moedd_loaders.records import Record, read_records, records_in

__all__ = [
    "RESULTS_TABLE",
    "merged",
    "publishable",
    "readable_records",
    "records_bytes",
    "records_table",
]

RESULTS_TABLE = "benchmarks/results.parquet"
_NEEDED = ("protocol", "network", "data_fingerprint", "hardware", "versions")


def publishable(manifest: Manifest, folder: Path, extra: Path | None = None) -> list[Record]:
    """The records that go out with a set: those beside it, those at home, those of `extra`.

    Raises:
        InvalidSetError: a record is of another set, or lacks what makes it worth trusting.
        UsageError: `extra` does not exist.
    """
    if extra is not None and not extra.is_file():
        raise UsageError(f"there is no file {extra}: give the records that `moedd evaluate` wrote")
    for path in (folder / RESULTS, *([extra] if extra else [])):
        for number, record in enumerate(records_in(path), 1):
            _check(path, number, record, manifest)
    found = merged(read_records(manifest, folder), records_in(extra) if extra else [])
    for record in found:  # those at home have been read only now
        _check_whole("a record", record)
    return found


def merged(*lists: Iterable[Record]) -> list[Record]:
    """Records of several places; of two of the very same network the one made later counts."""
    found: dict[tuple[str | int, ...], Record] = {}
    for records in lists:
        for record in records:
            before = found.get(record.identity)
            if before is None or record.created >= before.created:
                found[record.identity] = record
    return list(found.values())


def readable_records(text: str) -> list[Record]:
    """The records of a published file, without lines that are none: not ours to mend."""
    found = []
    for line in text.splitlines():
        try:
            found.append(Record.model_validate_json(line))
        except ValidationError:
            continue
    return found


def records_bytes(records: Sequence[Record]) -> bytes:
    """JSON lines, as `moedd evaluate` writes them."""
    return "".join(record.model_dump_json() + "\n" for record in records).encode()


def records_table(records: Sequence[Record]) -> bytes:
    """The same as Parquet, one row per network, for `load_dataset(..., "benchmarks")`.

    Lists and mappings become text: their types would differ from one set to the next.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for record in records:
        row = record.model_dump()
        row["methods"] = "+".join(row["methods"])
        for key in ("versions", "config"):
            row[key] = json.dumps(row[key], sort_keys=True)
        rows.append(row)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="snappy")
    return buffer.getvalue()


def _check(path: Path, number: int, record: Record, manifest: Manifest) -> None:
    if record.set_hash != manifest.training_sha256:
        raise InvalidSetError(
            f"{path}, record {number}, is of other images (training hash {record.set_hash[:12]}, "
            f"that of {manifest.name} is {manifest.training_sha256[:12]}): remove it and evaluate "
            "this set"
        )
    _check_whole(f"{path}, record {number},", record)


def _check_whole(which: str, record: Record) -> None:
    lacking = [key for key in _NEEDED if not getattr(record, key)]
    if lacking:
        raise InvalidSetError(
            f"{which} of {record.network} on {record.set_name} says nothing of "
            f"{', '.join(lacking)}: evaluate the set anew, nobody could check it"
        )
