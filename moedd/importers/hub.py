"""Tables with an image column and an integer class column: sets on the Hub, Parquet folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moedd.imagescan import Item
from moedd.importers.encoded import read_images
from moedd.importers.released import Released, source_files
from moedd.readers import split_files
from moedd.tablereaders import (
    HUB_ID,
    hub_card,
    hub_columns,
    hub_items,
    load_hub,
    parquet_columns,
    parquet_items,
)
from moedd_loaders.errors import DataError, UsageError

__all__ = ["is_hub_id", "read_hub", "read_parquet"]

_OURS = {"id", "image", "label", "expert", "method", "k"}


def is_hub_id(text: str) -> bool:
    """Whether the text is NAMESPACE/NAME[:CONFIGURATION][@REVISION]."""
    return HUB_ID.fullmatch(text) is not None


def read_hub(address: str) -> Released:
    """The train split of a data set on the Hub (or in its local cache).

    Raises:
        NetworkError, AuthError: the Hub cannot be reached or wants a token.
        DataError: no such set, no image or class column, unreadable images.
    """
    match = HUB_ID.fullmatch(address)
    assert match is not None
    hub_id, revision = match["id"], match["rev"]
    splits = load_hub(hub_id, {"name": match["config"], "revision": revision})
    name = _split(address, list(splits))
    table = splits[name]
    _not_ours(address, table.column_names)
    image, label, names = hub_columns(table.features, None)
    labels = _class_numbers(list(table[label]), f"{hub_id} {name}")
    items = hub_items(table, image, labels, f"{hub_id} {name}")()
    sha, licence = hub_card(hub_id, revision)
    commit = {"revision": sha or revision or "unknown", "split": name}
    return _released(
        items, len(table), names, hub_id, {hub_id: commit}, licence, f"{hub_id} on the Hub"
    )


def read_parquet(root: Path) -> Released:
    """The train split of a folder of Parquet files, as a clone of a Hub repository has them.

    Raises:
        DataError: no Parquet file with an image and a class column, unreadable images.
    """
    files, _ = split_files(root, ".parquet", None)
    name = _split(str(root), list(files))
    paths = files[name]
    items: list[Item] = []
    names: list[str] | None = None
    for path in paths:
        try:
            schema = pq.read_schema(path)
            _not_ours(str(root), schema.names)
            image, label, names = parquet_columns(schema, None)
            found = pq.read_table(path, columns=[label]).column(0).to_pylist()
            numbers = _class_numbers(found, path.name)
            items += parquet_items(path, root, image, numbers)
        except (pa.ArrowException, OSError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise DataError(f"'{path}' is not a readable Parquet file ({first})") from error
    hashes = source_files(paths, root)
    return _released(items, len(items), names, root.resolve().name, hashes, None, "")


def _released(
    items: Any,
    count: int,
    names: Sequence[str] | None,
    where: str,
    files: dict[str, dict[str, Any]],
    licence: str | None,
    origin: str,
) -> Released:
    images, labels, notes = read_images(items, count, where)
    return Released(
        format="hub",
        images=images,
        labels=labels,
        files=files,
        classes=None if names is None else tuple(names),
        class_rule="" if names is None else "as declared in the data (ClassLabel)",
        methods=("rded", "sre2l", "idc", "dm", "mtt"),
        hints={"decode": "methods that store tiles (IDC, IDM) must be told"},
        notes=(*notes, "8-bit pictures: values of 255 steps"),
        license=licence,
        origin=origin,
    )


def _split(where: str, names: list[str]) -> str:
    if "train" in names:
        return "train"
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise UsageError(f"{where} has the splits {listed}, expected one called train, or one only")
    return names[0]


def _class_numbers(labels: list[Any], where: str) -> list[int]:
    for row, label in enumerate(labels):
        if type(label) is not int or label < 0:
            raise DataError(f"{where} row {row} has the label {label!r}, expected 0, 1, 2, ...")
    return labels


def _not_ours(where: str, columns: Sequence[str]) -> None:
    if set(columns) >= _OURS:
        raise UsageError(
            f"{where} is a set of moedd already: use it by its name, there is nothing to import"
        )
