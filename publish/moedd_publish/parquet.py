"""The Parquet view of a set: what `datasets.load_dataset(folder)` and the Hub's viewer read."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moedd_publish.rows import Rows

__all__ = ["parquet_bytes"]

# The viewer refuses row groups beyond some 300 MB and wants about 100 (datasets' own limit).
_ROW_GROUP_BYTES = 100_000_000

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_bytes(rows: Rows, classes: Sequence[str]) -> bytes:
    """One shard: columns id, image (PNG), label, expert, method, k.

    The features are declared in the file's metadata as `datasets` does it, so that `image` decodes
    and `label` has its class names with no `dataset_info` in the card, which could go stale. Image
    bytes are embedded: a path would point into the maker's machine.
    """
    n = len(rows.ids)
    images = [{"bytes": png, "path": None} for png in rows.views]
    table = pa.Table.from_arrays(
        [
            pa.array(rows.ids, pa.string()),
            pa.array(images, _IMAGE),
            pa.array(rows.labels, pa.int64()),
            pa.array([rows.expert] * n, pa.int32()),
            pa.array([rows.method] * n, pa.string()),
            pa.array(rows.ks, pa.int32()),
        ],
        schema=_schema(classes),
    )
    largest = max(map(len, rows.views), default=1)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=max(1, _ROW_GROUP_BYTES // largest),
        compression={name: "NONE" if name.startswith("image") else "SNAPPY" for name in _COLUMNS},
        write_page_index=True,
    )
    return buffer.getvalue()


_COLUMNS = ("id", "image.bytes", "image.path", "label", "expert", "method", "k")


def _schema(classes: Sequence[str]) -> pa.Schema:
    features: dict[str, Any] = {
        "id": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "expert": {"dtype": "int32", "_type": "Value"},
        "method": {"dtype": "string", "_type": "Value"},
        "k": {"dtype": "int32", "_type": "Value"},
    }
    declared = json.dumps({"info": {"features": features}})
    return pa.schema(
        [
            ("id", pa.string()),
            ("image", _IMAGE),
            ("label", pa.int64()),
            ("expert", pa.int32()),
            ("method", pa.string()),
            ("k", pa.int32()),
        ],
        metadata={"huggingface": declared},
    )
