"""Streaming a set from the Hub: any revision, the same batches, one sentence where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import make_set
from hub_server import HubServer
from huggingface_hub import HfApi

from moedd_loaders import load_distilled
from moedd_loaders.errors import MoeddError


def test_a_set_on_the_hub_is_streamed_by_ranges(hub: HubServer, tmp_path: Path) -> None:
    make_set(tmp_path / "toy")
    api = HfApi()
    api.create_repo("someone/streamed", repo_type="dataset")
    api.upload_folder(folder_path=tmp_path / "toy", repo_id="someone/streamed", repo_type="dataset")
    api.create_tag("someone/streamed", tag="v1.0.0", repo_type="dataset")
    for name in ("someone/streamed", "someone/streamed@v1.0.0"):
        whole = load_distilled(tmp_path / "toy", fuse="mixup")
        ds = load_distilled(name, fuse="mixup", streaming=True)
        assert ds.origin == "hub"
        for (a, b), (u, v) in zip(whole.batches(8), ds.batches(8), strict=True):
            assert torch.equal(a, u)
            assert torch.equal(b, v)
    assert not any("safetensors" in asked.path for asked in hub.log if asked.method == "GET")


@pytest.mark.parametrize("name", ["someone/nothing-here", "someone/nothing-here@v9"])
def test_what_is_not_there(hub: HubServer, name: str) -> None:
    with pytest.raises(MoeddError, match="nothing-here") as caught:
        load_distilled(name, streaming=True)
    assert "\n" not in str(caught.value)
