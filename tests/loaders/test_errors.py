from __future__ import annotations

import errno
import pickle

import pytest

from moedd_loaders import errors


@pytest.mark.parametrize(
    ("kind", "code", "builtin"),
    [
        (errors.MoeddError, 1, Exception),
        (errors.UsageError, 2, ValueError),
        (errors.SetNotFoundError, 2, FileNotFoundError),
        (errors.DataError, 2, ValueError),
        (errors.AuthError, 3, PermissionError),
        (errors.ConflictError, 4, FileExistsError),
        (errors.InvalidSetError, 5, ValueError),
        (errors.NetworkError, 6, ConnectionError),
        (errors.DiskFullError, 1, OSError),
        (errors.NonFiniteError, 1, FloatingPointError),
    ],
)
def test_every_error_has_its_exit_code_and_keeps_its_text(
    kind: type[errors.MoeddError], code: int, builtin: type[Exception]
) -> None:
    error = kind("one sentence")
    assert error.exit_code == code
    assert isinstance(error, builtin)
    # Errors cross process borders (data loader workers), so they must survive pickling.
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "one sentence"


def test_nearest_and_unknown() -> None:
    known = ["convnet3", "resnet18", "VGG11"]
    assert errors.nearest("vgg1", known) == ["VGG11"]
    assert errors.nearest("zzzz", known) == []
    text = str(errors.unknown("network", "convnet", known))
    assert text == (
        "unknown network 'convnet'; known: VGG11, convnet3, resnet18 (did you mean 'convnet3'?)"
    )


def test_operating_system_errors_become_sentences() -> None:
    full = errors.from_oserror(OSError(errno.ENOSPC, "No space left"), "writing x")
    assert isinstance(full, errors.DiskFullError)
    denied = errors.from_oserror(PermissionError(errno.EACCES, "no", "/root/x"), "writing x")
    assert isinstance(denied, errors.AuthError)
    assert "/root/x" in str(denied)
    other = OSError(errno.EIO, "broken disk")
    assert errors.from_oserror(other, "writing x") is other
