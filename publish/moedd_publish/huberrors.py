"""Errors met while publishing on the Hub, told apart: the network's, the person's, and faults."""

from __future__ import annotations

import errno
import re

from moedd_loaders.errors import InvalidSetError, MoeddError, NetworkError, from_oserror
from moedd_loaders.hubclient import explain, masked

__all__ = ["publishing_error"]

_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_ANSWERS = re.compile(
    "improperly formatted|Malformed response|Invalid server response|Invalid etag|"
    "batch API returned errors|Consistency check failed|CAS service|[Rr]eqwest"
)
"""What huggingface_hub, and the Xet client under it, say of answers that they cannot use. They
raise plain ValueError, RuntimeError and OSError there, as for faults that are not the network's."""


def publishing_error(error: Exception, doing: str, repo_id: str, endpoint: str | None) -> Exception:
    """What to raise for an error met while `doing`; the error itself if it is a fault inside."""
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    found = explain(error, doing, repo_id, endpoint, writing=True)
    if found is not None:
        return found
    said = " ".join(masked(str(error)).split()).rstrip(".")[:200]
    if isinstance(error, ValueError) and "README.md" in said:
        return InvalidSetError(f"the Hub refuses the card of {repo_id}: {said}")
    chain = _chain(error)
    lost = (ConnectionError, TimeoutError, FileMetadataError, LocalEntryNotFoundError)
    for at in chain:
        unreachable = isinstance(at, OSError) and at.errno in _UNREACHABLE
        if isinstance(at, lost) or unreachable or _ANSWERS.search(str(at)):
            return NetworkError(f"{doing} failed ({said}): run it again")
    for at in chain:
        if isinstance(at, OSError) and isinstance(known := from_oserror(at, doing), MoeddError):
            return known
    return error


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__
    return found
