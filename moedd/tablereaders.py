"""Opens real data that come as tables: a local folder of Parquet files, or a Hub data set.

The Hub is reached through `datasets`, imported only here and only when needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moedd.datatable import CONVERT_BRANCH, DataSpec
from moedd.imagescan import Item
from moedd.readers import Opened, SplitSource, named_classes, no_train, split_files, test_split
from moedd_loaders.errors import AuthError, DataError, MoeddError, NetworkError

__all__ = [
    "HUB_ID",
    "hub_card",
    "hub_columns",
    "hub_error",
    "hub_items",
    "load_hub",
    "open_hub",
    "open_hub_splits",
    "open_parquet",
    "parquet_columns",
    "parquet_items",
]

HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<config>[\w.-]+))?(@(?P<rev>[\w./-]+))?"
)
"""NAMESPACE/NAME[:CONFIGURATION][@REVISION], matched in full."""

ROWS = 64
"""Rows of a table read at once: the encoded images of so many are in memory."""
PAGE_BYTES = 2**20
"""What is read at once of a column of a Parquet file, which without it is read as a whole."""


def _choose(
    what: str, wanted: str | None, candidates: list[str], usual: tuple[str, ...], columns: list[str]
) -> str:
    """One column: the table's, else the usual name, else the only candidate."""
    for name in (wanted, *usual):
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(
        f"expected one {what} column, found {len(candidates)} "
        f"({', '.join(candidates) or 'none'}) among the columns {', '.join(columns)}; "
        "rename the one that is meant to 'image' or 'label'"
    )


def parquet_columns(schema: pa.Schema, spec: DataSpec | None) -> tuple[str, str, list[str] | None]:
    """Image column, label column, and the class names declared for the latter, if any."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features: dict[str, Any] = info["info"]["features"]
    except (ValueError, KeyError, TypeError):
        features = {}
    images = [
        column.name
        for column in schema
        if pa.types.is_struct(column.type) and any(child.name == "bytes" for child in column.type)
    ]
    integers = [column.name for column in schema if pa.types.is_integer(column.type)]
    kinds = {name: value for name, value in features.items() if isinstance(value, dict)}
    labelled = [name for name in integers if kinds.get(name, {}).get("_type") == "ClassLabel"]
    image = _choose(
        "image", spec.image_column if spec else None, images, ("image", "img"), schema.names
    )
    label = _choose(
        "label",
        spec.label_column if spec else None,
        labelled if len(labelled) == 1 else integers,
        ("label", "labels"),
        schema.names,
    )
    return image, label, kinds.get(label, {}).get("names")


def _checked(labels: list[int | None], classes: int, where: str) -> list[int]:
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < classes:
            given = "no label" if label is None else f"label {label}"
            raise DataError(f"{where} row {row} has {given}, expected 0..{classes - 1}")
    return [label for label in labels if label is not None]


def open_parquet(root: Path, spec: DataSpec | None) -> Opened | None:
    """A folder of Parquet files as the Hub writes them; None if there is no .parquet file.

    The image column is a struct with a field `bytes` (encoded image); the label column holds
    integers. Class names: the file's own `huggingface` metadata, else the table, else classes.txt.
    """
    files, notes = split_files(root, ".parquet", spec)
    if not files:
        return None
    if "train" not in files:
        raise no_train(root, files)
    test_name = test_split(files, spec)
    image, label, declared = "", "", None
    labels: dict[Path, list[int | None]] = {}
    used = files["train"] + (files[test_name] if test_name else [])
    for path in used:
        try:
            schema = pq.read_schema(path)
            if not labels:
                image, label, declared = parquet_columns(schema, spec)
            missing = {image, label} - set(schema.names)
            if missing:
                raise DataError(f"'{path}' lacks the column {', '.join(sorted(missing))}")
            labels[path] = pq.read_table(path, columns=[label]).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            first = str(error).splitlines()[0]
            raise DataError(f"'{path}' is not a readable Parquet file ({first})") from error
    count = max((value or 0 for found in labels.values() for value in found), default=-1) + 1
    classes, rule = named_classes(root, count, spec, declared)
    checked = {
        path: _checked(found, len(classes), path.relative_to(root).as_posix())
        for path, found in labels.items()
    }

    def source(split: str) -> SplitSource:
        paths = files[split]

        def items() -> Iterator[Item]:
            for path in paths:
                yield from parquet_items(path, root, image, checked[path])

        return SplitSource(sum(len(checked[path]) for path in paths), items)

    if test_name not in (None, "test"):
        notes.append(f"the '{test_name}' files serve as test split")
    test = source(test_name) if test_name else None
    return Opened("Parquet folder", classes, rule, source("train"), test, notes)


def parquet_items(path: Path, root: Path, image: str, labels: list[int]) -> Iterator[Item]:
    shown = path.relative_to(root).as_posix()
    row = 0
    with pq.ParquetFile(path, buffer_size=PAGE_BYTES) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=[image]):
            for data in batch.column(0).field("bytes").to_pylist():
                # No bytes (a bare path): the scan lists it as an image of 0 bytes.
                yield Item(f"{shown} row {row}", labels[row], data or b"")
                row += 1


def open_hub(
    hub_id: str, config: str | None, revision: str | None, spec: DataSpec | None
) -> Opened:
    """A data set of the Hugging Face Hub (or of its local cache), through `datasets`.

    Raises NetworkError (exit 6) if the Hub cannot be reached and nothing is cached, AuthError (3)
    if it wants a token, DataError (2) if there is no such data set, configuration or column.
    """
    arguments: dict[str, Any] = {"name": config, "revision": revision}
    if spec is not None and revision == CONVERT_BRANCH:
        # That branch has no configurations: folders CONFIG/SPLIT/NNNN.parquet instead.
        splits = {"train": spec.train_split, "test": spec.test_split}
        globs = {name: f"{config}/{split}/*.parquet" for name, split in splits.items()}
        arguments = {"data_files": globs, "revision": revision}
    opened = open_hub_splits(load_hub(hub_id, arguments), hub_id, spec)
    sha, license_ = hub_card(hub_id, revision)
    opened.hub_id, opened.revision = hub_id, sha or revision
    opened.license = spec.license if spec is not None else license_
    return opened


def load_hub(hub_id: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The splits of a Hub data set (`datasets.Dataset` by name); errors as `open_hub`'s."""
    import datasets

    try:
        return dict(datasets.load_dataset(hub_id, **arguments))
    except Exception as error:
        known = hub_error(error, hub_id)
        if known is None:
            raise
        raise known from error


def hub_card(hub_id: str, revision: str | None) -> tuple[str | None, str]:
    """The commit that was read and the licence its card states; (None, "unknown") if not told."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(hub_id, revision=revision, timeout=10)
    except Exception:  # cached data can be used offline: then the commit is simply not known
        return None, "unknown"
    card = info.card_data
    license_ = card.get("license") if card is not None else None
    if isinstance(license_, list):
        license_ = ", ".join(str(part) for part in license_)
    return info.sha, str(license_ or "unknown")


def hub_error(error: Exception, hub_id: str) -> MoeddError | None:
    """The error for people that stands for what `datasets` raised; None for a fault of ours."""
    first = (str(error).splitlines() or [""])[0]
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    responses = [getattr(link, "response", None) for link in chain]
    codes = [getattr(response, "status_code", None) for response in responses]
    status = next((code for code in codes if code is not None), None)
    if status in (401, 403) or "gated" in first.lower():
        return AuthError(
            f"the Hub refused access to '{hub_id}' ({first}): log in with `hf auth login` and "
            "accept the data set's terms on its page"
        )
    name = type(error).__name__
    if name == "DatasetNotFoundError" or status == 404:
        return DataError(
            f"no data set '{hub_id}' on the Hub and no local folder of that path; "
            "check the spelling, or log in with `hf auth login` if it is private"
        )
    modules = {type(link).__module__.split(".")[0] for link in chain}
    if isinstance(error, ConnectionError | TimeoutError) or modules & {"httpx", "httpx2"}:
        return NetworkError(
            f"the Hub cannot be reached for '{hub_id}' ({first}): check the network (and "
            "HF_HUB_OFFLINE), or give a local copy with --data FOLDER"
        )
    if isinstance(error, ValueError | FileNotFoundError):
        return DataError(
            f"'{hub_id}' cannot be opened ({first}); give NAMESPACE/NAME:CONFIGURATION to "
            "choose a configuration"
        )
    return None


def open_hub_splits(loaded: dict[str, Any], hub_id: str, spec: DataSpec | None) -> Opened:
    """Understands the splits (a `datasets.DatasetDict` as a dict) of a data set already loaded."""
    names = ("train", spec.train_split) if spec is not None else ("train",)
    train_name = next((name for name in names if name in loaded), None)
    if train_name is None:
        raise DataError(f"'{hub_id}' has no train split, only {', '.join(sorted(loaded))}")
    test_name = test_split(loaded, spec)
    image, label, declared = hub_columns(loaded[train_name].features, spec)
    used = [train_name, *([test_name] if test_name else [])]
    labels = {split: list(loaded[split][label]) for split in used}
    count = max((value or 0 for found in labels.values() for value in found), default=-1) + 1
    classes, rule = named_classes(None, count, spec, declared)

    def source(split: str) -> SplitSource:
        checked = _checked(labels[split], len(classes), f"{hub_id} {split}")
        items = hub_items(loaded[split], image, checked, f"{hub_id} {split}")
        return SplitSource(len(loaded[split]), items)

    notes = []
    if test_name not in (None, "test"):
        notes.append(f"the '{test_name}' split serves as test split")
    test = source(test_name) if test_name else None
    return Opened("Hub data set", classes, rule, source(train_name), test, notes, hub_id=hub_id)


def hub_items(
    table: Any, image: str, labels: list[int], where: str
) -> Callable[[], Iterator[Item]]:
    """Fresh passes over the encoded images of one split of a Hub data set."""
    import datasets

    raw = table.cast_column(image, datasets.Image(decode=False))

    def items() -> Iterator[Item]:
        for start in range(0, len(raw), ROWS):
            for row, entry in enumerate(raw[start : start + ROWS][image], start):
                entry = entry or {}
                path = entry.get("path")
                data = entry.get("bytes") or (Path(path) if path else b"")
                yield Item(f"{where} row {row}", labels[row], data)

    return items


def hub_columns(
    features: dict[str, Any], spec: DataSpec | None
) -> tuple[str, str, list[str] | None]:
    """Image column, label column, and the class names declared for the latter, if any."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labelled = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    integers = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Value) and "int" in kind.dtype
    ]
    image = _choose(
        "image", spec.image_column if spec else None, images, ("image", "img"), list(features)
    )
    label = _choose(
        "label",
        spec.label_column if spec else None,
        labelled or integers,
        ("label", "labels"),
        list(features),
    )
    return image, label, features[label].names if label in labelled else None
