"""What a push would change: the local set beside what the Hub holds, and whether that may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moedd_loaders.errors import ConflictError
from moedd_loaders.manifest import MANIFEST, Manifest
from moedd_loaders.records import Record
from moedd_publish.card import FORMATS, OWNED_KEYS, render_card
from moedd_publish.cardmerge import merge_cards
from moedd_publish.contents import (
    CARD,
    MUTABLE,
    PAYLOAD,
    Item,
    check_replacement,
    for_publication,
    formats_there,
    items,
    left_over,
    same_images,
)
from moedd_publish.hubtags import Look, Tagging, choose_tag
from moedd_publish.results import merged

__all__ = ["Local", "Plan", "Remote", "make_plan", "unlike"]


@dataclass(frozen=True)
class Local:
    """A set on disk, validated, with the records that go out with it."""

    folder: Path
    manifest: Manifest
    records: Sequence[Record] = ()

    @property
    def card(self) -> str | None:
        path = self.folder / CARD
        return path.read_text("utf-8", errors="replace") if path.is_file() else None


@dataclass(frozen=True)
class Remote:
    """What a repository holds at one commit.

    Attributes:
        repo_id, private: the repository; `exists` is False before it is made.
        head: the commit, None before there is one.
        files: per path what the Hub says of it (huggingface_hub's RepoFile).
        manifest, card, records: of the set that is there.
        tags: name -> commit. branches: names.
        sdk: of a Space, what runs it ("static", "gradio", ...).
    """

    repo_id: str
    exists: bool = True
    private: bool | None = None
    head: str | None = None
    files: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    card: str | None = None
    records: Sequence[Record] = ()
    tags: dict[str, str] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    sdk: str | None = None


@dataclass(frozen=True)
class Plan:
    """What one commit does. Paths of `deletes` and `unchanged` are in the repository."""

    manifest: Manifest
    card: str
    everything: list[Item]
    adds: list[Item]
    deletes: list[str]
    unchanged: list[Item]
    tagging: Tagging

    @property
    def tag(self) -> str | None:
        """The tag that names what is published; None if none was asked for."""
        return self.tagging.tag

    @property
    def empty(self) -> bool:
        return not self.adds and not self.deletes


def make_plan(
    local: Local,
    remote: Remote,
    *,
    version: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    card_only: bool = False,
    replace_card: bool = False,
    formats: Sequence[str] | None = None,
    tag: str | None = None,
    branch: str | None = None,
    look: Look,
) -> Plan:
    """Compare, and refuse what must not happen.

    Args:
        version: publish as this version instead of the manifest's.
        licence: of the source, where the manifest does not know it.
        overwrite: other images may take the place of those that are there, as a higher version.
        card_only: leave the images alone; card, preview and records only.
        replace_card: take the card's text from here, whatever was written there.
        formats: containers to publish; None for all, with `card_only` for those that are there.
        tag: name of the tag; None for "v" and the version; "" for none.
        branch: the branch that the card names where no tag does; None for the main one.
        look: tells what is at the commit of a tag.

    Raises:
        ConflictError: other images are there and `overwrite` or a higher version is missing; files
            that are no set's are there; both sides edited the card; the tag is at something else.
            UsageError: licence unknown.
    """
    published = remote.manifest
    if card_only and (published is None or not same_images(local.manifest, published)):
        raise ConflictError(
            f"the images of {remote.repo_id} are not those of {local.folder}, so its card cannot "
            "be updated alone: push without --card-only"
        )
    if card_only and published is not None:
        # moedd.json and the containers stay as they are, so the card tells what is there.
        manifest = published
        formats = formats_there(published, remote.files)
    else:
        formats = formats or FORMATS
        licence = licence or _published_licence(local.manifest, published)
        manifest = for_publication(local.manifest, published, version, licence)
    _check_overwrite(local, remote, manifest, overwrite)
    current = [record for record in remote.records if record.set_hash == manifest.training_sha256]
    records = merged(current, local.records)
    tagging = choose_tag(remote.repo_id, manifest, formats, tag, remote.tags, look)
    made = render_card(
        manifest,
        records=records,
        repo_id=remote.repo_id,
        formats=formats,
        tag=tagging.shown,
        branch=branch,
    )
    there = None if replace_card else remote.card
    card = merge_cards(made, local.card, there, OWNED_KEYS, remote.repo_id)
    everything = items(local.folder, manifest, card, records, formats)
    if card_only:
        everything = [item for item in everything if item.path in MUTABLE]
    adds = [item for item in everything if unlike(item, remote.files.get(item.path))]
    wanted = {item.path for item in everything}
    stale = left_over(
        remote.files,
        wanted,
        replacing=MANIFEST in remote.files and not (published and same_images(manifest, published)),
        foreign_records=bool(remote.records) and not current,
    )
    changed = {item.path for item in adds}
    return Plan(
        manifest=manifest,
        card=card,
        everything=everything,
        adds=adds,
        deletes=[] if card_only else stale,
        unchanged=[item for item in everything if item.path not in changed],
        tagging=tagging,
    )


def unlike(item: Item, there: Any) -> bool:
    """Whether a file of the Hub, as it describes it, is missing or holds other bytes."""
    if there is None or there.size != item.size:
        return True
    if there.lfs is not None:
        return bool(there.lfs.sha256 != item.sha256)
    return bool(there.blob_id != item.git_oid)


def _published_licence(manifest: Manifest, published: Manifest | None) -> str | None:
    """What was said when the same images were published stays said."""
    if published is None or not same_images(manifest, published):
        return None
    known = manifest.source.license.strip().lower() not in ("", "unknown")
    return None if known else published.source.license


def _check_overwrite(local: Local, remote: Remote, manifest: Manifest, overwrite: bool) -> None:
    published = remote.manifest
    if published is None:
        foreign = [path for path in sorted(remote.files) if path.startswith(PAYLOAD)]
        foreign += [path for path in ("moedd.json",) if path in remote.files]
        if foreign and not overwrite:
            raise ConflictError(
                f"{remote.repo_id} holds {foreign[0]}, which is not of a set that can be read: "
                "choose another name, or give --overwrite to put the set in its place"
            )
        return
    check_replacement(remote.repo_id, local.manifest, manifest, published, overwrite)
