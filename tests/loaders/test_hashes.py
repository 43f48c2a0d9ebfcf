from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moedd_loaders.hashes import (
    content_sha256,
    file_sha256,
    row_id,
    to_view,
    training_sha256,
    view_sha256,
)
from moedd_loaders.manifest import NoDecode, TilesDecode, TrainedIn


def rows() -> tuple[list[str], Tensor, Tensor, Tensor]:
    images = torch.randn(2, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    return ["a", "b"], torch.tensor([0, 1]), torch.tensor([0, 0]), images


def test_row_ids() -> None:
    assert row_id(0, 3, 1) == "e00-c0003-k0001"
    assert row_id(12, 999, 10_000) == "e12-c0999-k10000"


def test_view_is_the_rounded_clipped_float() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_view(levels / 255), levels.to(torch.uint8))
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1)).mul(0.7).add(0.5)
    exact = np.clip(x.double().numpy(), 0, 1) * 255
    assert np.abs(to_view(x).numpy() - exact).max() <= 0.5 + 1e-4
    assert to_view(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def test_content_hash_is_what_its_definition_says() -> None:
    ids, labels, experts, images = rows()
    head = b'{"shape":[2,1,3,2],"ids":["a","b"]}'
    numbers = np.array([0, 1, 0, 0], "<i8").tobytes() + images.numpy().astype("<f4").tobytes()
    expected = hashlib.sha256(b"moedd-content/1\n" + head + b"\n" + numbers).hexdigest()
    assert content_sha256(ids, labels, experts, images) == expected


def test_hashes_see_every_part_but_not_the_memory_layout() -> None:
    ids, labels, experts, images = rows()
    first = content_sha256(ids, labels, experts, images)
    strided = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert content_sha256(ids, labels, experts, strided) == first
    changed = images.clone()
    changed[1, 0, 2, 1] = torch.nextafter(changed[1, 0, 2, 1], torch.tensor(9.0))
    others = {
        content_sha256(["a", "c"], labels, experts, images),
        content_sha256(ids, labels + 1, experts, images),
        content_sha256(ids, labels, experts + 1, images),
        content_sha256(ids, labels, experts, changed),
        content_sha256(ids, labels, experts, images.reshape(2, 1, 2, 3)),
        view_sha256(ids, labels, experts, to_view(images)),
    }
    assert len(others | {first}) == 7


def test_training_hash_sees_all_that_training_sees() -> None:
    rules = [NoDecode(), TilesDecode(factor=2)]
    spaces = [TrainedIn(), TrainedIn(space="normalized", mean=[0.5], std=[0.2])]
    soft = torch.full((2, 2), 0.5)
    hashes = {
        training_sha256("x", None, rules, spaces, [None, None]),
        training_sha256("y", None, rules, spaces, [None, None]),
        training_sha256("x", soft, rules, spaces, [None, None]),
        training_sha256("x", soft + 0.1, rules, spaces, [None, None]),
        training_sha256("x", None, rules[::-1], spaces, [None, None]),
        training_sha256("x", None, rules, spaces[::-1], [None, None]),
        training_sha256("x", None, rules, spaces, [0.01, None]),
        training_sha256(
            "x", None, [NoDecode(), TilesDecode(factor=2, order="column-major")], spaces, [None] * 2
        ),
    }
    assert len(hashes) == 8
    plain = [rule.model_dump() for rule in rules]
    assert training_sha256("x", None, plain, spaces, [None, None]) in hashes


def test_view_hash_wants_eight_bits() -> None:
    with pytest.raises(AssertionError):
        view_sha256(*rows())


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
