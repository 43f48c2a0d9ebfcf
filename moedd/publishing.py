"""What the commands that publish and fetch do: `push-to-hub`, `pull`."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from moedd.progress import Reporter
from moedd.tables import counted, usage_lines
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import read_manifest
from moedd_loaders.resolve import resolve
from moedd_publish.contents import chosen_formats
from moedd_publish.hub import Pushed, PushOptions, plan_push, push_to_hub
from moedd_publish.hubplan import Plan, Remote
from moedd_publish.shelf import push_to_url


def run_push_to_hub(
    name: str,
    repo_id: str,
    options: PushOptions,
    *,
    formats: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    xet: bool,
) -> None:
    """`moedd push-to-hub`: publish a set, or say what publishing it would do."""
    if not xet:
        without_xet()
    options = replace(options, formats=None if formats is None else chosen_formats(formats))
    found = resolve(name)
    silent = quiet or as_json
    say = (lambda _: None) if silent else _say
    say(f"publishing {found}")
    if dry_run:
        remote, plan = plan_push(found.whole(), repo_id, options, say)
        shown = _planned(remote, plan, options)
        print(json.dumps(shown, indent=1) if as_json else _plan_text(remote, plan, options))
        return
    bars = not silent and terminal()
    pushed = push_to_hub(found.whole(), repo_id, replace(options, bars=bars), say)
    if as_json:
        print(json.dumps(_pushed(pushed), indent=1))
    elif not quiet:
        print(_pushed_text(pushed, len(read_manifest(found.folder).experts), options.on_main))


def run_push(
    name: str,
    url: str,
    *,
    licence: str | None,
    version: str | None,
    overwrite: bool,
    results: Path | None,
) -> None:
    """`moedd push`: publish a set at an address that fsspec writes to."""
    if "://" not in url:
        raise UsageError(
            f"'{url}' is no address such as s3://bucket/name: for the Hub it is moedd push-to-hub"
        )
    found = resolve(name)
    reporter = Reporter()
    reporter.say(f"publishing {found}")
    begun: list[int] = []

    def told(path: str, done: int, total: int) -> None:
        if not begun:
            begun.append(total)
            reporter.begin("uploading", total)
        reporter.step(done, path)

    try:
        made = push_to_url(
            found.whole(), url, version=version, licence=licence, overwrite=overwrite,
            results=results, on_file=told,
        )  # fmt: skip
    finally:
        reporter.end()
    if not made.changed:
        print(f"{made.url}: already published as version {made.version}; nothing was changed")
        return
    print(f"published: {made.url} (version {made.version}); every checksum agrees")
    print(
        f"files:     {len(made.written)} sent, {len(made.deleted)} deleted, "
        f"{len(made.unchanged)} unchanged"
    )
    print(f"load it:\n{usage_lines(made.url, len(read_manifest(found.folder).experts))}")


def run_pull(
    name: str, *, offline: bool, as_json: bool, to: Path | None, endpoint: str | None
) -> None:
    """`moedd pull`: fetch a set from the Hub into the cache, or whole into a folder."""
    from moedd_loaders.hub import fetch, require_hub_name
    from moedd_publish.hubcopy import copy_from_hub

    wanted = require_hub_name(name)
    if to is not None and offline:
        raise UsageError("--to copies the whole set from the Hub, which --offline does not ask")
    if to is not None:
        fetched = copy_from_hub(wanted, to, endpoint)
    else:
        fetched = fetch(wanted, offline=True if offline else None, endpoint=endpoint)
    manifest = read_manifest(fetched.folder)
    if as_json:
        told = {"repo": wanted.repo_id, "sha": fetched.commit, "folder": str(fetched.folder)}
        print(json.dumps({**told, "version": manifest.version}, indent=1))
        return
    pinned = f"{wanted.repo_id}@{fetched.commit}"
    print(
        f"{wanted}: {manifest.name} {manifest.version}, {counted(manifest.budget.images, 'image')}"
    )
    print(f"commit:  {fetched.commit}")
    print(f"folder:  {fetched.folder}")
    print(f"load it (always this commit: {pinned}):")
    print(usage_lines(str(to) if to else str(wanted), len(manifest.experts)))


def terminal() -> bool:
    """Whether a person watches standard error."""
    return Console(stderr=True).is_terminal


def without_xet() -> None:
    """Large files go by plain HTTP, whether or not the client was imported already."""
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _visibility(remote: Remote, options: PushOptions) -> str:
    if remote.private is not None:
        return "private" if remote.private else "public"
    if options.private is None:
        return "as the account's rule has it"
    return "private" if options.private else "public"


def _planned(remote: Remote, plan: Plan, options: PushOptions) -> dict[str, object]:
    return {
        "dry_run": True,
        "repo": remote.repo_id,
        "exists": remote.exists,
        "visibility": _visibility(remote, options),
        "version": plan.manifest.version,
        "tag": plan.tag,
        "add": {item.path: item.size for item in plan.adds},
        "delete": {path: remote.files[path].size for path in plan.deletes},
        "unchanged": {item.path: item.size for item in plan.unchanged},
        "card": plan.card,
    }


def _plan_text(remote: Remote, plan: Plan, options: PushOptions) -> str:
    made = "" if remote.exists else ", to be created"
    lines = [
        f"repository: {remote.repo_id} ({_visibility(remote, options)}{made})",
        f"branch:     {options.branch}{' (as a pull request)' if options.create_pr else ''}",
        f"version:    {plan.manifest.version}, tag {plan.tag or 'none'}",
    ]
    rows = [("add" if item.path not in remote.files else "change", item) for item in plan.adds]
    lines += [f"{what:>10}  {item.size:>12,}  {item.path}" for what, item in rows]
    lines += [f"{'delete':>10}  {remote.files[p].size:>12,}  {p}" for p in plan.deletes]
    lines += [f"{'unchanged':>10}  {item.size:>12,}  {item.path}" for item in plan.unchanged]
    size = sum(item.size for item in plan.adds)
    lines.append(
        f"{counted(len(plan.adds), 'file')} to send ({size:,} bytes), {len(plan.deletes)} to "
        f"delete, {len(plan.unchanged)} unchanged; nothing was written"
    )
    return "\n".join(lines) + f"\n\n--- README.md ---\n{plan.card}"


def _pushed(pushed: Pushed) -> dict[str, object]:
    return {
        "repo": pushed.repo_id,
        "url": pushed.url,
        "sha": pushed.sha,
        "version": pushed.version,
        "tag": pushed.tag,
        "tagged": pushed.tagged,
        "changed": pushed.changed,
        "visibility": "private" if pushed.private else "public",
        "pull_request": pushed.pull_request,
        "added": list(pushed.added),
        "deleted": list(pushed.deleted),
        "unchanged": list(pushed.unchanged),
    }


def _pushed_text(pushed: Pushed, experts: int, on_main: bool) -> str:
    if not pushed.changed:
        what = (
            f"proposed already: {pushed.pull_request}"
            if pushed.pull_request
            else (f"already published at {pushed.sha}")
        )
        done = f"tagged {pushed.tag}; no file" if pushed.tagged else "nothing"
        return f"{pushed.repo_id}: {what}; {done} was changed"
    seen = "private" if pushed.private else "public"
    where = pushed.pull_request or f"{pushed.url} ({seen})"
    tagged = f", tag {pushed.tag}" if pushed.tag else ""
    if pushed.tag:
        name = f"{pushed.repo_id}@{pushed.tag}"
    else:  # on a branch, or only proposed: the name alone would load another commit
        name = pushed.repo_id if on_main else f"{pushed.repo_id}@{pushed.sha}"
    return (
        f"published: {where}\n"
        f"commit:    {pushed.sha} (version {pushed.version}{tagged}); every checksum agrees\n"
        f"files:     {len(pushed.added)} sent, {len(pushed.deleted)} deleted, "
        f"{len(pushed.unchanged)} unchanged\n"
        f"load it:\n{usage_lines(name, experts)}"
    )
