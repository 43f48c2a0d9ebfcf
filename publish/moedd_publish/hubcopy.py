"""A whole set from the Hub as a folder of its own, checked before it gets its name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from moedd_loaders.errors import ConflictError, MoeddError, from_oserror
from moedd_loaders.files import scratch_name
from moedd_loaders.hub import Fetched, HubName, fetch
from moedd_loaders.validate import validate_set
from moedd_publish.hubrepo import HubRepo

__all__ = ["copy_from_hub"]


def copy_from_hub(name: HubName, target: Path, endpoint: str | None = None) -> Fetched:
    """Every file of the set `name` at one commit, as real files in the new folder `target`.

    Raises:
        ConflictError: `target` exists. InvalidSetError: what arrived is not a valid set (a
        publisher may leave out containers). Besides, see `moedd_loaders.hub.fetch`.
    """
    target = Path(os.path.abspath(target))
    if os.path.lexists(target):
        raise ConflictError(f"{target} exists already: choose another place")
    commit = fetch(name, endpoint=endpoint).commit
    scratch = scratch_name(target)
    repo = HubRepo(name.repo_id, endpoint, lambda _: None)
    try:
        scratch.mkdir(parents=True)
        for path in _own(repo, commit):
            fetched = repo.fetch(path, commit)  # first: the client refuses paths that lead out
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fetched, scratch / path)
        validate_set(scratch)
        os.rename(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, MoeddError):
            raise from_oserror(error, f"copying {name} to {target}") from error
        raise
    return Fetched(target, commit)


def _own(repo: HubRepo, commit: str) -> list[str]:
    """The repository's files, without those that are the Hub's (.gitattributes)."""
    return [path for path in sorted(repo.files(commit)) if not path.startswith(".")]
