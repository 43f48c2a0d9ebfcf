"""Checkpoints: all there or not there, whatever happens while one is written."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moedd.checkpoint import load_checkpoint, load_meta, save_checkpoint, write_atomically
from moedd_loaders.errors import MoeddError


def tensors(fill: float = 1.5) -> dict[str, Tensor]:
    return {
        "images": torch.full((2, 3, 4), fill).transpose(1, 2),  # not contiguous
        "done": torch.tensor(7),
        "norm": torch.tensor(0.1, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "live.p.body.0.weight": torch.rand(2, 2, requires_grad=True),
        "strange": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    meta = {"tick": 3, "losses": {"0.match": 0.1}, "text": "é", "nothing": None, "tiny": 1e-300}
    written = tensors()
    save_checkpoint(tmp_path / "deep" / "er" / "c.safetensors", written, meta)
    found, found_meta = load_checkpoint(tmp_path / "deep" / "er" / "c.safetensors")
    assert found_meta == meta
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert os.listdir(tmp_path / "deep" / "er") == ["c.safetensors"]


def test_the_same_state_makes_the_same_bytes(tmp_path: Path) -> None:
    state = tensors()
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, state, {"tick": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Full:
    """A file on a disk that fills up after half of the bytes."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, payload: bytes) -> None:
        self.file.write(payload[: len(payload) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, tensors(1.0), {"tick": 1})
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "write":
            patch.setattr(
                "builtins.open", lambda *a, plain=open, **k: Full(plain(*a, **k)), raising=True
            )
        else:
            patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, tensors(2.0), {"tick": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"]
    assert load_checkpoint(path)[1] == load_meta(path) == {"tick": 1}


def test_readers_see_the_old_bytes_until_the_new_ones_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    seen: list[bytes] = []
    plain = os.fsync

    def looking(descriptor: int) -> None:
        seen.append(path.read_bytes())
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", looking)
    write_atomically(path, b"new and longer")
    assert seen == [b"old"]
    assert path.read_bytes() == b"new and longer"


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -8, -1])
def test_a_truncated_checkpoint_is_one_clear_sentence(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, tensors(), {"tick": 1})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MoeddError, match="checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"{}" * 500)
    with pytest.raises(MoeddError, match=r"checkpoint\.safetensors"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)  # safetensors, but of somebody else
    with pytest.raises(MoeddError, match=r"checkpoint\.safetensors"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"meta": "{not json"})
    with pytest.raises(MoeddError, match=r"checkpoint\.safetensors"):
        load_checkpoint(path)
