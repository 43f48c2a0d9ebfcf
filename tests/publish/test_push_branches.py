"""Pushes that publish nothing yet: to another branch, or as a pull request."""

from __future__ import annotations

from pathlib import Path

import hubfactories
import pytest
from hub_server import HubServer
from hubfactories import SILENT, log_in, push, the_repo, writes

from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    UsageError,
)
from moedd_loaders.manifest import read_manifest
from moedd_publish.hub import PushOptions, plan_push


def test_a_pull_request(
    folder: Path, other: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder)
    repo = the_repo(hub)
    head = repo.branches["main"]
    options = {"overwrite": True, "version": "1.1.0", "create_pr": True}
    pushed = push(other, **options)
    assert pushed.pull_request is not None
    assert pushed.pull_request.endswith("/discussions/1")
    assert pushed.tag is None
    assert repo.branches["main"] == head
    assert repo.pulls == {1: pushed.sha}
    again = push(other, **options)
    assert (again.changed, again.sha) == (False, pushed.sha)
    assert list(repo.pulls) == [1]
    # Somebody who may not write to it may propose too; whoever may read only, may not.
    log_in(monkeypatch, "hf_other")
    theirs = push(other, **{**options, "version": "1.2.0"})
    assert repo.pulls == {1: pushed.sha, 2: theirs.sha}
    log_in(monkeypatch, "hf_reader")
    with pytest.raises(AuthError, match="needs the right to write"):
        push(other, **{**options, "version": "1.3.0"})


def test_a_lost_answer_of_a_pull_request_is_found_again(folder: Path, hub: HubServer) -> None:
    push(folder, card_only=False)
    repo = the_repo(hub)
    more = folder.parent / "more.jsonl"
    record = hubfactories.make_record(read_manifest(folder), network="vgg11")
    more.write_text(record.model_dump_json() + "\n")
    hub.faults.add("commit", "lost")
    pushed = push(folder, create_pr=True, results=more)
    assert list(repo.pulls) == [1]
    assert pushed.sha == repo.pulls[1]
    assert pushed.changed


def test_a_branch(folder: Path, hub: HubServer) -> None:
    push(folder)
    repo = the_repo(hub)
    head = repo.branches["main"]
    more = folder.parent / "more.jsonl"
    record = hubfactories.make_record(read_manifest(folder), network="vgg11")
    more.write_text(record.model_dump_json() + "\n")
    pushed = push(folder, revision="trial", results=more)
    assert repo.branches == {"main": head, "trial": pushed.sha}
    assert pushed.tag is None
    assert repo.tags == {"v1.0.0": head}
    with pytest.raises(UsageError, match="give one of them"):
        push(folder, revision="trial", create_pr=True)


def test_a_pull_request_is_addressed_by_its_reference(
    folder: Path, other: Path, hub: HubServer
) -> None:
    push(folder)
    repo = the_repo(hub)
    head = repo.branches["main"]
    options = {"overwrite": True, "version": "1.1.0"}
    first = push(other, create_pr=True, **options)
    more = folder.parent / "more.jsonl"
    record = hubfactories.make_record(read_manifest(other), network="vgg11")
    more.write_text(record.model_dump_json() + "\n")
    second = push(other, revision="refs/pr/1", results=more, **options)
    assert repo.branches == {"main": head}
    assert repo.pulls == {1: second.sha}
    assert repo.resolve("refs/pr/1").parent == first.sha
    assert (second.changed, second.tag, second.pull_request) == (True, None, first.pull_request)
    again = push(other, revision="refs/pr/1", results=more, **options)
    assert (again.changed, again.sha) == (False, second.sha)
    assert repo.tags == {"v1.0.0": head}


def test_what_is_no_branch(folder: Path, other: Path, hub: HubServer) -> None:
    with pytest.raises(UsageError, match="has no pull request 1: give --create-pr"):
        push(folder, revision="refs/pr/1")
    assert hub.store.repos == {}
    push(folder)
    repo = the_repo(hub)
    hub.log.clear()
    for revision, said in (
        ("refs/pr/1", "has no pull request 1"),
        ("refs/heads/trial", "expected a name such as trial"),
        ("refs/pr/x", "expected a name such as trial"),
        (repo.branches["main"], "expected a name such as trial"),
        ("v1.0.0", "is a tag, and tags do not move"),
    ):
        with pytest.raises(UsageError, match=said):
            push(folder, revision=revision)
        with pytest.raises(UsageError, match=said):
            plan_push(folder, "someone/toy", PushOptions(revision=revision), say=SILENT)
    with pytest.raises(UsageError, match="only proposes it"):
        push(folder, create_pr=True, tag="mine")
    with pytest.raises(ConflictError, match="--overwrite"):
        push(other, revision="trial")
    assert list(repo.branches) == ["main"]
    assert writes(hub.log) == []


def test_a_closed_pull_request_proposes_nothing(folder: Path, other: Path, hub: HubServer) -> None:
    push(folder)
    repo = the_repo(hub)
    options = {"overwrite": True, "version": "1.1.0", "create_pr": True}
    push(other, **options)
    repo.closed.add(1)
    second = push(other, **options)
    assert second.changed
    assert repo.pulls[2] == second.sha
    again = push(other, **options)
    assert (again.changed, again.sha, list(repo.pulls)) == (False, second.sha, [1, 2])
