"""What `benchmarks/gpu.sh` runs on a CUDA machine, here in small on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from enginefactories import random_data

from benchmarks import gpu


def test_packed_data_come_back_and_both_runs_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = random_data((24,) * 3, (3, 16, 16))
    monkeypatch.setattr(gpu, "load_real", lambda data, path: real)
    file = tmp_path / "packed.npz"
    gpu.main(["pack", "somewhere", str(file)])
    back = gpu.unpack(str(file))
    assert torch.equal(back.train.images, real.train.images)
    assert torch.equal(back.test.labels, real.test.labels)
    assert (back.classes, back.mean, back.flip) == (real.classes, real.mean, real.flip)
    assert back.notes[-1] == gpu.NOTE

    settings = ["width=4", "network=convnet1", "pool.networks=1", "pool.steps=2", "pool.batch=8"]
    gpu.main(
        ["run", str(file), str(tmp_path / "out"), "--device", "cpu", "--idm-fraction", "0.0002"]
        + ["--idc-fraction", "0.00001", "--epochs", "1", "--repeats", "2"]
        + [word for setting in settings for word in ("--set", setting)]
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").open()]
    assert [row["name"] for row in rows] == ["cifar10-idm-10x1", "cifar10-idc-10x1"]
    assert [row["steps"] for row in rows] == [4, 2]
    assert [row["fraction"] for row in rows] == [4 / 20_000, 2 / 200_000]
    for row in rows:
        assert len(row["accuracies"]) == 2
        assert all(0 <= value <= 100 for value in row["accuracies"])
        assert row["protocol"] == "idc-1"
