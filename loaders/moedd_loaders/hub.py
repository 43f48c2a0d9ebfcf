"""Sets on the Hub: `ns/name[@revision]` becomes a folder in huggingface_hub's cache.

Only the manifest and the tensors are fetched, all of one commit. What was fetched once is found
again without a network, at the revision it was asked for.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from moedd_loaders.entries import check_entries
from moedd_loaders.errors import (
    ConflictError,
    MoeddError,
    MoeddWarning,
    NetworkError,
    SetNotFoundError,
    UsageError,
    from_oserror,
    nearest,
)
from moedd_loaders.hubclient import explain, masked, patient, retried
from moedd_loaders.manifest import MANIFEST, read_manifest, tensor_files

__all__ = ["Fetched", "HubName", "fetch", "parse_hub_name"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository of data on the Hub and a revision of it: branch, tag or commit."""

    repo_id: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repo_id if self.revision == "main" else f"{self.repo_id}@{self.revision}"


@dataclass(frozen=True)
class Fetched:
    """A set in the cache: its folder, and the commit that it is of."""

    folder: Path
    commit: str


def parse_hub_name(text: str) -> HubName | None:
    """`ns/name` or `ns/name@revision`; None if the text has another form."""
    repo_id, at, revision = text.partition("@")
    if not _NAME.fullmatch(repo_id) or (at and not revision):
        return None
    return HubName(repo_id, revision or "main")


def fetch(name: HubName, *, offline: bool | None = None, endpoint: str | None = None) -> Fetched:
    """The set `name`, its manifest and tensors at one commit, in the cache.

    Args:
        offline: True: the cache alone. None: the Hub is asked what the revision is now; if it
            cannot be reached, the copy in the cache is taken, with a warning. False: no such copy.

    Raises:
        AuthError: private or gated. SetNotFoundError: no such repository, revision or set.
        ConflictError: a tag that was moved to other images since it was fetched.
        NetworkError: neither the Hub nor a copy in the cache. InvalidSetError: a broken manifest.
    """
    from huggingface_hub import constants

    try:
        known = _cached(name)
    except ValueError as error:
        raise _explained(error, name, endpoint) from None
    if known and _COMMIT.fullmatch(name.revision) and not _missing(known):
        return known
    if offline or (offline is None and constants.HF_HUB_OFFLINE):
        return _offline(name, known, "you asked for offline use")
    try:
        commit = _commit_of(name, endpoint)
    except NetworkError as error:
        if offline is None and known is not None and not _missing(known):
            warnings.warn(
                f"{error}; using the copy of {name} fetched before (commit {known.commit[:12]})",
                MoeddWarning,
                stacklevel=3,
            )
            return known
        raise
    if known is not None and known.commit != commit:
        _check_move(name, known, commit, endpoint)
    return _download(name, commit, endpoint)


def _commit_of(name: HubName, endpoint: str | None) -> str:
    """The commit that the revision names now."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(
        name.repo_id, MANIFEST, repo_type="dataset", revision=name.revision, endpoint=endpoint
    )
    try:
        commit = retried(lambda: get_hf_file_metadata(url, endpoint=endpoint), tries=3).commit_hash
    except EntryNotFoundError:
        raise SetNotFoundError(
            f"{name} on the Hub holds no {MANIFEST}, so it is not a set of moedd: read it with "
            f'datasets.load_dataset("{name.repo_id}")'
        ) from None
    except Exception as error:
        raise _explained(error, name, endpoint) from None
    if commit is None:
        raise NetworkError(f"{url} gives no commit: is HF_ENDPOINT the address of a Hub?")
    return commit


def _download(name: HubName, commit: str, endpoint: str | None) -> Fetched:
    """The manifest, then the tensors that it lists, at `commit`; remembers the revision."""
    try:
        manifest = Path(_file(name, MANIFEST, name.revision, endpoint))
        if manifest.parent.name != commit:  # moved between two requests
            manifest = Path(_file(name, MANIFEST, commit, endpoint))
        described = read_manifest(manifest.parent)
        check_entries(manifest, described)  # before anything large is fetched
        for path in tensor_files(described):
            _file(name, path, commit, endpoint)
    except MoeddError:
        raise
    except Exception as error:
        raise _explained(error, name, endpoint) from None
    return Fetched(manifest.parent, commit)


def _file(name: HubName, path: str, revision: str, endpoint: str | None) -> str:
    from huggingface_hub import hf_hub_download

    with patient():
        return hf_hub_download(
            name.repo_id, path, repo_type="dataset", revision=revision, endpoint=endpoint
        )


def _cached(name: HubName) -> Fetched | None:
    """What the cache has of the revision, as it was when it was last fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        name.repo_id, MANIFEST, revision=name.revision, repo_type="dataset"
    )
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return Fetched(folder, folder.name)


def _missing(fetched: Fetched) -> list[str]:
    """Tensors that the cache lacks: a download was cut off."""
    wanted = tensor_files(read_manifest(fetched.folder))
    return [path for path in wanted if not (fetched.folder / path).is_file()]


def _offline(name: HubName, known: Fetched | None, why: str) -> Fetched:
    if known is None:
        raise NetworkError(
            f"{name} is not in the cache and {why}: fetch it once with a network, "
            f"`moedd pull {name}`"
        )
    missing = _missing(known)
    if missing:
        raise NetworkError(
            f"{name} is in the cache without {missing[0]} and {why}: run `moedd pull {name}` with "
            "a network"
        )
    return known


def _check_move(name: HubName, known: Fetched, commit: str, endpoint: str | None) -> None:
    """A branch may move; a tag may not, unless the images stay what they were."""
    from huggingface_hub import HfApi

    try:
        refs = retried(
            lambda: HfApi(endpoint=endpoint).list_repo_refs(name.repo_id, repo_type="dataset")
        )
        if name.revision not in [tag.name for tag in refs.tags]:
            return
        now = read_manifest(Path(_file(name, MANIFEST, commit, endpoint)).parent)
    except MoeddError:
        raise
    except Exception as error:
        raise _explained(error, name, endpoint) from None
    if now.training_sha256 != read_manifest(known.folder).training_sha256:
        raise ConflictError(
            f"the tag {name.revision} of {name.repo_id} was moved to other images: you fetched "
            f"commit {known.commit[:12]}, it is {commit[:12]} now; say which you want, "
            f"{name.repo_id}@{known.commit} or {name.repo_id}@{commit}"
        )


def _explained(error: Exception, name: HubName, endpoint: str | None) -> Exception:
    from huggingface_hub.errors import RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        there = _others(name, endpoint)
        return SetNotFoundError(f"{name.repo_id} has no revision '{name.revision}'{there}")
    found = explain(error, f"fetching {name}", name.repo_id, endpoint)
    if found is not None:
        return found
    if isinstance(error, OSError) and error.errno:
        return from_oserror(error, f"fetching {name}")
    if isinstance(error, OSError):
        return NetworkError(f"fetching {name} failed: {masked(str(error)).splitlines()[0]}")
    return error


def _others(name: HubName, endpoint: str | None) -> str:
    """The revisions there are; it may not be known."""
    from huggingface_hub import HfApi

    try:
        with patient():
            # The same Hub: no other may see the name and the token.
            refs = HfApi(endpoint=endpoint).list_repo_refs(name.repo_id, repo_type="dataset")
    except Exception:
        return ""
    known = [ref.name for ref in (*refs.tags, *refs.branches)]
    close = nearest(name.revision, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"; it has {', '.join(known[:8])}{hint}"


def require_hub_name(text: str) -> HubName:
    """As `parse_hub_name`; raises UsageError for another form."""
    found = parse_hub_name(text)
    if found is None:
        raise UsageError(
            f"'{text}' is no set on the Hub, expected NAMESPACE/NAME or NAMESPACE/NAME@REVISION"
        )
    return found
