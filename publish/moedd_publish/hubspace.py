"""A page as a static Space on the Hub: one commit on top of the head that was read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from moedd_loaders.errors import ConflictError
from moedd_loaders.hubclient import is_transient, status_of
from moedd_publish.cardmerge import split_card
from moedd_publish.contents import Item
from moedd_publish.hubplan import Remote, unlike
from moedd_publish.hubrepo import HubRepo, quiet_client

__all__ = ["SpacePushed", "push_space"]

_TRIES = 5
_MARK = "made by moedd"  # by this in its README a board of ours is known


@dataclass(frozen=True)
class SpacePushed:
    """Where the page is, at which commit, and whether anything was changed."""

    repo_id: str
    url: str
    sha: str
    changed: bool


def push_space(
    repo_id: str,
    page: str,
    *,
    title: str = "Distilled data sets",
    private: bool | None = None,
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> SpacePushed:
    """Publish `page` (HTML) as the static Space `repo_id`; the same page again changes nothing.

    Raises:
        AuthError: no token, or not the right one. ConflictError: a repository of other content,
        or a head that keeps moving. NetworkError.
    """
    items = [Item("index.html", page.encode()), Item("README.md", _readme(title).encode())]
    space = HubRepo(repo_id, endpoint, say, kind="space")
    with quiet_client(False):
        space.account()
        before = space.read()
        if before.exists:
            _check_ours(space, before)
        else:
            space.create(private)
        for attempt in range(1, _TRIES + 1):
            there = space.read()
            adds = [item for item in items if unlike(item, there.files.get(item.path))]
            if not adds and there.head:
                return SpacePushed(space.repo_id, space.url, there.head, attempt > 1)
            from huggingface_hub import CommitOperationAdd

            operations = [CommitOperationAdd(item.path, item.source) for item in adds]
            try:
                made = space.commit(operations, "Leaderboard (moedd)", there.head, "main", False)
                return SpacePushed(space.repo_id, space.url, made.oid, True)
            except Exception as error:
                passing = status_of(error) in (409, 412) or is_transient(error)
                if attempt == _TRIES or not passing:
                    with space.asking(f"committing to {space.repo_id}"):
                        raise
                say(f"trying again to commit to {space.repo_id} ({attempt} of {_TRIES})")
                time.sleep(2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _check_ours(space: HubRepo, there: Remote) -> None:
    """A Space that is there must be a board of ours, or as it was when it was made: empty, or
    with the files that the Hub puts into a new one.

    Raises ConflictError: it is something else, which a push would destroy.
    """
    kind = there.sdk or split_card(there.card or "")[0].get("sdk")
    ours = _MARK in (there.card or "") or set(there.files) <= {".gitattributes"}
    if kind in (None, "static") and (ours or space.commits() == 1):
        return
    what = "a static Space with other content" if kind == "static" else f"a Space of kind {kind}"
    raise ConflictError(
        f"{space.repo_id} is {what}, not a board made by moedd, and stays as it is: give another "
        f"name to --push-space, or delete that Space at {space.url}/settings first"
    )


def _readme(title: str) -> str:
    front = {
        "title": title,
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "static",
        "pinned": False,
        "tags": ["dataset-distillation", "moedd"],
    }
    head = yaml.safe_dump(front, sort_keys=False)
    return f"---\n{head}---\n# {title}\n\nA leaderboard {_MARK} (`moedd leaderboard`).\n"
