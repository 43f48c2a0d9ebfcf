"""A published set without moedd: plain `datasets` from the Hub, as the card says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import hubfactories
import numpy as np
import pytest
from hub_server import HubServer
from hubfactories import the_repo
from safetensors.numpy import load_file

from moedd_loaders.records import records_in
from moedd_publish.hub import PushOptions, push_to_hub


@pytest.fixture
def published(tmp_path: Path, hub: HubServer) -> Path:
    """The folder of a set that is on the Hub as someone/toy."""
    folder = tmp_path / "toy"
    hubfactories.make_set(folder, rows_per_shard=4)
    push_to_hub(folder, "someone/toy", PushOptions(), say=lambda _: None)
    return folder


def pixels(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def views(folder: Path) -> np.ndarray:
    images = load_file(folder / "tensors" / "distilled.safetensors")["images"]
    return np.rint(np.clip(images, 0, 1) * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)


def test_rows_by_expert_and_benchmarks(published: Path) -> None:
    rows = datasets.load_dataset("someone/toy")
    assert list(rows) == ["train"]
    assert np.array_equal(pixels(rows["train"]["image"]), views(published))
    assert rows["train"].features["label"].names == ["class a", "class b", "class c"]
    by_expert = datasets.load_dataset("someone/toy", "by_expert")
    assert list(by_expert) == ["expert_0", "expert_1"]
    assert [len(split) for split in by_expert.values()] == [6, 6]
    benchmarks = datasets.load_dataset("someone/toy", "benchmarks", split="train")
    records = records_in(published / "benchmarks" / "results.jsonl")
    assert len(benchmarks) == len(records) == 8
    for row, record in zip(benchmarks, records, strict=True):
        for key in ("accuracy", "network", "protocol", "fuse", "variant", "set_hash", "seed"):
            assert row[key] == getattr(record, key)


def test_streaming_and_a_version(published: Path) -> None:
    stream = datasets.load_dataset("someone/toy", split="train", streaming=True, revision="v1.0.0")
    assert [row["id"] for row in stream][:2] == ["e00-c0000-k0000", "e00-c0000-k0001"]


def test_every_snippet_of_the_card_runs(published: Path, hub: HubServer) -> None:
    card = the_repo(hub).resolve("main").files["README.md"].data.decode()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 5
    space: dict[str, Any] = {}
    for snippet in snippets:
        assert "path/to" not in snippet
        exec(snippet, space)
    exact = load_file(published / "tensors" / "distilled.safetensors")["images"]
    assert np.array_equal(space["tensors"]["images"].numpy(), exact)
    assert len(space["rows"]) == len(space["samples"]) == len(exact) == 12
    assert len(space["first"]) == 6
    assert len(space["records"]) == 8
    assert space["dataset"].origin == "hub"
    floats = np.asarray(space["samples"].with_format("numpy")["npy"][:], np.float32)
    assert np.array_equal(floats, exact)
    pinned = re.search(r'`load_distilled\("(.*?)"\)` gives this one', card)
    assert pinned is not None
    assert pinned[1] == "someone/toy@v1.0.0"


def test_only_tars(tmp_path: Path, hub: HubServer) -> None:
    """Without Parquet, the repository's first configuration is the tars."""
    folder = tmp_path / "toy"
    hubfactories.make_set(folder)
    options = PushOptions(formats=("webdataset", "safetensors"))
    push_to_hub(folder, "someone/toy", options, say=lambda _: None)
    rows = datasets.load_dataset("someone/toy", split="train")
    assert np.array_equal(pixels(rows["png"]), views(folder))


def test_the_client_finds_every_checksum_in_order(published: Path) -> None:
    """huggingface_hub's own comparison of a snapshot with the Hub."""
    from huggingface_hub import HfApi, snapshot_download

    snapshot_download("someone/toy", repo_type="dataset")
    found = HfApi().verify_repo_checksums("someone/toy", repo_type="dataset")
    assert found.mismatches == []
    assert found.missing_paths == []
