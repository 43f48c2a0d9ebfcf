"""Sets on the Hub: what is fetched, from where, and what is said when that fails."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import hubfactories
import pytest
import torch
from hub_server import HubServer
from hub_store import File
from hubfactories import log_in, the_repo
from huggingface_hub import constants

from moedd_loaders import load_distilled
from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    InvalidSetError,
    MoeddWarning,
    NetworkError,
    SetNotFoundError,
    UsageError,
)
from moedd_loaders.hub import HubName, fetch, parse_hub_name, require_hub_name
from moedd_loaders.resolve import resolve
from moedd_publish.hub import PushOptions, push_to_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "local" / "toy"
    hubfactories.make_set(path)
    return path


@pytest.fixture
def commit(folder: Path, hub: HubServer) -> str:
    """The commit of the set, published as someone/toy; nobody has fetched anything yet."""
    sha = push(folder)
    hub.log.clear()
    return sha


def push(folder: Path, **options: Any) -> str:
    pushed = push_to_hub(folder, "someone/toy", PushOptions(**options), say=lambda _: None)
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    return pushed.sha


def publish_other(tmp_path: Path) -> str:
    """Other images, as version 1.1.0."""
    other = tmp_path / "other" / "toy"
    hubfactories.make_set(other, seed=9)
    return push_to_hub(
        other, "someone/toy", PushOptions(overwrite=True, version="1.1.0"), say=lambda _: None
    ).sha


def test_names() -> None:
    assert parse_hub_name("a/b") == HubName("a/b", "main")
    assert parse_hub_name("a/b@v1.0.0") == HubName("a/b", "v1.0.0")
    assert str(HubName("a/b", "x")) == "a/b@x"
    for text in ("a", "a/b/c", "a/b@", "../b", "/a/b", "a b/c", ""):
        assert parse_hub_name(text) is None
        with pytest.raises(UsageError, match="expected NAMESPACE/NAME"):
            require_hub_name(text)


def test_only_manifest_and_tensors_of_one_commit(folder: Path, commit: str, hub: HubServer) -> None:
    loaded = load_distilled("someone/toy", fuse="mixup")
    assert loaded.origin == "hub"
    assert torch.equal(loaded.images, load_distilled(folder).images)
    got = [asked.path.rsplit("/", 1)[1] for asked in hub.log if asked.method == "GET"]
    assert got == ["moedd.json", "distilled.safetensors"]
    assert any(f"/resolve/{commit}/" in asked.path for asked in hub.log)
    found = resolve("someone/toy")
    assert (found.origin, found.commit, found.name) == ("hub", commit, "someone/toy")
    assert str(found) == f"Hub someone/toy at {commit[:12]}"
    hub.log.clear()
    load_distilled("someone/toy")
    assert [asked.method for asked in hub.log].count("GET") == 0
    hub.log.clear()
    load_distilled(f"someone/toy@{commit}")
    assert hub.log == []


def test_a_folder_of_that_name_comes_first(
    folder: Path, commit: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parents[1])
    assert resolve("local/toy").origin == "folder"
    assert hub.log == []


def test_versions_are_pinned_and_kept(
    folder: Path, commit: str, hub: HubServer, tmp_path: Path
) -> None:
    old = load_distilled("someone/toy@v1.0.0").images
    newer = publish_other(tmp_path)
    assert resolve("someone/toy").commit == newer
    assert resolve("someone/toy@v1.0.0").commit == commit
    assert torch.equal(load_distilled("someone/toy@v1.0.0").images, old)
    assert not torch.equal(load_distilled("someone/toy@v1.1.0").images, old)


def test_offline_at_the_revision_it_was_fetched(
    folder: Path, commit: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_distilled("someone/toy@v1.0.0")
    load_distilled("someone/toy")
    newer = publish_other(tmp_path)
    hub.log.clear()
    assert resolve("someone/toy", offline=True).commit == commit
    assert load_distilled("someone/toy@v1.0.0", offline=True).manifest.version == "1.0.0"  # type: ignore[union-attr]
    with pytest.raises(NetworkError, match=r"moedd pull someone/toy@v1\.1\.0"):
        load_distilled("someone/toy@v1.1.0", offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("someone/toy").commit == commit
    assert hub.log == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve("someone/toy").commit == newer


def test_no_network(folder: Path, commit: str, hub: HubServer) -> None:
    hub.faults.add("*", "drop", None)
    with pytest.raises(NetworkError, match="check the network"):
        load_distilled("someone/toy")
    hub.faults.clear()
    load_distilled("someone/toy")
    for kind in ("drop", "503"):
        hub.faults.clear()
        hub.faults.add("*", kind, None)
        with pytest.warns(MoeddWarning, match=f"copy of someone/toy .*{commit[:12]}"):
            assert resolve("someone/toy").commit == commit
        with pytest.raises(NetworkError):
            resolve("someone/toy", offline=False)
    hub.faults.clear()
    hub.faults.add("head", "503", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MoeddWarning)
        assert resolve("someone/toy").commit == commit


def test_a_download_that_broke_off_goes_on(commit: str, hub: HubServer) -> None:
    # The manifest is the first file, the tensors the second.
    hub.faults.add("get", "500", None, after=1)
    with pytest.raises(NetworkError):
        load_distilled("someone/toy")
    with pytest.raises(NetworkError, match=r"without tensors/distilled\.safetensors"):
        load_distilled("someone/toy", offline=True)
    hub.faults.clear()
    assert len(load_distilled("someone/toy")) > 0


def test_missing_things_say_what_to_do(
    folder: Path, commit: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetNotFoundError, match="no data set someone/nothing"):
        load_distilled("someone/nothing")
    message = r"has no revision 'v1.0.1'; it has v1.0.0, main \(did you mean 'v1.0.0'\?\)"
    with pytest.raises(SetNotFoundError, match=message):
        load_distilled("someone/toy@v1.0.1")
    log_in(monkeypatch, None)
    with pytest.raises(AuthError, match=r"or it is private.*hf auth login"):
        load_distilled("someone/nothing")
    with pytest.raises(UsageError, match="no name of a repository"):
        load_distilled("some--one/toy")
    repo = the_repo(hub)
    head = repo.resolve("main")
    files = {name: file for name, file in head.files.items() if name != "moedd.json"}
    repo.branches["main"] = repo.add("not a set", files, head).oid
    with pytest.raises(SetNotFoundError, match=r"not a set of moedd.*load_dataset"):
        load_distilled("someone/toy")


def test_private_and_gated(commit: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    the_repo(hub).private = True
    assert resolve("someone/toy").commit == commit
    shutil.rmtree(constants.HF_HUB_CACHE)
    log_in(monkeypatch, None)
    with pytest.raises(AuthError, match="hf auth login"):
        load_distilled("someone/toy")
    log_in(monkeypatch, "hf_other")
    with pytest.raises(SetNotFoundError, match="check the account"):
        load_distilled("someone/toy")
    log_in(monkeypatch, "hf_wrong")
    with pytest.raises(AuthError, match="does not accept your token"):
        load_distilled("someone/toy")
    the_repo(hub).private = False
    the_repo(hub).gated = True
    for token in (None, "hf_other"):
        log_in(monkeypatch, token)
        with pytest.raises(
            AuthError, match=r"is gated: accept its conditions at http.*/someone/toy"
        ):
            load_distilled("someone/toy")


def test_a_tag_that_was_moved(commit: str, hub: HubServer, tmp_path: Path) -> None:
    load_distilled("someone/toy@v1.0.0")
    newer = publish_other(tmp_path)
    repo = the_repo(hub)
    repo.tags["v1.0.0"] = newer
    for _ in range(2):  # it does not pass by asking again
        with pytest.raises(ConflictError, match="was moved to other images") as caught:
            load_distilled("someone/toy@v1.0.0")
        for wanted in (f"someone/toy@{commit}", f"someone/toy@{newer}"):
            assert wanted in str(caught.value)
            load_distilled(wanted)
    # A tag on a newer card of the same images is no harm.
    same = repo.add("card", {**repo.commits[commit].files, "x": File(b"")}, repo.commits[commit])
    repo.tags["v1.0.0"] = same.oid
    assert resolve("someone/toy@v1.0.0").commit == same.oid


def test_what_arrives_is_checked(folder: Path, commit: str, hub: HubServer) -> None:
    repo = the_repo(hub)
    head = repo.resolve("main")
    name = "tensors/distilled.safetensors"
    spoilt = bytearray(head.files[name].data)
    spoilt[-1] ^= 1
    files = {**head.files, name: File(bytes(spoilt), lfs=True)}
    repo.branches["main"] = repo.add("spoilt", files, head).oid
    with pytest.raises(InvalidSetError, match="sha256 differs"):
        load_distilled("someone/toy")
    described = head.files["moedd.json"].data.replace(b'"tensors/distilled', b'"tensors/../../x')
    files = {**head.files, "moedd.json": File(described)}
    repo.branches["main"] = repo.add("leads out", files, head).oid
    with pytest.raises(InvalidSetError, match="expected tensors/NAME"):
        load_distilled("someone/toy")


def test_a_fetched_set_is_used_like_any_other(commit: str, hub: HubServer) -> None:
    fetched = fetch(HubName("someone/toy"))
    assert fetched.commit == commit
    ds = load_distilled("someone/toy@v1.0.0", fuse="mixup")
    images, labels = next(iter(ds.batches(8)))
    assert images.shape == (8, 3, 8, 8)
    assert labels.shape == (8, 3)
