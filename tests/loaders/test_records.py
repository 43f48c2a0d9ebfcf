from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import factories
import pytest

from moedd_loaders.errors import DiskFullError, InvalidSetError
from moedd_loaders.manifest import Manifest
from moedd_loaders.records import Record, append_records, read_records


def record(set_hash: str, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "data": "toy",
        "set_name": "toy-idm-2x2",
        "methods": ["idm"],
        "ipc": 2,
        "experts": 2,
        "variant": "distilled",
        "fuse": "mixup",
        "network": "convnet3",
        "protocol": "common",
        "epochs": 10,
        "seed": 0,
        "accuracy": 0.5,
        "chance": 1 / 3,
        "set_hash": set_hash,
        "created": "2026-12-01T00:00:00Z",
        "n_train": 30,
        "test_images": 100,
    }
    return Record(**{**values, **changes})


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Manifest]:
    monkeypatch.setenv("MOEDD_HOME", str(tmp_path / "home"))
    folder = tmp_path / "toy-idm-2x2"
    return folder, factories.make_set(folder)


def test_records_of_both_places_are_merged_once(written: tuple[Path, Manifest]) -> None:
    folder, manifest = written
    sha = manifest.training_sha256
    a, b, c = (record(sha, seed=seed) for seed in range(3))
    inside = append_records(folder, [a, b], sha)
    assert inside == folder / "benchmarks" / "results.jsonl"
    outside = append_records(None, [b], sha)
    append_records(None, [c], sha)
    assert outside.name == f"{sha}.jsonl"
    assert read_records(manifest, folder) == [a, b, c]
    assert read_records(manifest, None) == [b, c]


def test_no_records_yet(written: tuple[Path, Manifest]) -> None:
    assert read_records(written[1], written[0]) == []


def test_records_of_an_earlier_set_of_that_name_are_left_out(
    written: tuple[Path, Manifest],
) -> None:
    folder, manifest = written
    append_records(folder, [record("0" * 64)], manifest.training_sha256)
    assert read_records(manifest, folder) == []


def test_a_broken_line_is_named(written: tuple[Path, Manifest]) -> None:
    folder, manifest = written
    path = append_records(folder, [record(manifest.training_sha256)], manifest.training_sha256)
    path.write_text(path.read_text() + '{"accuracy": 2}\n')
    with pytest.raises(InvalidSetError, match=r"results\.jsonl, line 2 is not a record"):
        read_records(manifest, folder)


def test_accuracy_is_a_fraction() -> None:
    with pytest.raises(ValueError, match="accuracy"):
        record("x", accuracy=55.0)


def test_a_full_disk_keeps_the_records_there_were(
    written: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = written
    sha = manifest.training_sha256
    path = append_records(folder, [record(sha)], sha)
    before = path.read_bytes()
    real = os.write
    calls: list[int] = []

    def half(handle: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) == 1:
            return real(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(DiskFullError, match="the disk is full"):
        append_records(folder, [record(sha, seed=1)], sha)
    monkeypatch.undo()
    assert path.read_bytes() == before
