"""Sets from the Hub and from addresses pass the checks of a set on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from brokensets import flip, sign
from hub_server import HubServer
from huggingface_hub import HfApi
from rangeserver import serving
from safetensors.numpy import load_file, save_file

from moedd_loaders import load_distilled
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import TENSORS

Harm = Callable[[Path], None]


def tensors(change: Callable[[dict[str, Any]], None]) -> Harm:
    """Other tensors, under a manifest and checksums that fit them."""

    def harm(folder: Path) -> None:
        found = load_file(folder / TENSORS)
        change(found)
        save_file(found, folder / TENSORS)
        sign(folder)

    return harm


def manifest(change: Callable[[dict[str, Any]], None]) -> Harm:
    return lambda folder: sign(folder, change)


def put(key: str, at: Any, value: float) -> Harm:
    def change(found: dict[str, Any]) -> None:
        found[key][at] = value

    return tensors(change)


FAULTS: dict[str, tuple[Harm, str]] = {
    "checksum": (lambda folder: flip(folder / TENSORS, -1), "sha256 differs"),
    "nan": (put("images", (3, 1, 2, 3), np.nan), "'images' holds NaN or infinity"),
    "infinity": (put("images", (3, 1, 2, 3), -np.inf), "'images' holds NaN or infinity"),
    "label": (put("labels", 0, 3), "'labels' of expert 0 are not the rows"),
    "expert": (put("experts", 0, 7), "are not the rows that the manifest counts"),
    "soft": (put("soft_labels", (2, 1), 5.0), "no probability distribution"),
    "pixels": (put("images", (3, 1, 2, 3), 0.25), "content_sha256 is"),
    "std": (manifest(lambda raw: raw["source"].update(std=[0.2, 0.0, 0.2])), "a positive std"),
    "classes": (
        manifest(lambda raw: raw["source"].update(classes=["a", "a", "b"])),
        "'a' more than once",
    ),
    "rule": (
        manifest(lambda raw: raw["experts"][0]["decode"].update(order="row-major")),
        "training_sha256 is",
    ),
    "counts": (
        manifest(
            lambda raw: raw["experts"][0].update(
                stored_per_class=[10**9] * 3, decoded_per_class=[4 * 10**9] * 3
            )
        ),
        "counts 3,000,000,006 images",
    ),
}
IN_THE_MANIFEST = ("std", "classes", "counts")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    factories.make_set(tmp_path / "toy", soft=True)
    return tmp_path / "toy"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_set_is_refused_wherever_it_is(fault: str, folder: Path, hub: HubServer) -> None:
    harm, said = FAULTS[fault]
    harm(folder)
    HfApi().create_repo("someone/broken", repo_type="dataset")
    HfApi().upload_folder(folder_path=folder, repo_id="someone/broken", repo_type="dataset")
    with serving(folder.parent) as server:
        for name in (folder, "someone/broken", f"{server.url}/toy", f"file://{folder}"):
            for _ in range(2):  # what was kept of it does not pass the second time
                with pytest.raises(InvalidSetError, match=said) as caught:
                    load_distilled(name)
                assert "\n" not in str(caught.value)
        fetched = [path for method, path, _, _ in server.log if method == "GET"]
    fetched += [asked.path for asked in hub.log if asked.method == "GET"]
    if fault in IN_THE_MANIFEST:
        assert not any("safetensors" in path for path in fetched)


def test_the_same_set_unbroken(folder: Path, hub: HubServer) -> None:
    HfApi().create_repo("someone/whole", repo_type="dataset")
    HfApi().upload_folder(folder_path=folder, repo_id="someone/whole", repo_type="dataset")
    with serving(folder.parent) as server:
        sizes = {len(load_distilled(name)) for name in ("someone/whole", f"{server.url}/toy")}
    described = json.loads((folder / "moedd.json").read_text())
    assert sizes == {sum(sum(entry["decoded_per_class"]) for entry in described["experts"])}
