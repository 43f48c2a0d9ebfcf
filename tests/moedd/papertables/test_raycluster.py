"""Which Ray is meant, and what its machines hold."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moedd.papertables.raycluster import Machine, Where, where
from moedd_loaders.errors import NetworkError, UsageError


class Server(threading.Thread):
    """Says these bytes to whoever connects."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(daemon=True)
        self.socket, self.answer = socket.create_server(("127.0.0.1", 0)), answer
        self.port = int(self.socket.getsockname()[1])

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(self.answer)


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine at which something speaks HTTP/2."""
    server = Server(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]))
    server.start()
    yield server.port
    server.socket.close()


@pytest.fixture
def closed() -> int:
    """A port at which nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which no Ray runs; the file in which `ray start` leaves its address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_where_nothing_is_named_and_nothing_runs_one_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert where("auto") == Where(None)
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert where("auto") == Where(None)


def test_the_ray_of_this_machine_is_taken(machine: Path, port: int, closed: int) -> None:
    machine.write_text(f"127.0.0.1:{port}\n")
    address = f"127.0.0.1:{port}"
    assert where("auto") == Where(address, f"the Ray of this machine, {address},", here=True)
    assert where("local") == Where(None)
    machine.write_text(f"127.0.0.1:{closed}\n")  # left by one that is gone
    assert where("auto") == Where(None)


def test_an_address_is_taken_and_goes_before_the_variable(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"localhost:{port}"
    assert where(address) == Where(address, f"--ray {address}")
    assert where(f"ray://{address}").address == f"ray://{address}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert where("auto") == Where(address, f"RAY_ADDRESS={address}")
    assert where("local") == Where(None)
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4")
    assert where(address).address == address


def test_nothing_answers(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match=f"--ray 127.0.0.1:{closed} cannot be reached"):
        where(f"127.0.0.1:{closed}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed}")
    with pytest.raises(NetworkError, match="RAY_ADDRESS=127"):
        where("auto")


def test_what_answers_is_no_ray() -> None:
    """Such as the dashboard: Ray itself would go on trying for minutes."""
    for answer in (b"HTTP/1.0 400 Bad Request\r\n\r\n", b""):
        server = Server(answer)
        server.start()
        with pytest.raises(NetworkError, match="answers and is no Ray: give the port of"):
            where(f"127.0.0.1:{server.port}")
        server.socket.close()


@pytest.mark.parametrize("address", ["rubbish", "host:", ":6379", "host:port", "host:99999", ""])
def test_no_address(address: str) -> None:
    with pytest.raises(UsageError, match=r"expected HOST:PORT"):
        where(address)


@pytest.mark.parametrize(
    ("machine", "threads", "share", "cells"),
    [
        (Machine(8, 0), 2, 0.0, 4),
        (Machine(8, 0), 3, 0.0, 2),
        (Machine(8, 2), 1, 1.0, 2),
        (Machine(8, 2), 1, 0.5, 4),
        (Machine(8, 2), 4, 0.5, 2),
        (Machine(8, 2), 1, 0.4, 4),  # a fifth one would span both GPUs
        (Machine(8, 8), 1, 2.0, 4),
        (Machine(9, 1), 1, 0.1, 9),
        (Machine(99, 3), 1, 0.1, 30),  # ten tenths fit, whatever floats say
        (Machine(8, 0), 1, 1.0, 0),
        (Machine(0, 0), 1, 0.0, 0),
    ],
)
def test_how_many_cells_a_machine_holds(
    machine: Machine, threads: int, share: float, cells: int
) -> None:
    assert machine.cells(threads, share) == cells
