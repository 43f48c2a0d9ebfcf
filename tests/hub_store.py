"""What a Hub remembers: accounts, repositories with their history, large files, collections.

`hub_server.py` serves it over HTTP. It refuses what the real Hub refuses; every refusal is a
`Refused`, which carries the status and the error code that the clients read.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from hub_card import card_problems, front_matter

KINDS = ("models", "datasets", "spaces")
LARGE = 10 * 1024 * 1024
_LFS_WORDS = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.gz *.h5 *.npy *.npz *.onnx *.parquet *.pickle *.pkl *.pt *.pth
*.rar *.safetensors *.tar *.tar.* *.tgz *.wasm *.xz *.zip *.zst *.bmp *.gif *.png *.tiff *.jpg
*.jpeg *.webp *.mp3 *.mp4 *.wav
"""
_LFS = _LFS_WORDS.split()


class Refused(Exception):
    """A request that the Hub answers with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class Account:
    """Who a token stands for: `role` is "read" or "write"."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        size = len(self.data)
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n"
        ).encode()

    @property
    def git_oid(self) -> str:
        data = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass
class Repo:
    """A repository with its whole history."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, str] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> Commit:
        pull = re.fullmatch(r"refs/pr/(\d+)", revision)
        oid = (
            self.pulls.get(int(pull[1]))
            if pull
            else self.branches.get(revision) or self.tags.get(revision) or revision
        )
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        found: list[Commit] = []
        commit: Commit | None = self.resolve(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found

    def add(
        self, title: str, files: Mapping[str, File], parent: Commit | None, author: str = "hub"
    ) -> Commit:
        """A new commit, on no branch yet."""
        commit = Commit(
            oid=secrets.token_hex(20),
            parent=parent.oid if parent else None,
            title=title,
            description="",
            author=author,
            date=now(),
            files=dict(files),
        )
        self.commits[commit.oid] = commit
        return commit

    def card(self) -> dict[str, Any]:
        readme = self.resolve("main").files.get("README.md")
        return front_matter(readme.data.decode()) or {} if readme else {}

    def found_by(self) -> list[str]:
        """Tags that the search filters by, as the Hub derives them from the card."""
        card = self.card()
        tags = [str(tag) for tag in card.get("tags") or []]
        for key in ("task_categories", "size_categories", "license"):
            values = card.get(key) or []
            for value in [values] if isinstance(values, str) else values:
                tags.append(f"{key}:{value}")
        if card.get("library_name"):
            tags.append(f"library:{card['library_name']}")
        return tags


class Store:
    """All of it. Tokens, by default: "hf_writer" (someone), "hf_reader" (read only),
    "hf_other" (another account); the organisation is "lab"."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {
            "hf_writer": Account("someone", "write", ("lab",)),
            "hf_reader": Account("someone", "read"),
            "hf_other": Account("other", "write"),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.all_regular = False
        self.private_by_default = False

    # Who may do what

    def account(self, token: str | None) -> Account | None:
        if token is None:
            return None
        if token not in self.accounts:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.accounts[token]

    def repo(self, kind: str, repo_id: str, who: Account | None, write: bool = False) -> Repo:
        check_repo_id(repo_id)
        repo = self.repos.get((kind, repo_id))
        hidden = repo is None or (repo.private and not (who and who.owns(repo.namespace)))
        if hidden and who is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        if repo is None or hidden:
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write:
            if who is None:
                raise Refused(401, "Invalid username or password.")
            if who.role != "write" or not who.owns(repo.namespace):
                raise Refused(
                    403,
                    "Forbidden: you must use a write token to access this resource."
                    if who.owns(repo.namespace)
                    else f"You don't have the rights to write to {repo_id}",
                )
        return repo

    def readable(self, repo: Repo, who: Account | None) -> None:
        """Contents of a gated repository are for those who were let in: here its owner."""
        if repo.gated and not (who and who.owns(repo.namespace)):
            raise Refused(
                401 if who is None else 403,
                f"Access to dataset {repo.id} is restricted. You must have access to it and be "
                "authenticated to access it.",
                "GatedRepo",
            )

    # Changing things

    def create(self, who: Account | None, body: Mapping[str, Any]) -> Repo:
        if who is None:
            raise Refused(401, "Invalid username or password.")
        namespace = body.get("organization") or who.name
        repo_id = f"{namespace}/{body.get('name')}"
        check_repo_id(repo_id)
        kind = f"{body.get('type') or 'model'}s"
        if kind not in KINDS:
            raise Refused(400, f"unknown repo type {kind}")
        if who.role != "write" or not who.owns(str(namespace)):
            raise Refused(
                403, f'You don\'t have the rights to create a {kind[:-1]} under "{namespace}"'
            )
        if (kind, repo_id) in self.repos:
            raise Refused(409, f"You already created this {kind[:-1]} repo", None, existing=repo_id)
        if kind == "spaces" and body.get("sdk") not in ("static", "gradio", "docker"):
            raise Refused(400, "a Space needs an sdk")
        visibility = body.get("visibility")
        if visibility not in (None, "public", "private"):
            raise Refused(400, f"unknown visibility {visibility}")
        private = visibility == "private" or (visibility is None and self.private_by_default)
        repo = Repo(kind, repo_id, private=private, sdk=body.get("sdk"))
        attributes = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in _LFS)
        first = repo.add("initial commit", {".gitattributes": File(attributes.encode())}, None)
        repo.branches["main"] = first.oid
        self.repos[kind, repo_id] = repo
        return repo

    def is_lfs(self, path: str, size: int) -> bool:
        if size == 0 or self.all_regular:
            return False
        name = path.rsplit("/", 1)[-1]
        return size > LARGE or any(fnmatch.fnmatch(name, pattern) for pattern in _LFS)

    def commit(
        self,
        repo: Repo,
        revision: str,
        lines: list[dict[str, Any]],
        author: str,
        pull_request: bool,
    ) -> tuple[Commit, int | None]:
        """Apply one commit, whole or not at all; returns it and the number of its pull request."""
        head = repo.resolve(revision)
        if revision not in repo.branches and not revision.startswith("refs/pr/"):
            raise Refused(400, f"{revision} is not a branch")
        if not lines or lines[0].get("key") != "header":
            raise Refused(400, "the first line must be the header")
        header = lines[0]["value"]
        if not header.get("summary"):
            raise Refused(400, "commit summary is required")
        wanted = header.get("parentCommit")
        if wanted is not None and wanted != head.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._apply(repo, files, line["key"], line["value"])
        readme = files.get("README.md")
        if readme is not None and readme != head.files.get("README.md"):
            problems = card_problems(readme.data.decode(), repo.kind)
            if problems:
                raise Refused(400, "Invalid metadata in README.md: " + "; ".join(problems))
        made = repo.add(header["summary"], files, head, author)
        made = replace(made, description=header.get("description") or "")
        repo.commits[made.oid] = made
        if pull_request:
            number = len(repo.pulls) + 1
            repo.pulls[number] = made.oid
            return made, number
        if revision in repo.branches:
            repo.branches[revision] = made.oid
        else:
            repo.pulls[int(revision.rsplit("/", 1)[1])] = made.oid
        return made, None

    def _apply(self, repo: Repo, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
        path = str(value.get("path"))
        if path.startswith("/") or "\\" in path or ".." in path.split("/") or not path:
            raise Refused(400, f"invalid path {path!r}")
        if key == "file":
            import base64

            if value.get("encoding") != "base64":
                raise Refused(400, "unknown encoding")
            data = base64.b64decode(value["content"], validate=True)
            if self.is_lfs(path, len(data)):
                raise Refused(400, f"{path} must be pushed with LFS")
            files[path] = File(data)
        elif key == "lfsFile":
            stored = repo.objects.get(value["oid"])
            if value.get("algo") != "sha256" or stored is None or len(stored) != value["size"]:
                raise Refused(400, f"LFS object {value['oid']} of {path} was not uploaded")
            files[path] = File(stored, lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in files if p == path or (key[7:] == "Folder" and p.startswith(path))]
            if not gone:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refused(400, f"unknown operation {key}")

    def tag(self, repo: Repo, revision: str, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._/-]+", name):
            raise Refused(400, f"invalid tag {name!r}")
        if name in repo.tags:
            raise Refused(409, f"Tag {name} already exists")
        repo.tags[name] = repo.resolve(revision).oid

    def branch(self, repo: Repo, name: str, start: str | None) -> None:
        if name in repo.branches:
            raise Refused(409, f"Branch {name} already exists")
        repo.branches[name] = repo.resolve(start or "main").oid


def check_repo_id(repo_id: str) -> None:
    """The Hub's rule for names."""
    good = re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", repo_id) and len(repo_id) <= 96
    name = repo_id.split("/")[-1]
    bad = "--" in repo_id or ".." in repo_id or name[-4:] == ".git" or name[:1] + name[-1:] in "-."
    if not good or bad or name[0] in "-." or name[-1] in "-.":
        raise Refused(400, f"Invalid repo name: {repo_id}")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
