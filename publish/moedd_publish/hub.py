"""Publishing a set on the Hub: one atomic commit, checked afterwards, under a tag that stays.

What a reader finds is a whole set or the one before, at any time: the large files are sent first
and belong to nothing, then one commit on top of the head that was read makes them appear.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from moedd_loaders.errors import ConflictError, NetworkError
from moedd_loaders.hubclient import is_transient, status_of
from moedd_loaders.manifest import Manifest
from moedd_loaders.validate import validate_set
from moedd_publish.huboptions import PushOptions, check_branch, check_options
from moedd_publish.hubplan import Local, Plan, Remote, make_plan, unlike
from moedd_publish.hubrepo import HubRepo, quiet_client
from moedd_publish.results import publishable

__all__ = ["PushOptions", "Pushed", "plan_push", "push_to_hub"]

COMMITS = 5  # how often a commit is tried on a head that keeps moving


@dataclass(frozen=True)
class Pushed:
    """What came of a push. `changed` is False where every file was there already.

    `tag` is the one that names this version, None if none was asked for; `tagged` is True if this
    push made it.
    """

    repo_id: str
    url: str
    sha: str
    version: str
    tag: str | None
    tagged: bool
    changed: bool
    private: bool
    pull_request: str | None
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: tuple[str, ...]


Say = Callable[[str], None]


def push_to_hub(
    folder: Path, repo_id: str, options: PushOptions | None = None, say: Say = print
) -> Pushed:
    """Publish the set in `folder` as `repo_id` ("ns/name", or a name in the token's account).

    A second push of the same set changes nothing. What may pass by itself is tried again; after
    any other error the repository is as it was, or published and not yet tagged (the message says
    so), and the same call completes it.

    Raises:
        InvalidSetError: the set, or its card, is not valid. UsageError: contradicting options, an
        unknown licence. AuthError: no token, or not the right one. ConflictError: other images are
        there, a tag or the visibility is another, the head kept moving. NetworkError.
    """
    options = options or PushOptions()
    local = _local(folder, options)
    hub = HubRepo(repo_id, options.endpoint, say)
    with quiet_client(options.bars):
        hub.account()
        remote = hub.read(options.branch)
        if not remote.exists:
            _plan(hub, local, remote, options)  # what would be refused is refused before it is made
            hub.create(options.private)
            remote = hub.read(options.branch)
            if not remote.exists:
                raise ConflictError(
                    f"the Hub says that {hub.repo_id} exists, but does not show it to you: choose "
                    "another name, or log in with an account that may see it"
                )
        _check_visibility(remote, options, hub.url)
        return _publish(hub, local, remote, options, say)


def plan_push(
    folder: Path, repo_id: str, options: PushOptions | None = None, say: Say = print
) -> tuple[Remote, Plan]:
    """What `push_to_hub` would do; nothing is written anywhere.

    Raises what it would raise, as far as asking tells: a token that the Hub describes as one for
    reading, or as of another account, is refused; a fine-grained one is taken at its word.
    """
    options = options or PushOptions()
    local = _local(folder, options)
    hub = HubRepo(repo_id, options.endpoint, say)
    with quiet_client(False):
        hub.account()
        remote = hub.read(options.branch)
        if remote.exists:
            _check_visibility(remote, options, hub.url)
        plan = _plan(hub, local, remote, options)
        if not plan.empty or plan.tagging.new:
            hub.check_rights(proposing=options.create_pr and remote.exists)
    if plan.tagging.note:
        say(plan.tagging.note)
    return remote, plan


def _local(folder: Path, options: PushOptions) -> Local:
    check_options(options)
    manifest = validate_set(folder)
    return Local(folder, manifest, publishable(manifest, folder, options.results))


def _plan(hub: HubRepo, local: Local, remote: Remote, options: PushOptions) -> Plan:
    check_branch(options, remote.tags)
    named = options.tag
    if named is None and not options.on_main:
        named = ""  # what is only proposed, or on a branch, has no version's tag yet

    def look(commit: str) -> tuple[Manifest | None, Collection[str]]:
        if commit == remote.head:
            return remote.manifest, remote.files
        with hub.asking(f"reading {hub.repo_id}"):
            return hub.manifest(commit), hub.files(commit)

    return make_plan(
        local,
        remote,
        version=options.version,
        licence=options.licence,
        overwrite=options.overwrite,
        card_only=options.card_only,
        replace_card=options.replace_card,
        formats=options.formats,
        tag=named,
        branch=None if options.on_main or options.proposing else options.branch,
        look=look,
    )


def _publish(hub: HubRepo, local: Local, remote: Remote, options: PushOptions, say: Say) -> Pushed:
    branch = options.branch
    new = branch not in remote.branches and branch != "main" and options.pull is None
    if new and remote.head:
        _plan(hub, local, remote, options)  # what would be refused is refused before it is made
        hub.create_branch(branch, remote.head)
    plan, commit, pull_request, changed = _commit(hub, local, remote, options, say)
    if options.pull is not None:
        pull_request = f"{hub.url}/discussions/{options.pull}"
    if changed:
        _verify(hub, plan, commit)
    if plan.tagging.note and not pull_request:
        say(plan.tagging.note)
    tagged = plan.tag is not None and plan.tagging.new and not pull_request
    if plan.tag and tagged:
        hub.tag(plan.tag, commit)
    if options.collection and not pull_request:
        hub.collect(options.collection)
    return Pushed(
        repo_id=hub.repo_id,
        url=hub.url,
        sha=commit,
        version=plan.manifest.version,
        tag=None if pull_request else plan.tag,
        tagged=tagged,
        changed=changed,
        private=bool(remote.private),
        pull_request=pull_request,
        added=tuple(item.path for item in plan.adds),
        deleted=tuple(plan.deletes),
        unchanged=tuple(item.path for item in plan.unchanged),
    )


def _commit(
    hub: HubRepo, local: Local, remote: Remote, options: PushOptions, say: Say
) -> tuple[Plan, str, str | None, bool]:
    """The plan, the commit that holds it, its pull request, and whether anything was changed.

    After an answer that was lost, or a head that moved, the head is read again: what was applied
    is found there, and what was not is committed on top of it.
    """
    first: Plan | None = None
    for attempt in range(1, COMMITS + 1):
        plan = _plan(hub, local, remote, options)
        if plan.empty and remote.head:
            return first or plan, remote.head, None, first is not None
        if options.create_pr and (there := hub.proposed(plan)):
            return first or plan, there[1], f"{hub.url}/discussions/{there[0][8:]}", bool(first)
        operations = hub.operations(plan)
        hub.upload(operations, options.branch, options.create_pr)
        first = first or plan
        message = options.message or _message(plan)
        try:
            made = hub.commit(operations, message, remote.head, options.branch, options.create_pr)
            return plan, made.oid, made.pr_url if options.create_pr else None, True
        except Exception as error:
            moved = status_of(error) in (409, 412)
            if attempt == COMMITS or not (moved or is_transient(error)):
                _give_up(hub, error, moved)
            say(_again(hub, error, moved, attempt))
            time.sleep(2 ** (attempt - 1))
        remote = hub.read(options.branch)
    raise AssertionError("unreachable")


def _give_up(hub: HubRepo, error: Exception, moved: bool) -> None:
    if moved:
        raise ConflictError(
            f"the head of {hub.repo_id} moved at each of {COMMITS} tries to commit: run it again "
            "when nobody else is pushing (a token that may only open pull requests needs "
            "--create-pr)"
        ) from None
    with hub.asking(f"committing to {hub.repo_id}"):
        raise error


def _again(hub: HubRepo, error: Exception, moved: bool, attempt: int) -> str:
    status = status_of(error)
    why = "somebody else committed" if moved else f"the commit was not answered ({status or 'no'})"
    return f"{why}: reading the head of {hub.repo_id} again ({attempt} of {COMMITS})"


def _message(plan: Plan) -> str:
    return f"{plan.manifest.name} {plan.manifest.version} (moedd)"


def _verify(hub: HubRepo, plan: Plan, commit: str) -> None:
    """Every file of the commit, by the checksums that the Hub has of it."""
    files = hub.files(commit)
    wrong = [item.path for item in plan.everything if unlike(item, files.get(item.path))]
    left = [path for path in plan.deletes if path in files]
    if wrong:
        lost = "is missing from" if wrong[0] not in files else "has other bytes in"
        raise NetworkError(
            f"{wrong[0]} {lost} the commit {commit[:12]} of {hub.repo_id} (does its .gitignore "
            "leave it out?): nothing was tagged, run it again"
        )
    if left:
        raise NetworkError(f"{left[0]} is still in {hub.repo_id} at {commit[:12]}: run it again")


def _check_visibility(remote: Remote, options: PushOptions, url: str) -> None:
    """What was asked for must be so: a set that shall be private is never sent to a public one."""
    if options.private is None or remote.private is None or remote.private == options.private:
        return
    now, wanted = ("private", "public") if remote.private else ("public", "private")
    raise ConflictError(
        f"{remote.repo_id} is {now} and --{wanted} was given: change it at {url}/settings, or push "
        f"without --{wanted}; nothing was sent"
    )
