"""A loopback HTTP server that answers range requests, keeps a log of them, and can fail."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer:
    """Files of a folder over HTTP.

    Attributes:
        url: its address.
        log: (method, path, first byte, byte after the last) of every request; -1 without a range.
        faults: statuses to answer the next requests with, instead of the file.
        ranges: False ignores range requests, as plain servers do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[tuple[str, str, int, int]] = []
        self.faults: list[int] = []
        self.ranges = True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def parts(self, suffix: str) -> list[tuple[int, int]]:
        """Ranges asked of files whose path ends so."""
        return [
            (a, b) for method, path, a, b in self.log if method == "GET" and path.endswith(suffix)
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(send=False)

            def do_GET(self) -> None:
                self._answer(send=True)

            def _answer(self, send: bool) -> None:
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (-1, -1)
                outer.log.append((self.command, self.path, start, end))
                path = outer.folder / self.path.lstrip("/")
                if send and outer.faults:
                    return self._reply(outer.faults.pop(0), b"", 0)
                if not path.is_file():
                    return self._reply(404, b"", 0)
                data = path.read_bytes()
                if asked and outer.ranges:
                    return self._reply(206, data[start:end] if send else b"", len(data[start:end]))
                return self._reply(200, data if send else b"", len(data))

            def _reply(self, status: int, data: bytes, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                if outer.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """A server of `folder` on a thread of its own."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()
