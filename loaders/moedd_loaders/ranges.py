"""Byte ranges of files in a folder or behind an address: all that reading a set in pieces needs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from moedd_loaders.errors import AuthError, InvalidSetError, NetworkError, UsageError

__all__ = ["ByteRanges", "LocalRanges", "Part", "RemoteRanges"]

Part = tuple[str, int, int]
"""A file's name inside the set, first byte, byte after the last."""

T = TypeVar("T")

_PAUSES = (0.5, 1.0, 2.0)
_AT_ONCE = 16


class ByteRanges(Protocol):
    """A set's files; survives fork and pickling (each process opens for itself)."""

    remote: bool

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """The bytes of each part, exactly as many as asked for. Raises FileNotFoundError."""

    def fetch(self, name: str) -> bytes:
        """A whole, small file.

        Raises:
            FileNotFoundError: there is none.
        """

    def size(self, name: str) -> int:
        """Bytes in a file, -1 if it is not told. Raises FileNotFoundError."""

    def where(self, name: str) -> str:
        """Path or address of a file, for messages."""


class LocalRanges:
    """Files under a folder."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, int] = {}

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        found = []
        for name, start, end in parts:
            data = os.pread(self._descriptor(name), end - start, start)
            if len(data) != end - start:
                raise InvalidSetError(
                    f"{self.where(name)} ends before byte {end}: it was truncated; fetch or make "
                    "the set again"
                )
            found.append(data)
        return found

    def fetch(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self.folder / name, os.O_RDONLY)
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)


class RemoteRanges:
    """Files under an address that fsspec knows (https, s3, hf, ...), by HTTP range requests.

    Passing faults are tried again, three times.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._files: Any = None
        self._process = 0

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        files = self._opened()
        paths = [self._path(name) for name, _, _ in parts]
        starts, ends = [start for _, start, _ in parts], [end for _, _, end in parts]
        if getattr(files, "async_impl", False):
            found: list[Any] = self._try(
                lambda: files.cat_ranges(paths, starts, ends, on_error="return"), parts[0][0]
            )
        else:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = list(pool.map(self._one, parts))
        for i, part in enumerate(parts):
            if isinstance(found[i], BaseException):
                found[i] = self._one(part)
            self._check_length(part, found[i])
        return found

    def fetch(self, name: str) -> bytes:
        return self._try(lambda: self._opened().cat_file(self._path(name)), name)

    def size(self, name: str) -> int:
        told = self._try(lambda: self._opened().info(self._path(name)), name).get("size")
        return -1 if told is None else int(told)

    def where(self, name: str) -> str:
        return f"{_public(self.address)}/{name}"

    def _one(self, part: Part) -> bytes:
        name, start, end = part
        return self._try(
            lambda: self._opened().cat_file(self._path(name), start=start, end=end), name
        )

    def _check_length(self, part: Part, data: bytes) -> None:
        name, start, end = part
        if len(data) > end - start:
            raise NetworkError(
                f"{self.where(name)} came whole where {end - start} bytes were asked for: this "
                "server does not answer range requests; download the set and load its folder"
            )
        if len(data) < end - start:
            raise InvalidSetError(f"{self.where(name)} ends before byte {end}: it was truncated")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _opened(self) -> Any:
        # Filesystems keep threads and connections, which do not survive a fork.
        if self._files is None or self._process != os.getpid():
            try:
                from fsspec.core import url_to_fs

                self._files, self._root = url_to_fs(self.address)
            except (ImportError, ValueError) as error:
                raise UsageError(
                    f"'{_public(self.address)}' cannot be read here: {error}: give an https "
                    "address, or "
                    "download the set and load its folder"
                ) from None
            self._root = self._root.rstrip("/")
            self._process = os.getpid()
        return self._files

    def _try(self, call: Callable[[], T], name: str) -> T:
        self._opened()
        for pause in (*_PAUSES, None):
            try:
                return call()
            except FileNotFoundError:
                raise
            except Exception as error:  # every client has exceptions of its own
                status = getattr(error, "status", None)
                if status in (401, 403) or isinstance(error, PermissionError):
                    raise AuthError(
                        f"{self.where(name)} is not yours to read ({_public(str(error))}): log "
                        "in, or ask for access"
                    ) from None
                if pause is None or (status is not None and status < 500 and status != 429):
                    reason = _public(str(error)) or type(error).__name__
                    raise NetworkError(
                        f"{self.where(name)} could not be read: {reason}: check the network, or "
                        "download the set and load its folder"
                    ) from None
                time.sleep(pause)
        raise AssertionError("unreachable")

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "_files": None, "_process": 0}


def _public(text: str) -> str:
    """Without the name and password that addresses in it may carry, on one line."""
    return re.sub(r"://[^/@\s]*@", "://", " ".join(text.split()))
