"""Sets on other shelves: `s3://...`, `gs://...`, `file://...` and whatever else fsspec reads.

The manifest is read each time; tensors are kept under `$MOEDD_HOME/shelf` by their hash, so that
what was fetched once is not fetched again, and is found without a network.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

from moedd_loaders.entries import check_entries
from moedd_loaders.errors import (
    AuthError,
    InvalidSetError,
    MoeddError,
    MoeddWarning,
    NetworkError,
    SetNotFoundError,
    UsageError,
    from_oserror,
)
from moedd_loaders.files import put
from moedd_loaders.manifest import MANIFEST, parse_manifest, tensor_files

__all__ = ["explain_shelf", "fetch_url", "open_shelf", "plain_url", "shelf_folder"]

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def open_shelf(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it, without a slash at the end.

    Raises:
        UsageError: no such protocol, or the package that speaks it is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        scheme = url.split("://")[0]
        needed = _EXTRAS.get(scheme)
        extra = (
            f": pip install moedd[{needed}]" if needed and isinstance(error, ImportError) else ""
        )
        raise UsageError(f"{scheme}:// addresses cannot be read here ({error}){extra}") from None
    return system, path


def plain_url(url: str) -> str:
    """A URL without the name and password that may stand in it, as it may be shown."""
    # A password may hold what should be escaped there: "@", even "/". HOST:PORT/ is no password.
    return re.sub(r"://(?:[^/\s]*|[^/\s:@]*:(?!\d*(?:/|\s|$))\S*)@", "://", url)


def fetch_url(url: str, *, offline: bool | None = None) -> Path:
    """The set at a URL as a folder on this machine: manifest and tensors.

    Args:
        offline: True: what was fetched before, asking nobody. None: that only if the shelf cannot
            be reached, with a warning. False: never.

    Raises:
        SetNotFoundError: no manifest there. AuthError, NetworkError: not allowed, not reached.
        InvalidSetError: a manifest that is none.
    """
    place, shown = shelf_folder(url), plain_url(url)
    known = _known(place)
    if offline:
        if known is None:
            raise NetworkError(f"{shown} was not fetched before and you asked for offline use")
        return known
    system, path = open_shelf(url)
    try:
        described = system.cat_file(f"{path}/{MANIFEST}")
    except Exception as error:
        found = explain_shelf(error, url, f"reading {shown}")
        if isinstance(found, NetworkError) and offline is None and known is not None:
            warnings.warn(f"{found}; using the copy fetched before", MoeddWarning, stacklevel=3)
            return known
        raise found from None
    return _copy(system, path, url, place, described)


def shelf_folder(url: str) -> Path:
    """Where copies of what is at a URL are kept."""
    from moedd_loaders.resolve import home

    name = re.sub(r"[^a-z0-9]+", "-", plain_url(url).lower()).strip("-")[-40:]
    return home() / "shelf" / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def explain_shelf(error: Exception, url: str, doing: str) -> Exception:
    """The sentence for an error of a shelf; secrets do not stand in those of fsspec."""
    if isinstance(error, MoeddError):
        return error
    said = plain_url(" ".join(str(error).split()).rstrip("."))[:200]
    local, url = url.startswith("file:"), plain_url(url)
    if isinstance(error, FileNotFoundError):
        return SetNotFoundError(
            f"there is no set at {url} (no {MANIFEST}): check the address, or publish one there "
            f"with `moedd push`"
        )
    name = type(error).__name__
    if isinstance(error, PermissionError) or "Credential" in name:
        return AuthError(
            f"{url} may not be used while {doing} ({said}): check the credentials of the shelf"
        )
    if isinstance(error, OSError) and error.errno and local:
        return from_oserror(error, doing)
    if isinstance(error, OSError) or "Connect" in name or "Timeout" in name or "Error" in name:
        return NetworkError(f"{doing} failed ({name}: {said}): check the address and the network")
    return error


def _copy(system: Any, path: str, url: str, place: Path, described: bytes) -> Path:
    """The set of this manifest in a folder of its own; `current` names the newest one."""
    shown = plain_url(url)
    manifest = parse_manifest(described, f"{shown}/{MANIFEST}")
    check_entries(f"{shown}/{MANIFEST}", manifest)  # before anything large is fetched
    folder = place / hashlib.sha256(described).hexdigest()[:16]
    try:
        if not (folder / MANIFEST).is_file():
            for name in tensor_files(manifest):
                data = system.cat_file(f"{path}/{name}")
                if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
                    raise InvalidSetError(
                        f"{shown}/{name} is not the file of its manifest (sha256 differs): it was "
                        "damaged, or is being replaced just now"
                    )
                put(folder / name, data)
            put(folder / MANIFEST, described)
        put(place / "current", folder.name.encode())
    except Exception as error:
        raise explain_shelf(error, url, f"fetching {shown}") from None
    return folder


def _known(place: Path) -> Path | None:
    try:
        folder = place / (place / "current").read_text()
    except OSError:
        return None
    return folder if (folder / MANIFEST).is_file() else None
