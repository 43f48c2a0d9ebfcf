"""From the name of a set to its folder.

A bare name is looked up in three places, in this order: a folder of that path that holds
`moedd.json`; `$MOEDD_HOME/sets/NAME`; the sets bundled with this package. `ns/name[@revision]` that
is no folder here is a set on the Hub, `scheme://...` one on any other shelf (see `hub`, `shelf`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moedd_loaders.errors import SetNotFoundError, UsageError, nearest
from moedd_loaders.names import is_slug

__all__ = ["Resolved", "bundled_folders", "bundled_names", "home", "known_names", "resolve"]

# Spelled out, not imported from manifest.py: finding a set must not cost the import of pydantic.
_MANIFEST = "moedd.json"
_BUNDLED = Path(__file__).parent / "bundled"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.*)?")
_HUB_URL = "hf://datasets/"
_PLACES = {"folder": "folder", "home": "your set", "bundled": "bundled set"}


@dataclass(frozen=True)
class Resolved:
    """Where a set was found: its folder, which of the places that is, the name as given.

    `commit` is that of a set on the Hub; its folder, as that of a set at another address, is a copy
    on this machine that holds the manifest and the tensors only.
    """

    folder: Path
    origin: Literal["folder", "home", "bundled", "hub", "url"]
    name: str
    commit: str | None = None

    def whole(self) -> Path:
        """The folder, if it holds the whole set. Raises UsageError: it holds what loading needs."""
        if self.origin in ("hub", "url"):
            how = f"`moedd pull {self.name} --to FOLDER`" if self.origin == "hub" else "a download"
            raise UsageError(
                f"of {self.name} only the manifest and the tensors are here: copy the whole set "
                f"with {how} and give that folder"
            )
        return self.folder

    def __str__(self) -> str:
        if self.origin == "hub":
            return f"Hub {self.name} at {(self.commit or '')[:12]}"
        return f"{_PLACES.get(self.origin, self.origin)} {self.folder}"


def home() -> Path:
    """`$MOEDD_HOME`, by default `~/.local/share/moedd`; it need not exist."""
    return Path(os.environ.get("MOEDD_HOME") or "~/.local/share/moedd").expanduser()


def bundled_names() -> list[str]:
    """Names of the sets that ship with this package."""
    return _sets_in(_BUNDLED)


def bundled_folders() -> list[Path]:
    """Folders of the sets that ship with this package."""
    return [_BUNDLED / name for name in bundled_names()]


def known_names() -> list[str]:
    """Names of the sets in `$MOEDD_HOME/sets` and of the bundled ones, without duplicates."""
    return sorted({*_sets_in(home() / "sets"), *bundled_names()})


def resolve(name: str | os.PathLike[str], *, offline: bool | None = None) -> Resolved:
    """The folder of a set, by name, path or address.

    Args:
        offline: for sets that are not on this machine: True takes what was fetched before and asks
            nobody, None does so only if nobody answers, False never.

    Raises:
        SetNotFoundError: nothing of that name; says where it looked and the nearest names.
        UsageError: an empty name, or an address of a form that is not read.
        AuthError, NetworkError, ConflictError: see `hub.fetch`.
    """
    text = os.fspath(name)
    if not text.strip():
        raise UsageError("the name of the set is empty: give the name of a set or its folder")
    if text.startswith(_HUB_URL):
        return _on_hub(text.removeprefix(_HUB_URL), offline)
    if _SCHEME.match(text):
        from moedd_loaders.shelf import fetch_url

        return Resolved(fetch_url(text, offline=offline), "url", text)
    path = Path(text).expanduser()
    if (path / _MANIFEST).is_file():
        return Resolved(path, "folder", text)
    if path.is_file():
        raise SetNotFoundError(f"{path} is a file, expected the folder that holds {_MANIFEST}")
    if is_slug(text):
        for origin, place in (("home", home() / "sets"), ("bundled", _BUNDLED)):
            if (place / text / _MANIFEST).is_file():
                return Resolved(place / text, origin, text)  # type: ignore[arg-type]
        raise SetNotFoundError(_not_found(text, path))
    if path.is_dir():
        raise SetNotFoundError(
            f"the folder {path} holds no {_MANIFEST}: it is not a set, or its writing was never "
            "finished"
        )
    if not isinstance(name, os.PathLike) and _HUB.fullmatch(text):
        return _on_hub(text, offline)
    if os.sep in text:
        raise SetNotFoundError(f"there is no folder {path}: give a set's folder or its bare name")
    raise SetNotFoundError(_not_found(text, path))


def _on_hub(text: str, offline: bool | None) -> Resolved:
    from moedd_loaders.hub import fetch, require_hub_name

    found = fetch(require_hub_name(text), offline=offline)
    return Resolved(found.folder, "hub", text, found.commit)


def _not_found(text: str, path: Path) -> str:
    known = known_names()
    close = nearest(text, known)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif known:
        hint = f"known sets: {', '.join(known)}"
    else:
        hint = "there are no sets yet: `moedd distill` makes one"
    here = f"the folder ./{text}" + (
        f" (exists, but holds no {_MANIFEST})" if path.is_dir() else ""
    )
    return f"no set '{text}' in {here}, {home() / 'sets'} or the bundled sets; {hint}"


def _sets_in(folder: Path) -> list[str]:
    return sorted(manifest.parent.name for manifest in folder.glob(f"*/{_MANIFEST}"))
