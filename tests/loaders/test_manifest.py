from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import factories
import pytest

from moedd_loaders.errors import InvalidSetError, NonFiniteError
from moedd_loaders.manifest import (
    Manifest,
    NoDecode,
    Provenance,
    TilesDecode,
    manifest_bytes,
    read_manifest,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "toy-idm-2x2"
    factories.make_set(folder)
    return folder


@pytest.fixture
def raw(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((written / "moedd.json").read_text())
    return found


def put(folder: Path, content: Any) -> Path:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "moedd.json").write_bytes(data)
    return folder


def test_reading_gives_back_what_was_written(written: Path) -> None:
    manifest = read_manifest(written)
    assert manifest.schema_ == "moedd/1"
    assert manifest.experts[0].decode == TilesDecode(factor=2, order="column-major")
    assert manifest.experts[1].decode == NoDecode()
    assert manifest.shape == (3, 8, 8)
    assert manifest_bytes(manifest) == (written / "moedd.json").read_bytes()


def test_bytes_are_stable_text(raw: dict[str, Any]) -> None:
    raw["source"]["classes"] = ["Käse", "日本", "c"]
    data = manifest_bytes(Manifest.model_validate(raw))
    assert data.endswith(b"}\n")
    assert "Käse".encode() in data
    assert list(json.loads(data))[:2] == ["schema", "name"]


def test_keys_of_the_future_are_ignored(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["schema"] = "moedd/1.3"
    raw["new"] = raw["source"]["new"] = raw["experts"][0]["decode"]["new"] = {"x": 1}
    assert read_manifest(put(tmp_path, raw)).name == "toy-idm-2x2"


def test_diversity_of_earlier_versions_and_all_of_it(raw: dict[str, Any], tmp_path: Path) -> None:
    first = {"biased": 0.8, "unbiased": 0.1, "floor": 0.7, "cka": 0.3}
    raw["diversity"] = first
    read = read_manifest(put(tmp_path, raw)).diversity
    assert read is not None
    assert (read.unbiased, read.shuffled, read.pairs, read.rows) == (0.1, None, [], None)
    values = {key: 0.5 for name in ("biased", "unbiased", "cka") for key in (name, f"{name}_std")}
    shuffled = {**values, "orders": 64}
    pair: dict[str, Any] = {**first, "experts": [0, 1], "between": 0.1, "within": 0.0, "rows": 9}
    pair["shuffled"] = shuffled
    raw["diversity"] = {
        **first,
        "shuffled": shuffled,
        "pairs": [pair],
        "rows": 9,
        "layer": "logits",
    }
    manifest = read_manifest(put(tmp_path, raw))
    assert manifest.diversity is not None
    assert manifest.diversity.pairs[0].experts == (0, 1)
    assert json.loads(manifest_bytes(manifest))["diversity"]["pairs"][0] == pair


def test_a_newer_major_says_how_to_get_a_reader(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["schema"] = "moedd/2"
    with pytest.raises(InvalidSetError, match=r"moedd/2.*pip install -U moedd") as caught:
        read_manifest(put(tmp_path, raw))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ([1], "holds a JSON list"),
        ({}, "schema None"),
        ({"schema": "other/1"}, "schema 'other/1'"),
        ({"schema": "moedd/0"}, "never released"),
        ({"schema": "moedd/1"}, "name: Field required"),
    ],
)
def test_what_is_no_manifest_is_named(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetError, match=said) as caught:
        read_manifest(put(tmp_path, content))
    assert str(tmp_path / "moedd.json") in str(caught.value)


def test_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetError, match=r"holds no moedd\.json"):
        read_manifest(tmp_path)
    (tmp_path / "moedd.json").mkdir()
    with pytest.raises(InvalidSetError, match="is a folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("experts", 0, "decode", "kind"), "spiral", r"experts\.0\.decode"),
        (("experts", 0, "decode", "factor"), 0, r"experts\.0\.decode"),
        (("experts",), [], "experts"),
        (("source", "shape"), [3, 8], r"source\.shape"),
        (("budget", "images"), "many", r"budget\.images"),
    ],
)
def test_a_wrong_field_is_named(
    raw: dict[str, Any], tmp_path: Path, path: tuple[Any, ...], value: Any, said: str
) -> None:
    at = raw
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(InvalidSetError, match=said):
        read_manifest(put(tmp_path, raw))


def test_nan_cannot_be_written(raw: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(raw)
    manifest.provenance = Provenance(losses={"0": float("nan")})
    with pytest.raises(NonFiniteError, match="toy-idm-2x2"):
        manifest_bytes(manifest)
