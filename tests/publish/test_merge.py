from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import factories
import pytest
import torch

from moedd_loaders.dataset import load_distilled
from moedd_loaders.errors import ConflictError, DataError, InvalidSetError, UsageError
from moedd_loaders.manifest import (
    Manifest,
    NoDecode,
    Part,
    Provenance,
    Source,
    TilesDecode,
    TrainedIn,
)
from moedd_loaders.read import StoredSet
from moedd_loaders.validate import validate_set
from moedd_publish import ExpertRows
from moedd_publish.merge import merge_sets, merged_name, read_parts

MATRIX = "tensors/zca-0123.safetensors"


def make(folder: Path, seed: int, *, method: str = "idm", soft: bool = False, **given: Any) -> Path:
    """A set of one expert, two images per class of 3x8x8."""
    rule = given.pop("rule", NoDecode())
    source: Source = given.pop("source", factories.make_source())
    rows = factories.make_rows(source, [2, 2, 2], rule, method=method, seed=seed,
                               **given.pop("fields", {}))  # fmt: skip
    factories.make_set(folder, experts=[rows], soft=soft, source=source, seed=seed,
                       **{"evaluation": {"protocol": "idc"}, **given})  # fmt: skip
    return folder


def merged(tmp_path: Path, *folders: Path, **given: Any) -> tuple[Manifest, list[StoredSet]]:
    parts = read_parts(folders)
    return merge_sets(parts, tmp_path / "merged", **given), parts


def test_experts_keep_their_rules_spaces_and_rows(tmp_path: Path) -> None:
    space = TrainedIn(space="normalized", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    part = Part(rule="stratified", of=2, index=1, fingerprint="f")
    a = make(tmp_path / "a", 1, rule=factories.COLUMN_TILES,
             fields={"trained_in": space, "step_size": 0.25, "part": part})  # fmt: skip
    b = make(tmp_path / "b", 2, method="rded", fields={"config": {"factor": 1}})
    manifest, parts = merged(tmp_path, a, b)
    assert validate_set(tmp_path / "merged") == manifest
    assert manifest.name == "toy-idm+rded-2x2"
    one, other = manifest.experts
    assert (one.id, one.method, one.decode) == (0, "idm", factories.COLUMN_TILES)
    assert (one.trained_in, one.step_size, one.part) == (space, 0.25, part)
    assert (other.id, other.method, other.decode) == (1, "rded", NoDecode())
    assert other.config == {"factor": 1}
    assert other.trained_in == TrainedIn()
    (stored,) = read_parts([tmp_path / "merged"])
    assert torch.equal(stored.images, torch.cat([part.images for part in parts]))
    assert stored.labels.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert stored.experts.tolist() == [0] * 6 + [1] * 6
    fused = load_distilled(tmp_path / "merged", fuse="mixup")
    assert len(fused) == 4 * 6 + 6
    assert manifest.evaluation == {"protocol": "idc"}


def test_sets_of_several_experts_and_more_than_two(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "pair", seed=3, evaluation={"protocol": "mtt"})
    others = [make(tmp_path / str(seed), seed) for seed in range(2)]
    manifest, _ = merged(tmp_path, tmp_path / "pair", *others, name="four")
    assert [entry.method for entry in manifest.experts] == ["idm", "idm_plain", "idm", "idm"]
    assert [entry.shards for entry in manifest.experts] == [[0], [1], [2], [3]]
    assert manifest.evaluation == {"protocol": "common"}


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 1)
    plain = factories.make_source().model_dump()
    turned = Source(**{**plain, "classes": ["class c", "class a", "class b"]})
    b = make(tmp_path / "b", 2, source=turned, soft=True)
    manifest, parts = merged(tmp_path, a, b)
    assert manifest.classes == ["class a", "class b", "class c"]
    (stored,) = read_parts([tmp_path / "merged"])
    # b's rows are of c, c, a, a, b, b.
    assert torch.equal(stored.images[6:], parts[1].images[[2, 3, 4, 5, 0, 1]])
    soft = parts[1].soft_labels
    assert soft is not None
    assert stored.soft_labels is not None
    assert torch.equal(stored.soft_labels[6:], soft[[2, 3, 4, 5, 0, 1]][:, [1, 2, 0]])
    assert torch.equal(stored.soft_labels[:6], torch.eye(3)[stored.labels[:6]])


def test_other_classes_shapes_and_data_are_refused(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 1)
    plain = factories.make_source().model_dump()
    names = {**plain, "classes": ["class a", "class b", "class d"]}
    for key, source, said in (
        ("b", Source(**names), "class c, class d are in one of them only"),
        ("c", factories.make_source(4), "class d is in one of them only"),
        ("e", Source(**{**plain, "data": "other"}), "made from toy and e from other"),
    ):
        folder = tmp_path / key
        if key == "c":
            factories.make_set(folder, classes=4)
        else:
            make(folder, 2, source=source)
        with pytest.raises(DataError, match=said):
            merged(tmp_path, a, folder, name="x")
    factories.make_set(tmp_path / "f", shape=(1, 8, 8))
    with pytest.raises(DataError, match="images of 3x8x8 and f of 1x8x8"):
        merged(tmp_path, a, tmp_path / "f", name="x")
    assert not (tmp_path / "merged").exists()


def test_the_same_images_twice_are_refused(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 1)
    same = make(tmp_path / "b", 1, method="dm")
    with pytest.raises(DataError, match=r"image e00-c0000-k0000 of b \(set 2\) is image e00-c0000-"
                       r"k0000 of a \(set 1\), and 5 more"):  # fmt: skip
        merged(tmp_path, a, same)
    with pytest.raises(DataError, match="the same images twice"):
        merged(tmp_path, a, a)


def test_rounding_does_not_hide_the_same_image(tmp_path: Path) -> None:
    source = factories.make_source()
    a = make(tmp_path / "a", 1)
    rows = factories.make_rows(source, [2, 2, 2], seed=1)
    other = factories.make_rows(source, [2, 2, 2], seed=9)
    other.images[4] = rows.images[1] + 1e-7
    factories.make_set(tmp_path / "b", experts=[other])
    with pytest.raises(DataError, match=r"image e00-c0002-k0000 of b .* is image e00-c0000-k0001"):
        merged(tmp_path, a, tmp_path / "b")


def test_images_that_only_look_alike_in_eight_bits_are_two(tmp_path: Path) -> None:
    source = factories.make_source()
    rows = factories.make_rows(source, [2, 2, 2], seed=1)
    factories.make_set(tmp_path / "a", experts=[rows])
    beyond = (rows.images - 0.5).sign() * 3 + 0.5  # far outside of [0, 1] everywhere
    for name, factor in (("b", 1.0), ("c", 2.0)):
        clipped = factories.make_rows(source, [2, 2, 2], seed=1)
        clipped.images[:] = (beyond - 0.5) * factor + 0.5
        factories.make_set(tmp_path / name, experts=[clipped])
    merged(tmp_path, tmp_path / "b", tmp_path / "c", name="x")
    # Within a step of 8 bits too: other values are another image.
    near = factories.make_rows(source, [2, 2, 2], seed=1)
    near.images[:] = (rows.images * 255).round() / 255
    factories.make_set(tmp_path / "e", experts=[near])
    merged(tmp_path, tmp_path / "a", tmp_path / "e", name="x", overwrite=True)
    with pytest.raises(DataError, match="and 5 more: the same images twice"):
        merged(tmp_path, tmp_path / "b", tmp_path / "b", name="x", overwrite=True)


def test_equal_images_within_one_set_are_its_own_affair(tmp_path: Path) -> None:
    rows = factories.make_rows(factories.make_source(), [2, 2, 2], seed=1)
    rows.images[1] = rows.images[0]
    factories.make_set(tmp_path / "a", experts=[rows])
    merged(tmp_path, tmp_path / "a", make(tmp_path / "b", 2))


def test_a_whitening_matrix_travels_along(tmp_path: Path) -> None:
    from safetensors.torch import save

    data = save({"mean": torch.zeros(192), "matrix": torch.eye(192)})
    fields = {"trained_in": TrainedIn(space="zca", matrix=MATRIX), "files": {MATRIX: data}}
    a = make(tmp_path / "a", 1, fields=fields)
    manifest, _ = merged(tmp_path, a, make(tmp_path / "b", 2))
    assert (tmp_path / "merged" / MATRIX).read_bytes() == data
    assert [entry.trained_in.matrix for entry in manifest.experts] == [MATRIX, None]


def test_what_is_known_of_the_parts_is_kept(tmp_path: Path) -> None:
    plain = factories.make_source().model_dump()
    unknown = Source(**{**plain, "data": "unknown", "license": "unknown", "fingerprint": "",
                        "hub_id": None, "notes": ["from a web page"]})  # fmt: skip
    made = Provenance(moedd="0.1.0", torch="2.6", seed=7, seconds=60.0, iterations={"0.idm": 4},
                      schedule_fraction={"0.idm": 0.5}, losses={"0.match": 1.5})  # fmt: skip
    nothing = Provenance(device="unknown", profile="unknown", seed=None, seconds=None)
    a = make(tmp_path / "a", 1, source=unknown, provenance=nothing)
    b = make(tmp_path / "b", 2, provenance=made)
    manifest, parts = merged(tmp_path, a, b, moedd="9.9")
    source = manifest.source
    assert (source.data, source.license, source.hub_id) == ("toy", "mit", "someone/toy")
    assert "a: from a web page" in source.notes
    assert "joined from a 1.0.0, b 1.0.0" in source.notes
    assert manifest.provenance.iterations == {"1.idm": 4}
    assert manifest.provenance.losses == {"1.match": 1.5}
    assert manifest.provenance.seconds is None
    assert manifest.provenance.seed is None
    assert manifest.provenance.moedd == "9.9"
    recipe = json.loads((tmp_path / "merged" / "recipe" / "config.json").read_text())
    assert [part["content_sha256"] for part in recipe["merged"]] == [
        part.manifest.content_sha256 for part in parts
    ]
    assert recipe["merged"][1]["provenance"]["seed"] == 7
    assert recipe["merged"][1]["recipe"] == {"seed": 2}


def test_sources_that_differ_are_not_passed_off_as_one(tmp_path: Path) -> None:
    plain = factories.make_source().model_dump()
    other = Source(**{**plain, "fingerprint": "sha256:22", "mean": [0.1, 0.2, 0.3]})
    manifest, _ = merged(tmp_path, make(tmp_path / "a", 1), make(tmp_path / "b", 2, source=other))
    assert manifest.source.fingerprint == ""
    assert "the sets differ in the fingerprint of their data" in manifest.source.notes
    assert any("names other means" in note for note in manifest.source.notes)


def rows(method: str, seed: int, counts: list[int]) -> ExpertRows:
    return factories.make_rows(factories.make_source(), counts, method=method, seed=seed)


def test_names_follow_where_they_can(tmp_path: Path) -> None:
    def manifest(name: str, *experts: ExpertRows) -> Manifest:
        return factories.make_set(tmp_path / name, experts=list(experts))

    even, odd = [2, 2, 2], [2, 1, 2]
    a, b = manifest("a", rows("idm", 0, even)), manifest("b", rows("idm", 1, even))
    c = manifest("c", rows("rded", 2, even), rows("mtt", 3, even))
    assert merged_name([a, b]) == "toy-idm-2x2"
    assert merged_name([a, c]) == "toy-idm+rded+mtt-2x3"
    assert merged_name([c, c]) == "toy-rded+mtt-2x4"
    for wrong in (manifest("d", rows("idm", 4, odd)), manifest("e", rows("unknown", 5, even))):
        with pytest.raises(UsageError, match="give --name"):
            merged_name([a, wrong])


def test_wrong_use(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    with pytest.raises(UsageError, match="1 set given to merge"):
        merged(tmp_path, a)
    with pytest.raises(UsageError, match="cannot name a set"):
        merged(tmp_path, a, b, name="Not A Slug")
    merged(tmp_path, a, b)
    with pytest.raises(ConflictError, match="--overwrite"):
        merged(tmp_path, a, b)
    merged(tmp_path, b, a, overwrite=True)
    manifest = (a / "moedd.json").read_text()
    (a / "moedd.json").write_text(manifest.replace('"factor": 2', '"factor": 3'))
    assert isinstance(factories.COLUMN_TILES, TilesDecode)
    (a / "tensors" / "distilled.safetensors").write_bytes(b"broken")
    with pytest.raises(InvalidSetError):
        merged(tmp_path, a, b, overwrite=True)
