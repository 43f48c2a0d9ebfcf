"""`push_to_hub` against a Hub: what arrives, what is refused, what a second push does."""

from __future__ import annotations

from pathlib import Path

import hubfactories
import pytest
from hub_server import HubServer
from hubfactories import the_repo

from moedd_publish.hub import PushOptions, plan_push, push_to_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / hubfactories.NAME
    hubfactories.make_set(path)
    return path


def push(folder: Path, repo_id: str = "someone/toy", **options: object):  # type: ignore[no-untyped-def]
    return push_to_hub(folder, repo_id, PushOptions(**options), say=lambda _: None)  # type: ignore[arg-type]


def test_one_commit_that_holds_all_of_it(folder: Path, hub: HubServer) -> None:
    pushed = push(folder)
    repo = the_repo(hub)
    history = repo.history()
    assert [commit.title for commit in history][1:] == ["initial commit"]
    assert pushed.changed
    assert pushed.sha == history[0].oid
    assert repo.tags == {"v1.0.0": pushed.sha}
    print(sorted(history[0].files))
    print([(a.method, a.route) for a in hub.log])
    assert hubfactories.broken_states(repo) == []
    before = len(hub.log)
    again = push(folder)
    assert not again.changed
    assert again.sha == pushed.sha
    assert {a.method for a in hub.log[before:]} <= {"GET", "HEAD"}
