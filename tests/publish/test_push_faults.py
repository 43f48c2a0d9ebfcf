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
from hubfactories import broken_states, the_repo
from huggingface_hub import constants
from runfactories import Told, cli

FIRST = (
    *("whoami", "info", "create", "refs", "tree", "preupload", "lfs-batch", "lfs-put"),
    *("lfs-verify", "validate-yaml", "commit", "tag"),
)
"""Requests of a first publication."""
UPDATE = (*(route for route in FIRST if route != "create"), "head", "get")
"""Requests of publishing other images as a higher version."""
CODES = {"401": {3}, "403": {3}, "404": {3, 6}, "409": {4}, "412": {4}}
"""Exit codes a fault may end with; all others are the network's, 6. A repository that exists and
is not shown is a conflict with it."""
HIDDEN = ("info", "404")

Case = tuple[str, str, str, int | None]
ALL: list[Case] = [
    (stage, route, kind, times)
    for stage, routes in (("first", FIRST), ("update", UPDATE))
    for route, kind, times in itertools.product(routes, KINDS, (1, None))
]
SAMPLE = ALL[::43]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sets: the one of the first publication and the one that takes its place."""
    place = tmp_path_factory.mktemp("sets")
    old, new = place / "old" / "toy", place / "new" / "toy"
    hubfactories.make_set(old, shape=(1, 4, 4), classes=2, ipc=1)
    factories.make_set(new, shape=(1, 4, 4), classes=2, ipc=1, seed=7, rows_per_shard=1)
    return {"first": old, "update": new}


def push(folder: Path, stage: str) -> Told:
    more = ("--overwrite", "--set-version", "1.1.0") if stage == "update" else ()
    return cli("push-to-hub", str(folder), "someone/toy", *more)


def check(case: Case, hub: HubServer, folders: dict[str, Path]) -> str:
    """Run one combination; returns how it ended."""
    stage, route, kind, times = case
    hub.reset()
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    if stage == "update":
        assert push(folders["first"], "first").code == 0
    fault = hub.faults.add(route, kind, times)
    told = push(folders[stage], stage)
    assert fault.hits, f"{route} was never asked for"
    repo = hub.store.repos.get(("datasets", "someone/toy"))
    if repo is not None:
        assert broken_states(repo) == []
    version = "1.1.0" if stage == "update" else "1.0.0"
    if told.code == 0:
        assert_published(hub, folders[stage], version)
    else:
        allowed = {4} if (route, kind) == HIDDEN else CODES.get(kind, {6})
        assert told.code in allowed, (case, told.err)
        assert len(told.sentence) < 500
        assert repo is None or f"v{version}" not in repo.tags
    hub.faults.clear()
    again = push(folders[stage], stage)
    assert again.code == 0, (case, again.err)
    assert_published(hub, folders[stage], version)
    assert broken_states(the_repo(hub)) == []
    return "completed" if told.code == 0 else f"stopped ({told.code})"


def assert_published(hub: HubServer, folder: Path, version: str) -> None:
    repo = the_repo(hub)
    head = repo.resolve("main")
    manifest = json.loads(head.files["moedd.json"].data)
    assert manifest["version"] == version
    for name in manifest["files"]:
        assert head.files[name].data == (folder / name).read_bytes()
    assert repo.tags[f"v{version}"] in repo.commits
    tagged = repo.resolve(f"v{version}").files
    assert json.loads(tagged["moedd.json"].data)["files"] == manifest["files"]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda c: "-".join(map(str, c)))
def test_a_sample(case: Case, hub: HubServer, folders: dict[str, Path]) -> None:
    check(case, hub, folders)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_them(
    hub: HubServer, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ends: dict[str, int] = {}
    for case in ALL:
        end = check(case, hub, folders)
        ends[end] = ends.get(end, 0) + 1
    with capsys.disabled():
        print(f"\n{len(ALL)} combinations of request, fault and persistence: {ends}")
    assert len(ALL) >= 60
    assert ends["completed"] > len(ALL) / 3
