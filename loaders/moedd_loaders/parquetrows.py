"""Rows of a set's Parquet shards; a file is sized up by its footer before anything is unpacked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moedd_loaders.errors import InvalidSetError

__all__ = ["parquet_rows"]

_COLUMNS = ["id", "image", "label", "expert", "method", "k"]
_ROOM = 16_000_000
"""Bytes that a shard may unpack to beyond what its rows' pixels can need."""


def parquet_rows(
    path: Path, classes: Sequence[str], most: int, rows: int
) -> Iterator[dict[str, Any]]:
    """Rows in order, the image as `png` bytes.

    Args:
        classes: names that the label column must declare.
        most: bytes that one row can need (its uncompressed pixels and some).
        rows: how many rows the file can hold, by the manifest; what the file says is not believed.

    Raises:
        InvalidSetError: not a Parquet file; other columns or classes; more rows or bytes than the
            shard can hold; an image stored as a path.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # One file: with the path alone, pyarrow would look for partitions in the folder's name.
        with pq.ParquetFile(path) as file:
            _check_footer(path, file, classes, most, rows)
            # One row at a time: a dictionary may stand for a large value in every one of them.
            for batch in file.iter_batches(1, use_threads=False):
                for row in batch.to_pylist():
                    yield _plain_row(path, number, row)
                    number += 1
    except InvalidSetError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InvalidSetError(f"{path} is not a readable Parquet file: {first}") from None


def _plain_row(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    image = row.pop("image") or {}
    if image.get("path"):
        raise InvalidSetError(
            f"{path}, row {number} names the image file {image['path']!r}: a set holds the "
            "bytes of its images, never paths"
        )
    return {**row, "png": image.get("bytes")}


def _check_footer(path: Path, file: Any, classes: Sequence[str], most: int, rows: int) -> None:
    import pyarrow as pa

    schema = file.schema_arrow
    if schema.names != _COLUMNS:
        raise InvalidSetError(f"{path} has the columns {schema.names}, expected {_COLUMNS}")
    image = schema.field("image").type
    if image != pa.struct([("bytes", pa.binary()), ("path", pa.string())]):
        raise InvalidSetError(f"{path} stores its images as {image}, expected bytes and path")
    if _declared(schema.metadata) != list(classes):
        raise InvalidSetError(f"{path} names other classes than the manifest")
    footer = file.metadata
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    counted = sum(group.num_rows for group in groups)
    if max(footer.num_rows, counted) > rows:
        raise InvalidSetError(
            f"{path} holds {max(footer.num_rows, counted):,} rows, and the manifest leaves it "
            f"{rows:,} at most"
        )
    allowed = rows * most + _ROOM
    if unpacked > allowed:
        raise InvalidSetError(
            f"{path} would unpack to {unpacked:,} bytes, and its {rows} rows need at most "
            f"{allowed:,}"
        )


def _declared(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Class names in the form of the `datasets` library, None where there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features["label"]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
