"""Which errors of the Hub's client are the network's, and which are not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hubfactories
import pytest
from hub_server import HubServer
from huggingface_hub.errors import FileMetadataError
from runfactories import cli

from moedd_loaders.errors import AuthError, DiskFullError, InvalidSetError, NetworkError
from moedd_publish.huberrors import publishing_error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("reset"), NetworkError),
        (TimeoutError("late"), NetworkError),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), NetworkError),
        (FileMetadataError("no commit header"), NetworkError),
        (ValueError("preupload_info is improperly formatted"), NetworkError),
        (ValueError("LFS batch API returned errors:\nfull"), NetworkError),
        (
            OSError("Consistency check failed: file should be of size 2 but has size 1"),
            NetworkError,
        ),
        (RuntimeError("Data processing error: CAS service error : Reqwest Error"), NetworkError),
        (caused(RuntimeError("Error while uploading"), ConnectionError("gone")), NetworkError),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), AuthError),
        (caused(RuntimeError("Error while uploading"), OSError(errno.ENOSPC, "")), DiskFullError),
        (ValueError("Invalid metadata in README.md"), InvalidSetError),
        (ValueError("invalid literal for int() with base 10: 'a'"), None),
        (RuntimeError("dictionary changed size during iteration"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "/gone"), None),
        (KeyError("name"), None),
    ],
    ids=lambda value: "".join(c for c in str(value)[:40] if c.isalnum()),
)
def test_kinds(error: Exception, kind: type[Exception] | None) -> None:
    found = publishing_error(error, "uploading to a/b", "a/b", None)
    assert type(found) is kind if kind else found is error


@pytest.mark.parametrize("mistake", [ValueError, RuntimeError, OSError])
def test_a_mistake_of_ours_is_not_the_network(
    mistake: Callable[[str], Exception],
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise mistake("a mistake of ours")

    hubfactories.make_set(tmp_path / "toy")
    monkeypatch.setattr("huggingface_hub.HfApi.preupload_lfs_files", broken)
    with pytest.raises(type(mistake("")), match="a mistake of ours"):
        cli("push-to-hub", tmp_path / "toy", "someone/toy")
