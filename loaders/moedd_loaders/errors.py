"""Errors that people see: one sentence saying what was given, what was expected, what to do.

Every class carries the exit code of the command line: 1 a fault, 2 wrong use or wrong input data,
3 authentication, 4 conflict, 5 a set that is not valid, 6 network. Each one also is the built-in
exception that a Python caller would catch, so `except FileNotFoundError` keeps working.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AuthError",
    "ConflictError",
    "DataError",
    "DiskFullError",
    "DivergedError",
    "InvalidSetError",
    "MoeddError",
    "NetworkError",
    "NonFiniteError",
    "SetNotFoundError",
    "UsageError",
    "from_oserror",
    "nearest",
    "unknown",
]


class MoeddWarning(UserWarning):
    """Something goes on in a lesser way; the command line shows it in one line."""


class MoeddError(Exception):
    """Base of all errors with a message written for the user."""

    exit_code: ClassVar[int] = 1


class UsageError(MoeddError, ValueError):
    """Wrong use: an argument or a name that cannot be accepted."""

    exit_code: ClassVar[int] = 2


class SetNotFoundError(UsageError, FileNotFoundError):
    """No set of that name in any of the places looked in."""

    exit_code: ClassVar[int] = 2


class DataError(UsageError):
    """Wrong input data: missing, empty, undecodable, or of another shape than declared."""

    exit_code: ClassVar[int] = 2


class AuthError(MoeddError, PermissionError):
    """Authentication or permission is missing."""

    exit_code: ClassVar[int] = 3


class ConflictError(MoeddError, FileExistsError):
    """Something already exists, or was changed by somebody else in between."""

    exit_code: ClassVar[int] = 4


class InvalidSetError(MoeddError, ValueError):
    """A set that is damaged, edited, incomplete or of a newer format."""

    exit_code: ClassVar[int] = 5


class NetworkError(MoeddError, ConnectionError):
    """The network or a server did not answer as needed."""

    exit_code: ClassVar[int] = 6


class DiskFullError(MoeddError, OSError):
    """The disk filled up while writing; nothing half-written was left."""

    exit_code: ClassVar[int] = 1


class NonFiniteError(MoeddError, FloatingPointError):
    """NaN or infinity appeared where only finite numbers make sense."""

    exit_code: ClassVar[int] = 1


class DivergedError(MoeddError, ArithmeticError):
    """Numbers that are finite still, and so large that they mean nothing."""

    exit_code: ClassVar[int] = 1


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The at most `n` names of `known` that look like `word`, best first."""
    names = list(dict.fromkeys(known))
    lowered: dict[str, str] = {}
    for name in names:
        lowered.setdefault(name.lower(), name)
    found = difflib.get_close_matches(word.lower(), list(lowered), n=n, cutoff=0.5)
    return [lowered[name] for name in found]


def unknown(kind: str, given: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: lists the known ones and the closest."""
    names = sorted(set(known))
    close = nearest(given, names, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    listed = ", ".join(names) if names else "none"
    return UsageError(f"unknown {kind} '{given}'; known: {listed}{hint}")


def from_oserror(error: OSError, doing: str) -> Exception:
    """What to raise for an operating-system error met while `doing` ("writing the set x").

    A full disk, a missing permission and a file where a folder was expected become sentences; any
    other error is returned as it is.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"the disk is full while {doing}: nothing half-written was left; "
            "free some space or choose another place, then run it again"
        )
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AuthError(f"no permission while {doing}{where}: choose a place you may write to")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return UsageError(f"{error.strerror} while {doing}{where}: choose another place")
    return error
