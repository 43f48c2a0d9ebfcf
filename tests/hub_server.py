"""A Hub on the loopback, for the real clients: the HTTP side of `hub_store.Store`.

with HubServer() as hub:
    hub.url                      # what HF_ENDPOINT must be
    hub.faults.add("commit", "503", times=2)
    hub.log                      # every request, in order

As strict as the real one where a mistake of ours could hide: illegal names, unknown LFS objects, a
wrong parent commit, missing or read-only tokens, invalid card YAML are refused with the status and
the error code that the clients know.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hub_routes
from hub_faults import Asked, Fault, Faults, answer
from hub_store import Refused, Store

STALL = 0.3  # seconds that a slow body stalls


class HubServer:
    """The server; `store` is what it remembers, `log` what it was asked, `faults` what goes wrong.

    `listener` is a bound socket to serve on (a fresh port by default). `after` is called after
    every request.
    """

    def __init__(self, listener: socket.socket | None = None) -> None:
        self.socket = listener or bound_socket()
        self.store = Store()
        self.faults = Faults()
        self.log: list[Asked] = []
        self.after: Callable[[Asked], None] | None = None
        self.stall = STALL
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in threads of its own, until `stop`."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(
            self.socket.getsockname(), handler, bind_and_activate=False
        )
        self._server.socket.close()
        self._server.socket = self.socket
        self._server.server_address = self.socket.getsockname()
        self._server.daemon_threads = True
        self.socket.listen(64)
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        """No longer answer; the port is free afterwards."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reset(self) -> None:
        """Forget everything, faults too."""
        self.store, self.log, self.after = Store(), [], None
        self.stall = STALL
        self.faults.clear()

    def asked(self, *methods: str) -> list[Asked]:
        """The log, of these methods only."""
        return [asked for asked in self.log if not methods or asked.method in methods]

    def note(self, asked: Asked) -> None:
        with self._lock:
            self.log.append(asked)
        if self.after is not None:
            self.after(asked)


def bound_socket() -> socket.socket:
    """A socket on a free port of the loopback that does not listen yet: until a server does,
    connections are refused."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    return made


class Request:
    """What a route sees: the parsed path, the query, the body, who asks."""

    def __init__(self, handler: _Handler, body: bytes) -> None:
        split = urlsplit(handler.path)
        # Segments are unquoted one by one: a revision may hold an escaped slash.
        self.parts = [unquote(part) for part in split.path.split("/") if part]
        self.query = parse_qs(split.query)
        self.method = handler.command
        self.headers = handler.headers
        self.body = body
        self.hub = handler.hub
        self.store = handler.hub.store
        header = handler.headers.get("Authorization")
        self.token = header.removeprefix("Bearer ") if header else None

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except json.JSONDecodeError:
            raise Refused(400, "the body is not JSON") from None

    def flag(self, key: str) -> bool:
        return self.query.get(key, [""])[0].lower() in ("1", "true")


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body of an answer are 40 ms apart

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may hang up at any time
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        route = hub_routes.name_of(self.command, urlsplit(self.path).path)
        fault = self.hub.faults.strike(route)
        if fault is not None and fault.kind == "truncate" and self.command in ("PUT", "POST"):
            self._read_body(half=True)
            return self._hang_up(route, fault)
        body = self._read_body()
        if fault is not None and fault.kind in ("drop", "truncate"):
            return self._hang_up(route, fault)
        request = Request(self, body)
        status, headers, data = 500, {}, b""
        if fault is not None and fault.kind.isdigit():
            status, message, code, said = answer(fault, self.headers.get("Authorization"))
            headers, data = _error(Refused(status, message, code, error=said))
        else:
            try:
                status, headers, data = hub_routes.serve(route, request)
            except Refused as refused:
                status = refused.status
                headers, data = _error(refused)
        if fault is not None and fault.kind == "lost":
            return self._hang_up(route, fault)
        self._note(route, status, request.token, fault, body)
        self._answer(status, headers, data, slow=fault is not None and fault.kind == "slow")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def _read_body(self, half: bool = False) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    return data[: len(data) // 2]
            self.rfile.readline()
            return data
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def _hang_up(self, route: str, fault: Fault) -> None:
        self._note(route, 0, self.headers.get("Authorization"), fault, b"")
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _note(
        self, route: str, status: int, token: str | None, fault: Fault | None, body: bytes
    ) -> None:
        kind = fault.kind if fault else None
        self.hub.note(Asked(self.command, route, self.path, status, token, kind, body[:4096]))

    def _answer(self, status: int, headers: dict[str, str], data: bytes, slow: bool) -> None:
        self.send_response(status)
        bare = self.command == "HEAD" or not data
        if slow and bare:
            self.flush_headers()
            time.sleep(self.hub.stall)
        self.send_header("Content-Length", headers.pop("Content-Length", str(len(data))))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if bare or status == 304:
            return
        if slow:
            middle = len(data) // 2
            self.wfile.write(data[:middle])
            self.wfile.flush()
            time.sleep(self.hub.stall)
            data = data[middle:]
        self.wfile.write(data)


def _error(refused: Refused) -> tuple[dict[str, str], bytes]:
    body = {"error": refused.message, **refused.body}
    headers = {
        "Content-Type": "application/json",
        "X-Error-Message": re.sub(r"[^\x20-\x7e]", "?", refused.message),
    }
    if refused.code:
        headers["X-Error-Code"] = refused.code
    return headers, json.dumps(body).encode()
