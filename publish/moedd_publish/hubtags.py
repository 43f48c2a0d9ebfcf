"""Which tag names a version, and which revision a card may name: one that has the files.

Tags never move. Where a version is published in more formats than before, its tag stays at the
commit that lacks them, and the commit that has them gets a second tag, named after them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from moedd_loaders.errors import ConflictError
from moedd_loaders.manifest import Manifest
from moedd_publish.contents import formats_there, same_images

__all__ = ["Look", "Tagging", "choose_tag"]

Look = Callable[[str], tuple[Manifest | None, Collection[str]]]
"""Gives the manifest (None if there is none that can be read) and the paths at a commit."""


@dataclass(frozen=True)
class Tagging:
    """What a push does about tags.

    Attributes:
        tag: the tag that names what is published; None if none was asked for.
        new: it is to be made, at the commit of this push.
        shown: the tag that the card names: `tag`, or one that is there already; None without one.
        note: what to tell about it, None if nothing is unusual.
    """

    tag: str | None
    new: bool
    shown: str | None
    note: str | None = None


def choose_tag(
    repo_id: str,
    manifest: Manifest,
    formats: Sequence[str],
    asked: str | None,
    tags: Mapping[str, str],
    look: Look,
) -> Tagging:
    """The tag of a version.

    Args:
        repo_id: the repository, for messages.
        manifest: as it is published. formats: the containers that are.
        asked: a name; None for "v" and the version; "" for none.
        tags: name -> commit of the tags that are there.

    Raises:
        ConflictError: the tag is at other images, or lacks files and was asked for by its name.
    """
    name = asked or f"v{manifest.version}"
    note = None
    lacking = _lacking(manifest, formats, tags.get(name), look)
    if lacking and not asked:
        longer = f"{name}-{'-'.join(lacking)}"
        note = (
            f"the tag {name} stays at {tags[name][:12]}, which has no {' and no '.join(lacking)}: "
            f"this is tagged {longer}"
        )
        name, lacking = longer, _lacking(manifest, formats, tags.get(longer), look)
    there = name in tags
    if asked == "":
        return Tagging(None, False, name if there and lacking == [] else None)
    if lacking is None:
        raise ConflictError(
            f"the tag {name} of {repo_id} is at {tags[name][:12]}, with other images, and tags do "
            "not move: give a higher --set-version, or another --tag"
        )
    if lacking:
        raise ConflictError(
            f"the tag {name} of {repo_id} is at {tags[name][:12]}, which has no "
            f"{' and no '.join(lacking)}, and tags do not move: give another --tag"
        )
    if there:
        note = f"the tag {name} stays at {tags[name][:12]}, which has these images"
    return Tagging(name, not there, name, note)


def _lacking(
    manifest: Manifest, formats: Sequence[str], commit: str | None, look: Look
) -> list[str] | None:
    """Formats that a tagged commit lacks (none, where there is no such tag); None if it has other
    images."""
    if commit is None:
        return []
    tagged, paths = look(commit)
    if tagged is None or not same_images(tagged, manifest):
        return None
    there = formats_there(manifest, paths)
    return [name for name in formats if name not in there]
