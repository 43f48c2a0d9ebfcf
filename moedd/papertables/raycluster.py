"""The Ray that cells run on: one that is there, by address or on this machine, or one started here
for this run alone and ended with it. `ray` is imported by these files only, when it is asked for.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moedd_loaders.errors import NetworkError, UsageError

AUTO, LOCAL = "auto", "local"
INSTALL = 'pip install "moedd[ray]"'
REACH_SECONDS = 10.0
_OBJECTS = 100 * 2**20  # bytes of shared memory: records are small, 75 MiB is Ray's least
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_TOKEN = secrets.token_hex(32)  # one per process: Ray reads it once
_SHORT = 40  # letters of a folder in which the names of Ray's sockets still fit


@dataclass(frozen=True)
class Machine:
    """What one machine of a cluster offers."""

    cpus: float
    gpus: float

    def cells(self, threads: int, share: float) -> int:
        """How many cells of so many threads and so much of a GPU it holds."""
        by_cpu = int(self.cpus // threads)
        return min(by_cpu, self.cells_by_gpu(share)) if share else by_cpu

    def cells_by_gpu(self, share: float) -> int:
        """How many parts of its GPUs there are, of which none spans two."""
        if share >= 1:
            return int(self.gpus / share)
        return int(self.gpus) * int(1 / share + 1e-6)


@dataclass(frozen=True)
class Where:
    """Which Ray is meant: `address` None starts one here; `named` says by what it was named;
    `here`: `ray start` left it running on this machine."""

    address: str | None
    named: str | None = None
    here: bool = False


def is_installed() -> bool:
    """Ray can be imported. (It is not imported yet: see `joined`.)"""
    try:
        return find_spec("ray") is not None
    except ValueError:
        return False


def where(asked: str) -> Where:
    """What `--ray` means: `auto` is RAY_ADDRESS, else a Ray that runs on this machine (`ray start`)
    or else one of our own; `local` is one of our own; other words are HOST:PORT.

    Raises UsageError: no address. NetworkError: nothing answers where one was named.
    """
    named = f"--ray {asked}"
    if asked == AUTO and os.environ.get("RAY_ADDRESS"):
        asked = os.environ["RAY_ADDRESS"]
        named = f"RAY_ADDRESS={asked}"
    if asked == LOCAL:
        return Where(None)
    if asked != AUTO:
        _reach(asked, named)
        return Where(asked, named)
    running = _running_here()
    if running is None:
        return Where(None)
    return Where(running, f"the Ray of this machine, {running},", here=True)


def _running_here() -> str | None:
    """The address that the last `ray start` left on this machine, if something answers there."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
        _reach(address, address)
    except (OSError, UsageError):  # NetworkError is an OSError
        return None
    return address


def _reach(address: str, named: str) -> None:
    """Something answers there: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(
            f"{named} given; expected HOST:PORT of a Ray cluster, such as 10.0.0.1:6379, or nothing"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS) as answered:
            speaks = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_grpc(answered)
    except OSError as error:
        raise NetworkError(
            f"{named} cannot be reached ({error}): look whether Ray runs there (ray status) and "
            "whether this machine may connect to it, or leave the address out"
        ) from error
    if not speaks:
        raise NetworkError(
            f"{named} answers and is no Ray: give the port of Ray's head, 6379 where no other was "
            "chosen (the dashboard's is 8265)"
        )


def _speaks_grpc(server: socket.socket) -> bool:
    """It answers HTTP/2's greeting (RFC 9113, 3.4) as it must, with a frame of settings (4)."""
    server.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = b""
    while len(head) < 9 and (more := server.recv(9 - len(head))):
        head += more
    return len(head) == 9 and head[3] == 4


@contextmanager
def joined(at: Where, cpus: int) -> Iterator[None]:
    """Ray can be used in this block; `cpus` are those of one that is started here.

    A Ray that was started here is ended, another one is left, with none of this run's tasks in it.
    Raises NetworkError: what answers there is no Ray that can be joined.
    """
    before, theirs = _settings(), True
    folder = _scratch() if at.address is None else None
    try:
        if folder is not None:
            # Nobody else is to reach it; the first is read when Ray is first imported.
            os.environ[_LOOPBACK] = "0"
            os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)  # else Ray writes one to ~/.ray
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        theirs = ray.is_initialized()  # by the program that called us
        # Ray writes news of its workers to standard output, where only tables belong.
        with redirect_stdout(_Nowhere()):
            if not theirs:
                _begin(at, folder, cpus)
            with _ended_by_sigterm():
                yield
    finally:
        if not theirs:
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for name in _settings():
            del os.environ[name]
        os.environ.update(before)


def _begin(at: Where, folder: str | None, cpus: int) -> None:
    """Start a Ray in `folder`, or join the one that is there."""
    if folder is None:
        _join(at)
        return
    _init(
        address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECTS,
        _temp_dir=folder,
    )  # fmt: skip


def _settings() -> dict[str, str]:
    """Variables of Ray's, some of which it sets itself."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def machines() -> list[Machine]:
    """The machines of the joined cluster that are alive."""
    import ray

    offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in offered]


def _join(at: Where) -> None:
    try:
        with _hushed():
            # Not by its address: Ray then also takes the token that `ray start` has left.
            _init(address=None if at.here else at.address)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
        raise NetworkError(
            f"{at.named} answers and cannot be joined ({reason[:1].lower()}{reason[1:]}): look "
            "whether Ray and Python have the same version there and here, and whether it wants a "
            "token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN), or give --ray local to start one here"
        ) from error


def _init(**given: Any) -> None:
    import ray

    ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **given)


def _scratch() -> str:
    """A new folder whose name is short enough for sockets in it."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="moedd-ray-", dir=usual if len(usual) < _SHORT else "/tmp")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C, in place of the traces that Ray's own handler prints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Nowhere:
    """A standard output that nobody reads."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@contextmanager
def _hushed() -> Iterator[None]:
    """What Ray's C++ part writes to standard error in this block is not seen."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
