"""Exports opened with the libraries and by the rules of the projects that read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import factories
import numpy as np
import pytest
import torch
import torchvision
import webdataset
from runfactories import cli
from safetensors.torch import load_file, save
from timm.data import create_dataset
from torch import Tensor

from moedd_loaders.dataset import load_distilled
from moedd_loaders.decode import decode
from moedd_loaders.errors import ConflictError, InvalidSetError, UsageError
from moedd_loaders.manifest import NoDecode, Source, TrainedIn
from moedd_loaders.read import read_tensors
from moedd_publish.export import LAYOUTS, export_set
from moedd_publish.exportpictures import class_folders

NORMALIZED = TrainedIn(space="normalized", mean=[0.4, 0.45, 0.5], std=[0.2, 0.21, 0.22])


def make(folder: Path, rule: Any = None, soft: bool = False, **fields: Any) -> Path:
    """A set of one expert in normalised space."""
    rule = rule or NoDecode()
    rows = factories.make_rows(factories.make_source(), [2, 2, 2], rule,
                               **{"trained_in": NORMALIZED, **fields})  # fmt: skip
    factories.make_set(folder, experts=[rows], soft=soft)
    return folder


def stored_images(folder: Path) -> Tensor:
    manifest = factories.Manifest.model_validate_json((folder / "moedd.json").read_text())
    return read_tensors(folder, manifest).images


def normalised(images: Tensor, space: TrainedIn = NORMALIZED) -> Tensor:
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (space.mean, space.std))
    return ((images.double() - mean) / std).float()


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "moedd-export.json").read_text())
    return found


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_dc(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", method="dm")
    files = export_set(folder, tmp_path / "out", "dc")
    assert [path.name for path in files] == ["moedd-export.json", "res_DM_TOY_unknown_2ipc.pt"]
    found = load(files[1])
    images, labels = found["data"][-1]
    assert found["accs_all_exps"] == {}
    assert torch.equal(images, normalised(stored_images(folder)))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert about(tmp_path / "out")["space"] == {"space": "normalized", **_constants(NORMALIZED)}


def _constants(space: TrainedIn) -> dict[str, Any]:
    return {"mean": space.mean, "std": space.std}


def test_mtt_and_its_step_size(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", step_size=0.0213)
    export_set(folder, tmp_path / "out", "mtt")
    assert torch.equal(load(tmp_path / "out" / "images_best.pt"), normalised(stored_images(folder)))
    assert load(tmp_path / "out" / "labels_best.pt").tolist() == [0, 0, 1, 1, 2, 2]
    assert load(tmp_path / "out" / "lr_best.pt").item() == pytest.approx(0.0213)
    export_set(make(tmp_path / "t"), tmp_path / "none", "mtt")
    assert not (tmp_path / "none" / "lr_best.pt").exists()


def test_several_step_sizes_give_their_geometric_mean(tmp_path: Path) -> None:
    source = factories.make_source()
    experts = [
        factories.make_rows(source, [1, 1, 1], seed=seed, step_size=size)
        for seed, size in enumerate((0.01, 0.04))
    ]
    factories.make_set(tmp_path / "s", experts=experts)
    export_set(tmp_path / "s", tmp_path / "out", "mtt")
    assert load(tmp_path / "out" / "lr_best.pt").item() == pytest.approx(0.02)
    found = about(tmp_path / "out")
    assert found["step_sizes"] == [0.01, 0.04]
    assert "the geometric mean of the experts' learned step sizes" in found["step_size_is"]
    told = cli("export", tmp_path / "s", "--to", "mtt", "--out", tmp_path / "again").out
    said = "the geometric mean of the experts' learned step sizes (0.01, 0.04)"
    assert f"step size: 0.02, {said}" in told


@pytest.mark.parametrize(
    ("sizes", "one", "said"),
    [
        ((0.01, 0.01), 0.01, None),
        ((0.01, None), 0.01, "the one of"),
        ((-0.01, 0.04), -0.01, "the first of"),
    ],
)
def test_what_one_step_size_stands_for(
    tmp_path: Path, sizes: tuple[float | None, ...], one: float, said: str | None
) -> None:
    experts = [
        factories.make_rows(factories.make_source(), [1, 1, 1], seed=seed, step_size=size)
        for seed, size in enumerate(sizes)
    ]
    factories.make_set(tmp_path / "s", experts=experts)
    export_set(tmp_path / "s", tmp_path / "out", "ddranking")
    found = about(tmp_path / "out")
    assert found["step_size"] == pytest.approx(one)
    assert ("step_size_is" in found) == (said is not None)
    assert said is None or found["step_size_is"].startswith(said)


def test_whitened_experts_leave_whitened_with_their_matrix(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "mean": torch.rand(192, generator=generator),
        "matrix": torch.randn(192, 192, generator=generator),
    }
    name = "tensors/zca-0.safetensors"
    folder = make(
        tmp_path / "s",
        trained_in=TrainedIn(space="zca", matrix=name),
        files={name: save(tensors)},
    )
    export_set(folder, tmp_path / "out", "mtt")
    flat = stored_images(folder).double().numpy().reshape(6, -1)
    expected = (flat - tensors["mean"].double().numpy()) @ tensors["matrix"].double().numpy()
    found = load(tmp_path / "out" / "images_best.pt")
    np.testing.assert_allclose(found.numpy().reshape(6, -1), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        load_file(tmp_path / "out" / "whitening.safetensors")["matrix"], tensors["matrix"]
    )
    export_set(folder, tmp_path / "dc", "dc")  # DC's scripts know no whitening
    space = about(tmp_path / "dc")["space"]
    assert space == {"space": "normalized", **_constants_of(factories.make_source())}


def _constants_of(source: Source) -> dict[str, Any]:
    return {"mean": source.mean, "std": source.std}


@pytest.mark.parametrize("space", ["unit", "normalized", "trained"])
def test_the_space_can_be_chosen(tmp_path: Path, space: str) -> None:
    folder = make(tmp_path / "s")
    export_set(folder, tmp_path / "out", "ddranking", space=space)
    images, source = stored_images(folder), factories.make_source()
    by_source = TrainedIn(space="normalized", mean=source.mean, std=source.std)
    expected = {
        "unit": images,
        "normalized": normalised(images, by_source),
        "trained": normalised(images),
    }[space]
    assert torch.equal(load(tmp_path / "out" / "images.pt"), expected)


def test_unit_space_experts_are_normalised_for_scripts_that_do_not(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", trained_in=TrainedIn())
    export_set(folder, tmp_path / "out", "dc")
    source = factories.make_source()
    by_source = TrainedIn(space="normalized", mean=source.mean, std=source.std)
    found = load(next((tmp_path / "out").glob("res_*")))["data"][0][0]
    assert torch.equal(found, normalised(stored_images(folder), by_source))


@pytest.mark.parametrize("to", ["mtt", "ddranking"])
def test_soft_labels_are_what_their_loss_applies_softmax_to(tmp_path: Path, to: str) -> None:
    folder = make(tmp_path / "s", soft=True)
    export_set(folder, tmp_path / "out", to)
    found = load(next((tmp_path / "out").glob("labels*.pt")))
    stored = read_tensors(folder, factories.Manifest.model_validate_json(
        (folder / "moedd.json").read_text()))  # fmt: skip
    assert stored.soft_labels is not None
    torch.testing.assert_close(found.softmax(1), stored.soft_labels)
    assert "logits" in about(tmp_path / "out")["labels"]


def test_tiles_stored_and_decoded(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", factories.COLUMN_TILES)
    export_set(folder, tmp_path / "stored", "ddranking", space="unit")
    assert torch.equal(load(tmp_path / "stored" / "images.pt"), stored_images(folder))
    assert about(tmp_path / "stored")["decode"]["order"] == "column-major"
    export_set(folder, tmp_path / "decoded", "ddranking", decoded=True, space="unit")
    found = load(tmp_path / "decoded" / "images.pt")
    expected = decode(stored_images(folder), factories.COLUMN_TILES)
    # The tiles of an image stay together, images stay in order.
    for row in range(6):
        for tile in range(4):
            assert torch.equal(found[4 * row + tile], expected[6 * tile + row])
    assert load(tmp_path / "decoded" / "labels.pt").tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert about(tmp_path / "decoded")["decode"] == {"kind": "none"}


@pytest.mark.parametrize("to", LAYOUTS)
def test_mixed_rules_must_be_decoded(tmp_path: Path, to: str) -> None:
    factories.make_set(tmp_path / "s")
    with pytest.raises(UsageError, match=r"different rules \(none, tiles\).*give --decoded"):
        export_set(tmp_path / "s", tmp_path / "out", to)
    assert not (tmp_path / "out").exists()
    files = export_set(tmp_path / "s", tmp_path / "out", to, decoded=True)
    assert about(tmp_path / "out")["images"] == 6 * 4 + 6
    assert files == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_rows_of_several_experts_are_ordered_by_class(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s", rules=[NoDecode()] * 3)
    export_set(tmp_path / "s", tmp_path / "out", "ddranking", space="unit")
    assert load(tmp_path / "out" / "labels.pt").tolist() == [0] * 6 + [1] * 6 + [2] * 6
    stored = stored_images(tmp_path / "s").view(3, 3, 2, 3, 8, 8)
    expected = stored.transpose(0, 1).reshape(18, 3, 8, 8)
    assert torch.equal(load(tmp_path / "out" / "images.pt"), expected)


def view(images: Tensor) -> np.ndarray:
    """Channels last, clipped and rounded without torch."""
    pixels = np.rint(np.clip(images.numpy(), 0, 1) * np.float32(255)).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("cow", "ant", "a / b")])
def test_imagefolder_in_torchvision_and_datasets(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = factories.make_source()
    source.classes = list(names)
    rows = factories.make_rows(source, [2, 2, 2])
    factories.make_set(tmp_path / "s", experts=[rows], source=source, soft=True)
    export_set(tmp_path / "s", tmp_path / "out", "imagefolder")
    expected = view(rows.images)
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "out" / "train"))
    assert [label for _, label in folder.samples] == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(np.stack([np.asarray(image) for image, _ in folder]), expected)
    plain = names == ("ant", "bee", "cow")
    assert folder.classes == (list(names) if plain else ["00000", "00001", "00002"])
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(names)
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert table["label"][:] == [0, 0, 1, 1, 2, 2]
    assert table["class"][::2] == list(names)
    assert set(table["expert"][:]) == {0}
    assert np.array_equal(np.stack([np.asarray(image) for image in table["image"]]), expected)
    assert np.allclose(np.sum(table["soft_label"][:], axis=1), 1)


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("a", "b"), ["a", "b"]),
        (("b", "a"), ["00000", "00001"]),
        (("A", "a"), ["00000", "00001"]),
        (("..", "b"), ["00000", "00001"]),
        (("a", "b/c"), ["00000", "00001"]),
        (("2", "10"), ["00000", "00001"]),
    ],
)
def test_folder_names_that_would_lose_the_order_are_numbers(
    classes: tuple[str, ...], folders: list[str]
) -> None:
    assert class_folders(classes) == folders


def test_webdataset(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    export_set(tmp_path / "s", tmp_path / "out", "webdataset", decoded=True)
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert len({sample["__key__"] for sample in samples}) == 30
    loaded = load_distilled(tmp_path / "s")
    found = {sample["npy"].tobytes(): sample["cls"] for sample in samples}
    assert found == {image.numpy().tobytes(): label for image, label in loaded}
    for sample in samples:
        assert np.array_equal(
            np.asarray(sample["png"]), view(torch.from_numpy(sample["npy"])[None])[0]
        )
        assert sample["__key__"].startswith(f"e{sample['json']['expert']:02d}-c")
    info = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]["train"]
    assert (info["num_samples"], info["shard_lengths"]) == (30, [24, 6])


def test_timm_reads_the_shards(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    export_set(tmp_path / "s", tmp_path / "out", "webdataset", decoded=True)
    data = create_dataset("wds/", root=str(tmp_path / "out"), split="train")
    assert len(data) == 30
    pairs = [(np.asarray(image).tobytes(), label) for image, label in data]
    loaded = load_distilled(tmp_path / "s")
    images = torch.stack([image for image, _ in loaded])
    expected = [
        (pixels.tobytes(), label)
        for pixels, label in zip(view(images), loaded.targets, strict=True)
    ]
    assert sorted(pairs) == sorted(expected)


def test_an_export_says_what_its_files_do_not(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", factories.ROW_TILES)
    files = export_set(folder, tmp_path / "out", "mtt")
    found = about(tmp_path / "out")
    manifest = json.loads((folder / "moedd.json").read_text())
    assert found["content_sha256"] == manifest["content_sha256"]
    assert found["classes"] == ["class a", "class b", "class c"]
    assert found["decode"]["factor"] == 2
    assert found["license"] == "mit"
    assert sorted(found["files"]) == sorted(path.name for path in files if path.suffix == ".pt")


def test_every_file_is_listed_with_its_hash(tmp_path: Path) -> None:
    source = factories.make_source(3, (1, 2, 2))
    rows = factories.make_rows(source, [340] * 3)
    factories.make_set(tmp_path / "s", shape=(1, 2, 2), experts=[rows])
    files = export_set(tmp_path / "s", tmp_path / "out", "imagefolder")
    assert len(files) == 1020 + 3
    assert about(tmp_path / "out")["files"] == {
        path.relative_to(tmp_path / "out").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "moedd-export.json"
    }


def test_wrong_use_leaves_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    for arguments, said in (
        ({"to": "zip"}, "unknown layout 'zip'; known: dc, ddranking"),
        ({"to": "dc", "space": "rgb"}, "--space 'rgb' given"),
        ({"to": "imagefolder", "space": "unit"}, "always unit space"),
    ):
        with pytest.raises(UsageError, match=said):
            export_set(folder, tmp_path / "out", **arguments)
    factories.make_set(tmp_path / "t", rules=[NoDecode()] * 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("hello")
    with pytest.raises(ConflictError, match="exists already"):
        export_set(folder, tmp_path / "full", "dc")
    (folder / "tensors" / "distilled.safetensors").write_bytes(b"broken")
    with pytest.raises(InvalidSetError):
        export_set(folder, tmp_path / "out", "dc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "s", "t"]
    (tmp_path / "empty").mkdir()
    export_set(tmp_path / "t", tmp_path / "empty", "dc")
