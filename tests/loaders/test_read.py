from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from safetensors.torch import load_file, save_file

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import TENSORS, Manifest
from moedd_loaders.read import read_tensors


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Manifest]:
    folder = tmp_path / "toy-idm-2x2"
    return folder, factories.make_set(folder, soft=True)


def rewrite(folder: Path, **changes: Any) -> None:
    tensors = {**load_file(folder / TENSORS), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / TENSORS)


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    source = factories.make_source(3, (1, 5, 7))
    experts = [
        factories.make_rows(source, [2, 0, 3], factories.ROW_TILES, seed=1),
        factories.make_rows(source, [1, 1, 1], seed=2),
    ]
    manifest = factories.make_set(tmp_path / "s", shape=(1, 5, 7), experts=experts)
    stored = read_tensors(tmp_path / "s", manifest)
    assert torch.equal(stored.images, torch.cat([e.images for e in experts]))
    assert stored.labels.tolist() == [0, 0, 2, 2, 2, 0, 1, 2]
    assert stored.experts.tolist() == [0] * 5 + [1] * 3
    assert stored.k.tolist() == [0, 1, 0, 1, 2, 0, 0, 0]
    assert stored.ids[4] == "e00-c0002-k0002"
    assert stored.soft_labels is None
    assert manifest.experts[0].stored_per_class == [2, 0, 3]
    assert manifest.experts[0].decoded_per_class == [8, 0, 12]


def test_soft_labels_come_back(written: tuple[Path, Manifest]) -> None:
    stored = read_tensors(*written)
    assert stored.soft_labels is not None
    torch.testing.assert_close(stored.soft_labels.sum(1), torch.ones(12))


def test_a_flipped_bit_is_seen_unless_verifying_is_off(written: tuple[Path, Manifest]) -> None:
    folder, manifest = written
    data = bytearray((folder / TENSORS).read_bytes())
    data[-4] ^= 1
    (folder / TENSORS).write_bytes(data)
    with pytest.raises(InvalidSetError, match=r"distilled\.safetensors.*sha256 differs"):
        read_tensors(folder, manifest)
    assert len(read_tensors(folder, manifest, verify=False).labels) == 12


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_and_missing_files_are_named(
    written: tuple[Path, Manifest], verify: bool
) -> None:
    folder, manifest = written
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidSetError, match=r"distilled\.safetensors"):
        read_tensors(folder, manifest, verify)
    path.unlink()
    with pytest.raises(InvalidSetError, match="is missing"):
        read_tensors(folder, manifest, verify)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "no tensor 'labels'"),
        ({"images": torch.zeros(12, 3, 8, 9)}, "'images' is"),
        ({"images": torch.zeros(12, 3, 8, 8, dtype=torch.float16)}, "'images' is"),
        ({"images": torch.full((12, 3, 8, 8), float("inf"))}, "'images' holds NaN"),
        ({"soft_labels": torch.full((12, 3), float("nan"))}, "'soft_labels' holds NaN"),
        ({"soft_labels": None}, "holds no soft labels"),
        ({"labels": torch.full((12,), 3)}, "'labels' of expert 0"),
        ({"labels": torch.tensor([0, 0, 2, 2, 1, 1] * 2)}, "'labels' of expert 0"),
        ({"experts": torch.zeros(12, dtype=torch.int64)}, "'experts' of expert 1"),
        ({"k": torch.zeros(12, dtype=torch.int64)}, "'k' of expert 0"),
    ],
)
def test_tensors_must_be_the_rows_of_the_manifest(
    written: tuple[Path, Manifest], changes: dict[str, Any], said: str
) -> None:
    rewrite(written[0], **changes)
    with pytest.raises(InvalidSetError, match=said):
        read_tensors(*written, verify=False)


def test_a_file_the_manifest_does_not_list(written: tuple[Path, Manifest]) -> None:
    folder, manifest = written
    plain = json.loads(manifest.model_dump_json(by_alias=True))
    del plain["files"][TENSORS]
    with pytest.raises(InvalidSetError, match="does not list"):
        read_tensors(folder, Manifest.model_validate(plain))
