"""Faults that a test injects into the Hub: at which request, of which kind, how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

STATUSES = (401, 403, 404, 409, 412, 429, 500, 503)
KINDS = (*map(str, STATUSES), "drop", "slow", "truncate", "lost")
"""A status is answered instead of the request's own answer; `drop` closes the connection before
anything is done; `slow` stalls in the middle of the body (of the head, where there is no body);
`truncate` takes half of an upload and closes the connection; `lost` does all that was asked for and
closes without an answer."""

_CODES = {401: None, 403: None, 404: "RepoNotFound"}


@dataclass
class Fault:
    """One fault: it hits requests of `route` from the `after`-th on, at most `times` (None: all).

    `echo` puts the caller's Authorization header into the answer's body.
    """

    route: str
    kind: str
    times: int | None = 1
    after: int = 0
    echo: bool = False
    hits: int = field(default=0, init=False)
    seen: int = field(default=0, init=False)


@dataclass(frozen=True)
class Asked:
    """One line of the server's log."""

    method: str
    route: str
    path: str
    status: int
    token: str | None
    fault: str | None = None
    body: bytes = b""


class Faults:
    """The faults in force; asked once per request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.active: list[Fault] = []

    def add(self, route: str, kind: str, times: int | None = 1, **more: object) -> Fault:
        """Inject a fault; it stays until it has hit `times` times, or `clear`."""
        assert kind in KINDS, kind
        fault = Fault(route, kind, times, **more)  # type: ignore[arg-type]
        with self._lock:
            self.active.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self.active.clear()

    def strike(self, route: str) -> Fault | None:
        """The fault that this request meets."""
        with self._lock:
            for fault in self.active:
                if fault.route not in (route, "*"):
                    continue
                fault.seen += 1
                if fault.seen <= fault.after:
                    continue
                if fault.times is None or fault.hits < fault.times:
                    fault.hits += 1
                    return fault
        return None


def answer(fault: Fault, authorization: str | None) -> tuple[int, str, str | None, str]:
    """Status, message, error code, and what else the body says, of a fault that is a status."""
    status = int(fault.kind)
    message = (
        "Invalid credentials in Authorization header" if status == 401 else f"injected {status}"
    )
    echo = f" (you sent: {authorization})" if fault.echo else ""
    return status, message, _CODES.get(status), message + echo
