"""Talking to the Hub: patience, retries, and errors in one sentence that never show a token.

`huggingface_hub` is imported inside the functions: finding and reading sets on this machine must
not cost its import.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    InvalidSetError,
    MoeddError,
    NetworkError,
    SetNotFoundError,
    UsageError,
)

__all__ = ["endpoint_url", "explain", "is_transient", "masked", "patient", "retried", "status_of"]

_T = TypeVar("_T")

CONNECT_SECONDS = 10.0
READ_SECONDS = 120.0
TRIES = 4
_TRANSIENT = frozenset((408, 429, 500, 502, 503, 504))
_LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"


def endpoint_url(endpoint: str | None = None) -> str:
    """The Hub that is asked: the one given, else the one that `HF_ENDPOINT` names."""
    from huggingface_hub import constants

    return (endpoint or constants.ENDPOINT).rstrip("/")


@contextmanager
def patient() -> Iterator[None]:
    """Inside, every request of huggingface_hub has a time limit (many of its own have none)."""
    from huggingface_hub.utils import get_session

    def limit(request: Any) -> None:
        limits = dict(request.extensions.get("timeout") or {})
        for kind in ("connect", "read", "write", "pool"):
            if limits.get(kind) is None:
                limits[kind] = CONNECT_SECONDS if kind == "connect" else READ_SECONDS
        request.extensions["timeout"] = limits

    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "request": [*before.get("request", []), limit]}
    try:
        yield
    finally:
        session.event_hooks = before


def retried(
    call: Callable[[], _T], say: Callable[[str], None] = lambda _: None, tries: int = TRIES
) -> _T:
    """What `call` returns; what may pass by itself (no connection, 429, 5xx) is tried again.

    For requests that huggingface_hub sends only once and that may be sent twice. Waits 1, 2, 4...
    seconds, or as long as the server asks for (at most a minute).
    """
    for attempt in range(1, tries + 1):
        try:
            with patient():
                return call()
        except Exception as error:
            if attempt == tries or not is_transient(error):
                raise
            wait = _wait(error, attempt)
            say(f"the Hub {_trouble(error)}: trying again in {wait:.0f} s ({attempt} of {tries})")
            time.sleep(wait)
    raise AssertionError("unreachable")


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error, or one that caused it, is about."""
    root = _root(error)
    response = getattr(root, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed later: no connection, 408, 429, 5xx."""
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    return _is_transport(_root(error)) or isinstance(_root(error), json.JSONDecodeError)


def masked(text: str) -> str:
    """The text without tokens: neither the one in use nor anything that looks like one."""
    from huggingface_hub import get_token

    with suppress(Exception):  # finding the token may itself need the network
        text = text.replace(get_token() or "\0", "***")
    text = re.sub(r"(Bearer\s+)[^\s\"')]+", r"\1***", text)
    return re.sub(r"\bhf_[A-Za-z0-9]{4,}", "***", text)


def explain(
    error: BaseException,
    doing: str,
    repo_id: str,
    endpoint: str | None = None,
    writing: bool = False,
) -> MoeddError | None:
    """The one sentence for an error met while `doing` ("fetching a/b"); None if it is a fault.

    With `writing`, a repository that is not found is a matter of permission: the Hub hides those
    that a token may not see.

    Raise it `from None`: answers of a server may hold anything, and a traceback would show them.
    """
    from huggingface_hub import errors

    if isinstance(error, MoeddError):
        return error
    root = _root(error)
    url = endpoint_url(endpoint)
    if isinstance(root, errors.HFValidationError):
        return UsageError(
            f"'{repo_id}' is no name of a repository, expected NAMESPACE/NAME of letters, digits, "
            "'-', '_' and '.', at most 96"
        )
    if isinstance(root, errors.LocalTokenNotFoundError):
        return AuthError(f"{doing} needs a Hub account and you are not logged in: {_LOG_IN}")
    if isinstance(root, errors.OfflineModeIsEnabled):
        return NetworkError(f"{doing} needs the network and HF_HUB_OFFLINE is set: unset it")
    status = status_of(root)
    if status is not None:
        return _explain_status(root, status, doing, repo_id, url, writing)
    if "xet" in str(root).lower() and isinstance(root, (ConnectionError, OSError, RuntimeError)):
        return NetworkError(
            f"the Hub's Xet storage cannot be used while {doing}: try again with --no-xet "
            "(HF_HUB_DISABLE_XET=1)"
        )
    if _is_transport(root) or isinstance(root, json.JSONDecodeError):
        return NetworkError(
            f"the Hub at {url} {_trouble(root)} while {doing}: check the network (and HF_ENDPOINT "
            "if you set it), then run it again"
        )
    return None


def _explain_status(
    root: BaseException, status: int, doing: str, repo_id: str, url: str, writing: bool
) -> MoeddError | None:
    from huggingface_hub import errors

    said = _server_says(root)
    if isinstance(root, errors.GatedRepoError):
        return AuthError(
            f"{repo_id} is gated: accept its conditions at {url}/datasets/{repo_id}, {_LOG_IN}, "
            "then run it again"
        )
    if isinstance(root, errors.RevisionNotFoundError):
        return SetNotFoundError(f"{repo_id} has no such revision{said}")
    if status == 401 and not isinstance(root, errors.RepositoryNotFoundError):
        return AuthError(
            f"the Hub does not accept your token while {doing}: log in again with "
            "`hf auth login --force`, or set HF_TOKEN to a valid one"
        )
    if status == 401 or (status == 404 and isinstance(root, errors.RepositoryNotFoundError)):
        hint = _LOG_IN if status == 401 else "check the account you are logged in with"
        missing = (
            f"there is no data set {repo_id} at {url}, or it is private: check the name, {hint}"
        )
        return AuthError(missing) if status == 401 or writing else SetNotFoundError(missing)
    if status in (402, 403):
        return AuthError(
            f"the Hub refuses {doing} ({status}): your token needs the right to write to "
            f"{repo_id.split('/')[0]}{said}"
        )
    if status in (409, 412):
        return ConflictError(
            f"the Hub reports a conflict ({status}) while {doing}: somebody else changed it at the "
            f"same time, so run it again{said}"
        )
    if status == 429:
        return NetworkError(f"the Hub limits requests (429) while {doing}: wait a while{said}")
    if status >= 500 or status == 408:
        return NetworkError(
            f"the Hub has trouble (it answered {status}) while {doing}: run it again later{said}"
        )
    if status == 400 and "README.md" in str(root):
        return InvalidSetError(f"the Hub refuses the card while {doing}{said}")
    return NetworkError(f"{url} answered {status} while {doing}: run it again{said}")


def _root(error: BaseException) -> BaseException:
    """The error that says most: the first in the chain of causes that is the Hub's or the net's."""
    from huggingface_hub.errors import HfHubHTTPError

    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        if isinstance(at, HfHubHTTPError) or _is_transport(at):
            return at
        seen.add(id(at))
        at = at.__cause__
    return error


def _is_transport(error: BaseException) -> bool:
    """No answer at all: refused, dropped, timed out. The HTTP library differs by version."""
    from huggingface_hub.errors import HfHubHTTPError

    library = HfHubHTTPError.__bases__[0]
    return isinstance(error, library) and not hasattr(error, "response")


def _trouble(error: BaseException) -> str:
    status = status_of(error)
    if status is not None:
        return f"answered {status}"
    name = type(_root(error)).__name__
    if "Timeout" in name:
        return "took too long to answer"
    return "cannot be reached" if "Connect" in name else "broke off the connection"


def _wait(error: BaseException, attempt: int) -> float:
    headers = getattr(getattr(_root(error), "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return float(min(60, int(asked))) if str(asked).isdigit() else float(2 ** (attempt - 1))


def _server_says(error: BaseException) -> str:
    """The server's own words, short, in one piece, without tokens; empty if it has none."""
    text = getattr(error, "server_message", None) or ""
    text = " ".join(masked(str(text)).split()).rstrip(".!")
    if not text:
        return ""
    text = re.sub(r"[.!?]+ +", "; ", text)
    return f" (it says: {text[:200]})"
