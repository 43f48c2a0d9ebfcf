"""The check for what is half-published finds it wherever it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hubfactories
from hub_server import HubServer
from hub_store import File
from hubfactories import broken_states, the_repo

from moedd_publish.hub import push_to_hub

Files = dict[str, File]


def drop(path: str) -> Callable[[Files], None]:
    return lambda files: files.pop(path) and None


def put(path: str, data: bytes = b"x") -> Callable[[Files], None]:
    return lambda files: files.update({path: File(data)})


def cut(path: str) -> Callable[[Files], None]:
    return lambda files: files.update({path: File(files[path].data[:-1])})


def other_records(files: Files) -> None:
    path = "benchmarks/results.jsonl"
    lines = files[path].data.splitlines(keepends=True)
    files[path] = File(b"".join(lines[1:]))


def foreign_records(files: Files) -> None:
    path = "benchmarks/results.jsonl"
    data = files[path].data
    hashed = data.split(b'"set_hash":"')[1][:64]
    files[path] = File(data.replace(hashed, b"f" * 64))


CASES: list[tuple[Callable[[Files], None], str]] = [
    (drop("tensors/distilled.safetensors"), "tensors/distilled.safetensors"),
    (drop("data/train-00001-of-00002.parquet"), "data/train-00001-of-00002.parquet"),
    (drop("webdataset/train-00001.tar"), "webdataset/train-00001.tar"),
    (cut("webdataset/train-00000.tar"), "webdataset/train-00000.tar"),
    (put("webdataset/train-00002.tar"), "webdataset/train-00002.tar"),
    (put("data/train-00002.parquet"), "data/train-00002.parquet"),
    (drop("recipe/config.json"), "recipe/config.json"),
    (drop("checksums.sha256"), "no tensors"),
    (cut("moedd.json"), "moedd.json"),
    (drop("moedd.json"), "webdataset/train-00000.tar without a manifest"),
    (drop("benchmarks/results.jsonl"), "benchmarks/results.parquet alone"),
    (drop("benchmarks/results.parquet"), "benchmarks/results.jsonl alone"),
    (put("benchmarks/old.jsonl"), "benchmarks/old.jsonl"),
    (other_records, "records and their table differ"),
    (foreign_records, "a record of " + "f" * 64),
]


def test_half_published(tmp_path: Path, hub: HubServer) -> None:
    hubfactories.make_set(tmp_path / "toy")
    push_to_hub(tmp_path / "toy", "someone/toy", say=lambda _: None)
    repo = the_repo(hub)
    assert broken_states(repo) == []
    head = repo.resolve("main")
    for change, found in CASES:
        files = dict(head.files)
        change(files)
        made = repo.add("half", files, head)
        assert f"half: {found}" in broken_states(repo), found
        del repo.commits[made.oid]
