"""What people wrote into a card survives: only moedd's part of it is replaced."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from moedd_loaders.errors import ConflictError

__all__ = ["BEGIN", "merge_cards", "split_card"]

BEGIN = "<!-- moedd:begin"
_BLOCK = re.compile(r"<!-- moedd:begin.*?<!-- moedd:end( text=[0-9a-f]{12})? -->\n?", re.DOTALL)
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|$)", re.DOTALL)


def split_card(text: str) -> tuple[dict[str, Any], str, str, str, str | None]:
    """A README as (YAML, text before, moedd's part, text after, fingerprint of the text as pushed).

    YAML that cannot be read counts as none.
    """
    import yaml

    front: dict[str, Any] = {}
    match = _FRONT.match(text)
    if match is not None:
        try:
            found = yaml.safe_load(match[1])
            front = found if isinstance(found, dict) else {}
        except yaml.YAMLError:
            pass
        text = text[match.end() :]
    block = _BLOCK.search(text)
    if block is None:
        return front, "", "", text, None
    stamp = block[1].removeprefix(" text=") if block[1] else None
    return front, text[: block.start()], block[0], text[block.end() :], stamp


def merge_cards(
    made: str, here: str | None, there: str | None, owned: frozenset[str], where: str
) -> str:
    """The card to publish: moedd's part as `made`, around it what people wrote.

    The mark at the end of moedd's part keeps a fingerprint of the text around it as it was pushed
    last. Whichever side has changed since wins.

    Args:
        made: front matter and moedd's part, new.
        here: the README beside the set, or None.
        there: the published README, or None.
        owned: keys of the front matter that are moedd's; others are kept from `there`, then `here`.
        where: the repository, for messages.

    Raises:
        ConflictError: both sides were edited, differently.
    """
    import yaml

    front, _, block, _, _ = split_card(made)
    kept_front, before, after = _written(here, there, where)
    front |= {key: value for key, value in kept_front.items() if key not in owned}
    tags = [tag for tag in kept_front.get("tags") or [] if isinstance(tag, str)]
    front["tags"] = list(dict.fromkeys([*front.get("tags", []), *tags]))
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=False)
    text = before + "\n" + after
    stamp = f" text={_fingerprint(before, after)}" if text.strip() else ""
    block = re.sub(r"<!-- moedd:end.*?-->", f"<!-- moedd:end{stamp} -->", block)
    return f"---\n{head}---\n{before}{block}{after}"


def _written(here: str | None, there: str | None, where: str) -> tuple[dict[str, Any], str, str]:
    """Front matter and the text around moedd's part, of the side that was edited last."""
    mine = split_card(here or "")
    theirs = split_card(there or "")
    front = {**mine[0], **theirs[0]}
    ours, published = (mine[1], mine[3]), (theirs[1], theirs[3])
    if there is None or _same(ours, published) or not "".join(published).strip():
        return front, *(ours if there is None or "".join(ours).strip() else published)
    if not "".join(ours).strip():
        return front, *published
    edited_there = theirs[4] != _fingerprint(*published)
    edited_here = theirs[4] != _fingerprint(*ours)
    if edited_there and edited_here:
        raise ConflictError(
            f"the text of the card was edited both here and in {where}: make README.md here say "
            "what it shall say and give --replace-card"
        )
    return front, *(published if edited_there else ours)


def _same(left: tuple[str, str], right: tuple[str, str]) -> bool:
    return _fingerprint(*left) == _fingerprint(*right)


def _fingerprint(before: str, after: str) -> str:
    text = f"{before.strip()}\n\0\n{after.strip()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
