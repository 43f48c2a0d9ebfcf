"""`push_to_hub` where something is in its way: a moving head, lost answers, missing rights."""

from __future__ import annotations

from pathlib import Path

import hubfactories
import pytest
from hub_faults import Asked
from hub_server import HubServer
from hub_store import File
from hubfactories import log_in, push, the_repo

from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    InvalidSetError,
    NetworkError,
    UsageError,
)


def test_the_head_moved_by_somebody_else(folder: Path, hub: HubServer) -> None:
    """A commit between our reading and our committing: read again, put on top of it."""
    moves = [File(b"one"), File(b"two")]

    def meddle(asked: Asked) -> None:
        if asked.route == "validate-yaml" and moves:
            repo = the_repo(hub)
            head = repo.resolve("main")
            made = repo.add("theirs", {**head.files, "theirs.txt": moves.pop()}, head)
            repo.branches["main"] = made.oid

    hub.after = meddle
    pushed = push(folder)
    history = the_repo(hub).history()
    titles = [commit.title for commit in history]
    assert titles == [f"{hubfactories.NAME} 1.0.0 (moedd)", "theirs", "theirs", "initial commit"]
    assert history[0].files["theirs.txt"].data == b"one"
    assert pushed.sha == history[0].oid
    assert hubfactories.broken_states(the_repo(hub)) == []


def test_a_head_that_never_rests(folder: Path, hub: HubServer) -> None:
    def meddle(asked: Asked) -> None:
        if asked.route == "validate-yaml":
            repo = the_repo(hub)
            head = repo.resolve("main")
            repo.branches["main"] = repo.add("theirs", dict(head.files), head).oid

    hub.after = meddle
    with pytest.raises(ConflictError, match="moved at each of 5 tries"):
        push(folder)
    assert [a.status for a in hub.log if a.route == "commit"] == [412] * 5


def test_the_answer_of_the_commit_is_lost(folder: Path, hub: HubServer) -> None:
    hub.faults.add("commit", "lost")
    pushed = push(folder)
    repo = the_repo(hub)
    assert [commit.title for commit in repo.history()].count("initial commit") == 1
    assert len(repo.history()) == 2
    assert pushed.changed
    assert repo.tags == {"v1.0.0": pushed.sha}


def test_bytes_that_differ_on_the_hub_are_seen(folder: Path, hub: HubServer) -> None:
    def spoil(asked: Asked) -> None:
        if asked.route == "commit" and asked.status == 200:
            repo = the_repo(hub)
            head = repo.resolve("main")
            files = {**head.files, "moedd.json": File(head.files["moedd.json"].data + b" ")}
            repo.commits[head.oid] = type(head)(**{**vars(head), "files": files})

    hub.after = spoil
    with pytest.raises(NetworkError, match=r"moedd\.json has other bytes"):
        push(folder)
    assert the_repo(hub).tags == {}


@pytest.mark.parametrize(
    ("token", "repo_id", "error", "message"),
    [
        (None, "someone/toy", AuthError, "not logged in"),
        ("hf_wrong", "someone/toy", AuthError, "does not accept your token"),
        ("hf_reader", "someone/toy", AuthError, "needs the right to write to someone"),
        ("hf_other", "someone/toy", AuthError, "needs the right to write to someone"),
        ("hf_writer", "nobody/toy", AuthError, "needs the right to write to nobody"),
        ("hf_writer", "some--one/toy", UsageError, "no name of a repository"),
        ("hf_writer", "someone/toy.git", UsageError, "no name of a repository"),
    ],
)
def test_who_may_not(
    folder: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    repo_id: str,
    error: type[Exception],
    message: str,
) -> None:
    log_in(monkeypatch, token)
    with pytest.raises(error, match=message):
        push(folder, repo_id)
    assert hub.store.repos == {}


def test_without_large_file_storage(folder: Path, hub: HubServer) -> None:
    """A server that takes every file as it is, with the client's Xet switched on."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = False  # the fixture puts it back
    hub.store.all_regular = True
    pushed = push(folder)
    assert len(the_repo(hub).history()) == 2
    assert not push(folder).changed
    assert pushed.changed


def test_xet_that_does_not_work_is_named(folder: Path, hub: HubServer) -> None:
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = False  # the fixture puts it back
    with pytest.raises(NetworkError, match="--no-xet"):
        push(folder)
    assert len(the_repo(hub).history()) == 1


def test_a_damaged_set_is_not_sent(folder: Path, hub: HubServer) -> None:
    (folder / "webdataset" / "train-00000.tar").write_bytes(b"")
    with pytest.raises(InvalidSetError):
        push(folder)
    assert hub.log == []


def test_no_network(folder: Path, hub: HubServer) -> None:
    hub.faults.add("*", "drop", None)
    with pytest.raises(NetworkError, match="broke off the connection while logging in"):
        push(folder)


def test_an_answer_that_never_comes_is_not_waited_for(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that the client itself sends without a time limit have one."""
    from moedd_loaders import hubclient

    monkeypatch.setattr(hubclient, "READ_SECONDS", 0.4)
    hub.stall = 1.5
    hub.faults.add("refs", "slow", None)
    with pytest.raises(NetworkError, match="took too long to answer"):
        push(folder)
    assert [a.route for a in hub.log].count("refs") == hubclient.TRIES


def test_another_hub(folder: Path, hub: HubServer) -> None:
    with HubServer() as elsewhere:
        pushed = push(folder, endpoint=elsewhere.url)
        assert pushed.url == f"{elsewhere.url}/datasets/someone/toy"
        assert not push(folder, endpoint=elsewhere.url).changed
        assert elsewhere.store.repos["datasets", "someone/toy"].tags
    assert hub.log == []
