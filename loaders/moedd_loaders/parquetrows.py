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


def parquet_rows(path: Path, classes: Sequence[str], most: int) -> Iterator[dict[str, Any]]:
    """Rows in order, the image as `png` bytes.

    Args:
        classes: names that the label column must declare.
        most: bytes that one row can need (its uncompressed pixels and some).

    Raises:
        InvalidSetError: not a Parquet file; other columns or classes; more rows or bytes than the
            shard can hold; an image stored as a path.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file: with the path alone, pyarrow would look for partitions in the folder's name.
        with pq.ParquetFile(path) as file:
            _check_footer(path, file, classes, most)
            table = file.read()
    except InvalidSetError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InvalidSetError(f"{path} is not a readable Parquet file: {first}") from None
    for number, row in enumerate(table.to_pylist()):
        image = row.pop("image") or {}
        if image.get("path"):
            raise InvalidSetError(
                f"{path}, row {number} names the image file {image['path']!r}: a set holds the "
                "bytes of its images, never paths"
            )
        yield {**row, "png": image.get("bytes")}


def _check_footer(path: Path, file: Any, classes: Sequence[str], most: int) -> None:
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
    allowed = footer.num_rows * most + _ROOM
    if unpacked > allowed:
        raise InvalidSetError(
            f"{path} would unpack to {unpacked:,} bytes, and its {footer.num_rows} rows need at "
            f"most {allowed:,}"
        )


def _declared(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Class names in the form of the `datasets` library, None where there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features["label"]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
