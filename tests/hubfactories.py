"""The clients of the Hub in a test: own caches, no waiting, logged in as whom one likes."""

from __future__ import annotations

import fnmatch
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import factories
import pytest
from hub_card import front_matter
from hub_faults import Asked
from hub_server import HubServer
from hub_store import Commit, File, Repo

from moedd_loaders.manifest import Manifest
from moedd_loaders.records import Record, append_records
from moedd_publish.hub import Pushed, PushOptions, push_to_hub

SILENT: Any = lambda _: None  # noqa: E731
NAME = "toy-idm+idm_plain-2x2"


def fresh_client(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Empty caches, online, no Xet, no waiting between tries."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    from moedd_loaders import hubclient
    from moedd_publish import hub as publishing
    from moedd_publish import hubspace

    for name, value in {
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    patient = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    for module in (_http, file_download, hubclient, publishing, hubspace):
        monkeypatch.setattr(module, "time", patient)
    huggingface_hub.close_session()


def log_in(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """Use this token, or none."""
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def push(folder: Path, repo_id: str = "someone/toy", **options: Any) -> Pushed:
    """Push the set and say nothing."""
    return push_to_hub(folder, repo_id, PushOptions(**options), say=SILENT)


def writes(log: list[Asked]) -> list[str]:
    """Routes of the requests that change something."""
    return [asked.route for asked in log if asked.method not in ("GET", "HEAD")]


def make_set(folder: Path, **given: Any) -> Manifest:
    """A small set with records of all kinds of rows."""
    manifest = factories.make_set(folder, **given)
    append_records(folder, make_records(manifest), manifest.training_sha256)
    return manifest


def make_records(manifest: Manifest, **changes: Any) -> list[Record]:
    """Two networks per row: distilled with and without fusion, random, all real images."""
    rows = (("distilled", "none"), ("distilled", "mixup"), ("random", "none"), ("full", "none"))
    return [
        make_record(
            manifest,
            variant=variant,
            fuse=fuse,
            accuracy=0.4 + 0.1 * number + 0.02 * repeat,
            config={"repeat": repeat, "draw": 0, "width": 128, "profile": "float32"},
            **changes,
        )
        for number, (variant, fuse) in enumerate(rows)
        for repeat in range(2)
    ]


def make_record(manifest: Manifest, **changes: Any) -> Record:
    """One trained network, with all that makes a record worth trusting."""
    values: dict[str, Any] = {
        "data": manifest.source.data,
        "set_name": manifest.name,
        "methods": [entry.method for entry in manifest.experts],
        "ipc": 2,
        "experts": len(manifest.experts),
        "variant": "distilled",
        "fuse": "none",
        "network": "convnet3",
        "protocol": "common-300",
        "epochs": 300,
        "seed": 0,
        "accuracy": 0.5,
        "chance": 1 / len(manifest.classes),
        "set_hash": manifest.training_sha256,
        "hardware": "a processor",
        "versions": {"moedd": "0.1.0", "torch": "2.14.1"},
        "data_fingerprint": "sha256:00",
        "created": "2026-12-01T00:00:00Z",
        "n_train": 30,
        "test_images": 100,
    }
    return Record(**{**values, **changes})


def the_repo(hub: HubServer, repo_id: str = "someone/toy") -> Repo:
    return hub.store.repos["datasets", repo_id]


def broken_states(repo: Repo) -> list[str]:
    """What a reader could have found half-published, in any commit of any branch or tag: files
    that a manifest lists and that are missing or other, named by commit; should be empty."""
    return [
        f"{commit.title}: {problem}"
        for commit in repo.commits.values()
        for problem in _problems(commit)
    ]


def missing_files(commit: Commit) -> list[str]:
    """Paths of the card's configurations that no file of the commit has; should be empty."""
    card = front_matter(commit.files.get("README.md", File(b"")).data.decode()) or {}
    patterns = [
        pattern
        for config in card.get("configs", [])
        for split in config["data_files"]
        for pattern in ([split["path"]] if isinstance(split["path"], str) else split["path"])
    ]
    return [p for p in patterns if not fnmatch.filter(commit.files, p)]


def _problems(commit: Commit) -> list[str]:
    described = commit.files.get("moedd.json")
    ours = ("data", "tensors", "webdataset", "recipe", "benchmarks")
    payload = [path for path in commit.files if path.split("/")[0] in ours]
    if described is None:
        return [f"{path} without a manifest" for path in payload]
    manifest = json.loads(described.data)
    listed = {path: entry["sha256"] for path, entry in manifest["files"].items()}
    # The formats that were left out are not among the checksums.
    sums = commit.files.get("checksums.sha256", File(b"")).data.decode().split()
    published = dict(zip(sums[1::2], sums[::2], strict=True))
    known = {**listed, "moedd.json": described.sha256}
    wrong = [path for path, digest in published.items() if known.get(path) != digest]
    wrong += [
        path
        for path in published
        if path not in commit.files or commit.files[path].sha256 != published[path]
    ]
    wrong += [path for path in payload if path not in published and path not in BENCHMARKS]
    if "tensors/distilled.safetensors" not in published:
        wrong.append("no tensors")
    return wrong + missing_files(commit) + _benchmark_problems(commit, manifest["training_sha256"])


BENCHMARKS = ("benchmarks/results.jsonl", "benchmarks/results.parquet")


def _benchmark_problems(commit: Commit, training_sha256: str) -> list[str]:
    """Records of other images, or a table that does not say what the lines say."""
    import io

    import pyarrow.parquet as pq

    there = [path for path in BENCHMARKS if path in commit.files]
    if not there:
        return []
    if len(there) == 1:
        return [f"{there[0]} alone"]
    lines, table = (commit.files[path].data for path in BENCHMARKS)
    records = [json.loads(line) for line in lines.splitlines()]
    rows = pq.read_table(io.BytesIO(table)).to_pylist()
    wrong = [f"a record of {r['set_hash']}" for r in records if r["set_hash"] != training_sha256]
    keys = ("set_hash", "network", "variant", "fuse", "accuracy", "created")
    said, shown = ([[row[key] for key in keys] for row in of] for of in (records, rows))
    return wrong if said == shown else [*wrong, "records and their table differ"]
