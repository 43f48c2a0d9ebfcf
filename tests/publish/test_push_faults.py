"""Every fault at every request of a push: it completes by trying again, or it stops with one
sentence; no reader ever finds half a set; the same command run again completes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import factories
import hubfactories
import pytest
from hub_faults import KINDS
from hub_server import HubServer
from hub_store import Commit
from hubfactories import broken_states, the_repo
from huggingface_hub import constants, create_collection
from runfactories import Told, cli

FIRST = (
    *("whoami", "info", "create", "refs", "tree", "preupload", "lfs-batch", "lfs-put"),
    *("lfs-verify", "validate-yaml", "commit", "tag"),
)
"""Requests of a first publication."""
UPDATE = (*(route for route in FIRST if route != "create"), "head", "get")
"""Requests of publishing other images as a higher version."""
SENT = ("refs", "tree", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "commit")
STAGES = {
    "first": FIRST,
    "update": UPDATE,
    "branch": ("branch", *SENT),  # other images on a new branch
    "pull": SENT,  # other images as a pull request
    "pull again": ("refs", "tree", "discussion"),  # which is open already
    "collection": ("collection-add",),
}
CODES = {"401": {3}, "403": {3}, "404": {3, 6}, "409": {4}, "412": {4}}
"""Exit codes a fault may end with; all others are the network's, 6. A repository that exists and
is not shown is a conflict with it."""
HIDDEN = ("info", "404")

Case = tuple[str, str, str, int | None]
ALL: list[Case] = [
    (stage, route, kind, times)
    for stage, routes in STAGES.items()
    for route, kind, times in itertools.product(routes, KINDS, (1, None))
]
SAMPLE = [
    *ALL[:600:61],
    *ALL[600::47],
    ("branch", "branch", "409", 1),
    ("collection", "collection-add", "503", None),
]
COLLECTION = "someone/sets-64f0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sets: the one of the first publication and the one that takes its place."""
    place = tmp_path_factory.mktemp("sets")
    old, new = place / "old" / "toy", place / "new" / "toy"
    hubfactories.make_set(old, shape=(1, 4, 4), classes=2, ipc=1)
    factories.make_set(new, shape=(1, 4, 4), classes=2, ipc=1, seed=7, rows_per_shard=1)
    return {"first": old, "update": new}


def push(folder: Path, stage: str) -> Told:
    more: tuple[str, ...] = ("--overwrite", "--set-version", "1.1.0")
    more = {
        "first": (),
        "update": more,
        "branch": (*more, "--revision", "trial"),
        "pull": (*more, "--create-pr"),
        "pull again": (*more, "--create-pr"),
        "collection": ("--collection", COLLECTION),
    }[stage]
    return cli("push-to-hub", str(folder), "someone/toy", *more)


def check(case: Case, hub: HubServer, folders: dict[str, Path]) -> str:
    """Run one combination; returns how it ended."""
    stage, route, kind, times = case
    hub.reset()
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    folder = folders["first" if stage in ("first", "collection") else "update"]
    if stage not in ("first", "collection"):
        assert push(folders["first"], "first").code == 0
    if stage == "pull again":
        assert push(folder, stage).code == 0
    if stage == "collection":
        create_collection("sets", namespace="someone")
    fault = hub.faults.add(route, kind, times)
    told = push(folder, stage)
    assert fault.hits, f"{route} was never asked for"
    repo = hub.store.repos.get(("datasets", "someone/toy"))
    if repo is not None:
        assert broken_states(repo) == []
    if told.code == 0:
        # A collection that answers 409 says that the set is in it.
        assert_done(hub, folder, stage, collected=kind != "409")
    else:
        allowed = {4} if (route, kind) == HIDDEN else CODES.get(kind, {6})
        assert told.code in allowed, (case, told.err)
        assert len(told.sentence) < 500
        if stage == "collection":
            assert_published(hub, folder, "1.0.0")
            assert "(published)" in told.sentence or "is published" in told.sentence
        elif repo is not None:
            assert f"v{VERSIONS.get(stage)}" not in repo.tags
    hub.faults.clear()
    again = push(folder, stage)
    assert again.code == 0, (case, again.err)
    assert_done(hub, folder, stage)
    assert broken_states(the_repo(hub)) == []
    return "completed" if told.code == 0 else f"stopped ({told.code})"


VERSIONS = {"first": "1.0.0", "update": "1.1.0"}


def assert_done(hub: HubServer, folder: Path, stage: str, collected: bool = True) -> None:
    repo = the_repo(hub)
    if stage in VERSIONS:
        assert_published(hub, folder, VERSIONS[stage])
    elif stage == "collection":
        assert_published(hub, folder, "1.0.0")
        found = [item["id"] for item in hub.store.collections[COLLECTION]["items"]]
        assert not collected or found == ["someone/toy"]
    else:  # what is only proposed leaves main and its tag alone, and is there once
        assert repo.tags == {"v1.0.0": repo.branches["main"]}
        assert json.loads(repo.resolve("main").files["moedd.json"].data)["version"] == "1.0.0"
        if stage == "branch":
            assert set(repo.branches) == {"main", "trial"}
            assert_holds(repo.resolve("trial"), folder, "1.1.0")
        else:
            assert list(repo.branches) == ["main"]
            assert list(repo.pulls) == [1]
            assert_holds(repo.resolve("refs/pr/1"), folder, "1.1.0")


def assert_published(hub: HubServer, folder: Path, version: str) -> None:
    repo = the_repo(hub)
    assert_holds(repo.resolve("main"), folder, version)
    assert_holds(repo.resolve(f"v{version}"), folder, version)


def assert_holds(commit: Commit, folder: Path, version: str) -> None:
    manifest = json.loads(commit.files["moedd.json"].data)
    assert manifest["version"] == version
    for name in manifest["files"]:
        assert commit.files[name].data == (folder / name).read_bytes()


@pytest.mark.parametrize("case", SAMPLE, ids=lambda c: "-".join(map(str, c)))
def test_a_sample(case: Case, hub: HubServer, folders: dict[str, Path]) -> None:
    check(case, hub, folders)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_them(
    hub: HubServer, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ends: dict[str, int] = {}
    for case in ALL:
        end = check(case, hub, folders)
        ends[end] = ends.get(end, 0) + 1
    with capsys.disabled():
        print(f"\n{len(ALL)} combinations of request, fault and persistence: {ends}")
    assert len(ALL) >= 900
    assert ends["completed"] > len(ALL) / 3
