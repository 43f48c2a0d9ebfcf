"""One repository on the Hub: reading its state, committing to it, tagging it.

Every method turns the errors of the client into those of `moedd_loaders.errors`, without their
causes: what a server answers may hold anything, and a traceback would show it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from moedd_loaders.errors import AuthError, ConflictError, InvalidSetError, UsageError
from moedd_loaders.hubclient import endpoint_url, patient, retried, status_of
from moedd_loaders.manifest import MANIFEST, RESULTS, Manifest, read_manifest
from moedd_loaders.records import Record
from moedd_publish.contents import CARD
from moedd_publish.huberrors import publishing_error
from moedd_publish.hubplan import Plan, Remote, unlike
from moedd_publish.results import readable_records

__all__ = ["HubRepo", "quiet_client"]

_PULLS_READ = 10  # newest pull requests that are compared with what is to be proposed


class HubRepo:
    """The repository `repo_id` of data (or a static Space) at `endpoint` (default: HF_ENDPOINT's).

    `say` is told what is tried again. A bare name belongs to the account of the token.
    """

    def __init__(
        self,
        repo_id: str,
        endpoint: str | None = None,
        say: Callable[[str], None] = print,
        kind: Literal["dataset", "space"] = "dataset",
    ) -> None:
        from huggingface_hub import HfApi

        self.endpoint = endpoint
        self.api = HfApi(endpoint=endpoint_url(endpoint))
        self.repo_id = repo_id
        self.say = say
        self.kind = kind
        self._who: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.kind}s/{self.repo_id}"

    @contextmanager
    def asking(self, doing: str) -> Iterator[None]:
        """Errors inside become the sentence for `doing`."""
        try:
            yield
        except Exception as error:
            raise publishing_error(error, doing, self.repo_id, self.endpoint) from None

    def account(self) -> str:
        """The name of the token's account; completes a bare `repo_id`."""
        with self.asking("logging in"):
            self._who = retried(self.api.whoami, self.say)
            name = str(self._who["name"])
        if "/" not in self.repo_id:
            self.repo_id = f"{name}/{self.repo_id}"
        return name

    def check_rights(self, proposing: bool) -> None:
        """Whether the token of `account` may write here (or only propose), as the Hub describes it.

        Raises AuthError: it may not.
        """
        who, namespace = self._who, self.repo_id.split("/")[0]
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        member_of = {org["name"]: org.get("roleInOrg") for org in who.get("orgs", [])}
        member_of[who["name"]] = "admin"
        outside = namespace not in member_of or member_of[namespace] == "read"
        if role == "read" or (outside and not proposing):
            what = "is for reading only" if role == "read" else f"is of {who['name']}"
            raise AuthError(
                f"your token {what} and publishing {self.repo_id} needs the right to write to "
                f"{namespace}: log in with another one (`hf auth login`); nothing was written"
            )

    def read(self, revision: str = "main") -> Remote:
        """What is there now, at one commit of `revision`: a branch (main's, if there is none), or
        "refs/pr/N"."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        with self.asking(f"reading {self.repo_id}"):
            try:
                info = retried(
                    lambda: self.api.repo_info(self.repo_id, repo_type=self.kind, timeout=30),
                    self.say,
                )
            except RepositoryNotFoundError as error:
                if isinstance(error, GatedRepoError):
                    raise
                self._check_pull(revision, {})
                return Remote(self.repo_id, exists=False)
            refs = self._refs(pulls=revision.startswith("refs/"))
            branches = {ref.name: ref.target_commit for ref in refs.branches}
            pulls = {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
            self._check_pull(revision, pulls)
            head = pulls.get(revision) or branches.get(revision) or branches.get("main")
            files = self.files(head) if head else {}
            return Remote(
                self.repo_id,
                private=bool(info.private),
                head=head,
                files=files,
                manifest=self.manifest(head) if head and MANIFEST in files else None,
                card=self._text(CARD, head) if head and CARD in files else None,
                records=self.records(head) if head and RESULTS in files else (),
                tags={ref.name: ref.target_commit for ref in refs.tags},
                branches=tuple(branches),
                sdk=getattr(info, "sdk", None),
            )

    def _check_pull(self, revision: str, pulls: Collection[str]) -> None:
        if revision.startswith("refs/pr/") and revision not in pulls:
            raise UsageError(
                f"{self.repo_id} has no pull request {revision[8:]}: give --create-pr to open one"
            )

    def files(self, revision: str) -> dict[str, Any]:
        """Every file at a revision, as the Hub describes it: size and hashes."""
        with self.asking(f"reading {self.repo_id}"), patient():
            tree = self.api.list_repo_tree(
                self.repo_id, recursive=True, revision=revision, repo_type=self.kind
            )
            return {entry.path: entry for entry in tree if hasattr(entry, "size")}

    def commits(self) -> int:
        """How many commits the main branch has."""
        with self.asking(f"reading {self.repo_id}"):
            found = retried(
                lambda: self.api.list_repo_commits(self.repo_id, repo_type=self.kind), self.say
            )
            return len(found)

    def manifest(self, revision: str) -> Manifest | None:
        """The manifest at a commit; None if there is none that this version reads."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return read_manifest(self._file(MANIFEST, revision).parent)
        except LocalEntryNotFoundError:
            raise
        except (InvalidSetError, EntryNotFoundError):
            return None

    def records(self, revision: str) -> list[Record]:
        """The benchmark records at a commit, without lines that are none."""
        return readable_records(self._text(RESULTS, revision))

    def fetch(self, path: str, revision: str) -> Path:
        """One file at a commit, in the client's cache."""
        with self.asking(f"fetching {path} of {self.repo_id}"):
            return self._file(path, revision)

    def create(self, private: bool | None) -> None:
        """Make the repository; `private` None leaves the choice to the account's own rule."""
        sdk = "static" if self.kind == "space" else None
        with self.asking(f"creating {self.repo_id}"):
            try:
                retried(
                    lambda: self.api.create_repo(
                        self.repo_id, repo_type=self.kind, private=private, space_sdk=sdk
                    ),
                    self.say,
                )
            except Exception as error:
                if status_of(error) != 409:  # made meanwhile, or by a try whose answer was lost
                    raise

    def create_branch(self, name: str, start: str) -> None:
        """A new branch at a commit."""
        with self.asking(f"creating the branch {name} of {self.repo_id}"):
            try:
                retried(
                    lambda: self.api.create_branch(
                        self.repo_id, branch=name, revision=start, repo_type=self.kind
                    ),
                    self.say,
                )
            except Exception as error:  # made meanwhile, or by a try whose answer was lost
                if status_of(error) != 409:
                    raise
                if name not in {ref.name for ref in self._refs().branches}:
                    raise

    def operations(self, plan: Plan) -> list[Any]:
        """A plan as operations of one commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        adds = [CommitOperationAdd(item.path, item.source) for item in plan.adds]
        return adds + [CommitOperationDelete(path) for path in plan.deletes]

    def upload(self, operations: Sequence[Any], revision: str, create_pr: bool) -> None:
        """Send the large files; nobody sees them before the commit, and what is there stays."""
        from huggingface_hub import CommitOperationAdd

        additions = [op for op in operations if isinstance(op, CommitOperationAdd)]
        with self.asking(f"uploading to {self.repo_id}"), patient():
            self.api.preupload_lfs_files(
                self.repo_id,
                additions=additions,
                repo_type=self.kind,
                revision=revision,
                create_pr=create_pr,
                free_memory=False,
            )

    def commit(
        self,
        operations: Sequence[Any],
        message: str,
        parent: str | None,
        revision: str,
        create_pr: bool,
    ) -> Any:
        """One atomic commit on top of `parent`; the client's own errors (see `asking`)."""
        with patient():
            return self.api.create_commit(
                self.repo_id,
                operations=operations,
                commit_message=message,
                parent_commit=parent,
                revision=revision,
                create_pr=create_pr,
                repo_type=self.kind,
            )

    def proposed(self, plan: Plan) -> tuple[str, str] | None:
        """Reference and commit of an open pull request that holds just what a plan wants."""
        with self.asking(f"reading {self.repo_id}"):
            pulls = self._refs(pulls=True).pull_requests or []
            for pull in pulls[::-1][:_PULLS_READ]:
                files = self.files(pull.target_commit)
                alike = not any(unlike(item, files.get(item.path)) for item in plan.everything)
                alike = alike and not any(path in files for path in plan.deletes)
                if alike and self._is_open(int(pull.ref.rsplit("/", 1)[1])):
                    return pull.ref, pull.target_commit
        return None

    def _is_open(self, number: int) -> bool:
        found = retried(
            lambda: self.api.get_discussion_details(self.repo_id, number, repo_type=self.kind),
            self.say,
        )
        return found.status in ("open", "draft")

    def tag(self, name: str, commit: str) -> None:
        """Tag a commit; a tag of that name on another commit is a conflict."""
        with self.asking(f"tagging {self.repo_id} (published at {commit[:12]}) as {name}"):
            try:
                retried(
                    lambda: self.api.create_tag(
                        self.repo_id, tag=name, revision=commit, repo_type=self.kind
                    ),
                    self.say,
                )
            except Exception as error:
                there = self._tagged(name)
                if there == commit:  # only the answer was lost
                    return
                if status_of(error) != 409:
                    raise
                raise ConflictError(
                    f"{self.repo_id} is published at {commit[:12]}, but the tag {name} is at "
                    f"{(there or 'another commit')[:12]}: give another --tag"
                ) from None

    def _tagged(self, name: str) -> str | None:
        """The commit of a tag; None if there is none, or if that cannot be found out."""
        try:
            return {ref.name: ref.target_commit for ref in self._refs().tags}.get(name)
        except Exception:
            return None

    def collect(self, collection: str) -> None:
        """Put the repository into a collection."""
        with self.asking(f"adding {self.repo_id} (published) to the collection {collection}"):
            try:
                retried(
                    lambda: self.api.add_collection_item(
                        collection, self.repo_id, self.kind, exists_ok=True
                    ),
                    self.say,
                )
            except Exception as error:
                if status_of(error) == 404:
                    raise AuthError(
                        f"{self.repo_id} is published, but there is no collection {collection} "
                        "that your token sees: check --collection"
                    ) from None
                raise

    def _refs(self, pulls: bool = False) -> Any:
        return retried(
            lambda: self.api.list_repo_refs(
                self.repo_id, repo_type=self.kind, include_pull_requests=pulls
            ),
            self.say,
        )

    def _file(self, path: str, revision: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            retried(
                lambda: hf_hub_download(
                    self.repo_id,
                    path,
                    repo_type=self.kind,
                    revision=revision,
                    endpoint=self.endpoint,
                ),
                self.say,
                tries=2,
            )
        )

    def _text(self, path: str, revision: str) -> str:
        return self._file(path, revision).read_text("utf-8", errors="replace")


@contextmanager
def quiet_client(bars: bool) -> Iterator[None]:
    """Inside, huggingface_hub logs errors only, and shows its progress bars if `bars`."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, hidden = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not hidden:
            enable_progress_bars()
