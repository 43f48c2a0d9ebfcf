"""Routes of the Hub for tests that give what is in a repository, and take large files."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from hub_store import KINDS, Commit, File, Refused, Repo

if TYPE_CHECKING:
    from hub_server import Request

Answer = tuple[int, dict[str, str], bytes]


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def repo_of(request: Request, write: bool = False) -> Repo:
    """Of /api/KIND/NS/NAME/..."""
    _, kind, namespace, name, *_ = request.parts
    who = request.store.account(request.token)
    return request.store.repo(kind, f"{namespace}/{name}", who, write)


def _description(repo: Repo, commit: Commit) -> dict[str, Any]:
    history = repo.history()
    return {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "tags": repo.found_by(),
        "downloads": 0,
        "likes": 0,
        "lastModified": history[0].date,
        "createdAt": history[-1].date,
        "cardData": repo.card(),
        "sdk": repo.sdk,
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }


def info(request: Request) -> Answer:
    repo = repo_of(request)
    revision = request.parts[5] if len(request.parts) > 4 else "main"
    return as_json(_description(repo, repo.resolve(revision)))


def search(request: Request) -> Answer:
    kind = request.parts[1]
    who = request.store.account(request.token)
    wanted = request.query.get("filter", [])
    found = [
        _description(repo, repo.resolve("main"))
        for (of_kind, _), repo in sorted(request.store.repos.items())
        if of_kind == kind
        and set(wanted) <= set(repo.found_by())
        and (not repo.private or (who and who.owns(repo.namespace)))
        and all(text in repo.id for text in request.query.get("search", []))
    ]
    # Two to a page, whatever is asked for: whoever forgets to turn the page, misses sets.
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if start + 2 < len(found):
        kept = "&".join(f"filter={value}" for value in wanted)
        following = f"{request.hub.url}/api/{kind}?{kept}&cursor={start + 2}"
        headers["Link"] = f'<{following}>; rel="next"'
    return as_json(found[start : start + 2], 200, **headers)


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(file.data),
        "oid": file.git_oid,
    }
    if file.lfs:
        size = len(file.data)
        entry["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}
    return entry


def _folders(commit: Commit) -> set[str]:
    return {
        "/".join(path.split("/")[:depth])
        for path in commit.files
        for depth in range(1, path.count("/") + 1)
    }


def _folder_entry(path: str) -> dict[str, Any]:
    return {
        "type": "directory",
        "path": path,
        "oid": hashlib.sha1(path.encode()).hexdigest(),
        "size": 0,
    }


def tree(request: Request) -> Answer:
    repo = repo_of(request)
    request.store.readable(repo, request.store.account(request.token))
    commit = repo.resolve(request.parts[5])
    folder = "/".join(request.parts[6:])
    folders = _folders(commit)
    if folder and folder not in folders:
        raise Refused(404, f"{folder} does not exist on {request.parts[5]}", "EntryNotFound")
    deep = request.flag("recursive")

    def inside(path: str) -> bool:
        parent, _, _ = path.rpartition("/")
        return parent == folder or (deep and (not folder or path.startswith(folder + "/")))

    entries = [_folder_entry(path) for path in sorted(folders) if inside(path)]
    entries += [_entry(path, file) for path, file in sorted(commit.files.items()) if inside(path)]
    return as_json(entries)


def paths_info(request: Request) -> Answer:
    repo = repo_of(request)
    request.store.readable(repo, request.store.account(request.token))
    commit = repo.resolve(request.parts[5])
    if "json" in request.headers.get("Content-Type", ""):
        paths = request.json()["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    folders = _folders(commit)
    entries = [_entry(path, commit.files[path]) for path in paths if path in commit.files]
    return as_json(entries + [_folder_entry(path) for path in paths if path in folders])


def preupload(request: Request) -> Answer:
    pull_request = request.flag("create_pr")
    repo = repo_of(request, write=not pull_request)
    commit = repo.resolve(request.parts[5])
    answers = []
    for file in request.json()["files"]:
        path = file["path"]
        mode = "lfs" if request.store.is_lfs(path, file["size"]) else "regular"
        one = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in commit.files:
            there = commit.files[path]
            one["oid"] = there.sha256 if mode == "lfs" else there.git_oid
        answers.append(one)
    return as_json({"files": answers, "commitOid": commit.oid})


def lfs_batch(request: Request) -> Answer:
    parts = request.parts if request.parts[0] in KINDS else ["models", *request.parts]
    kind, namespace, name = parts[:3]
    who = request.store.account(request.token)
    body = request.json()
    # Whoever proposes a change names no branch, and needs no right to write to one.
    own = "ref" in body
    repo = request.store.repo(kind, f"{namespace}/{name.removesuffix('.git')}", who, write=own)
    if who is None or who.role != "write":
        raise Refused(403 if who else 401, "a write token is needed to upload")
    if body.get("operation") != "upload" or body.get("hash_algo") != "sha256":
        raise Refused(422, "only uploads of sha256 objects")
    objects = []
    for item in body["objects"]:
        oid, size = item["oid"], item["size"]
        if not re.fullmatch(r"[0-9a-f]{64}", oid) or size < 1:
            objects.append({**item, "error": {"code": 422, "message": "invalid object"}})
            continue
        one = {"oid": oid, "size": size}
        if oid not in repo.objects:
            at = f"{repo.kind}/{repo.id}/{oid}"
            one["actions"] = {
                "upload": {"href": f"{request.hub.url}/lfs/{at}?size={size}", "header": {}},
                "verify": {"href": f"{request.hub.url}/lfs-verify/{at}", "header": {}},
            }
        objects.append(one)
    return as_json({"transfer": "basic", "objects": objects})


def lfs_put(request: Request) -> Answer:
    _, kind, namespace, name, oid = request.parts
    if request.token is not None:
        raise Refused(400, "the storage host must not see the token")
    repo = request.store.repos[kind, f"{namespace}/{name}"]
    right = hashlib.sha256(request.body).hexdigest() == oid
    if not right or len(request.body) != int(request.query["size"][0]):
        raise Refused(400, "BadDigest: the body is not what was announced")
    repo.objects[oid] = request.body
    return 200, {}, b""


def lfs_verify(request: Request) -> Answer:
    _, kind, namespace, name, oid = request.parts
    who = request.store.account(request.token)
    repo = request.store.repo(kind, f"{namespace}/{name}", who)
    body = request.json()
    if body["oid"] != oid or len(repo.objects.get(oid, b"")) != body["size"]:
        raise Refused(404, "object was not uploaded")
    return as_json({})


def resolve(request: Request) -> Answer:
    parts = request.parts if request.parts[0] in KINDS else ["models", *request.parts]
    kind, namespace, name, _, revision, *path = parts
    who = request.store.account(request.token)
    repo = request.store.repo(kind, f"{namespace}/{name}", who)
    request.store.readable(repo, who)
    commit = repo.resolve(revision)
    file = commit.files.get("/".join(path))
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if file is None:
        missing = Refused(404, "Entry not found", "EntryNotFound")
        body = json.dumps({"error": missing.message}).encode()
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": missing.message}
        return 404, headers, body
    headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
    if request.method == "HEAD":
        return 200, {**headers, "Content-Length": str(len(file.data))}, b""
    return _ranged(request, headers, file.data)


def _ranged(request: Request, headers: dict[str, str], data: bytes) -> Answer:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if match is None:
        return 200, headers, data
    size = len(data)
    if match[1]:
        start, stop = int(match[1]), min(int(match[2] or size - 1), size - 1) + 1
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= size:
        return 416, {**headers, "Content-Range": f"bytes */{size}"}, b""
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return 206, headers, data[start:stop]


def space(request: Request) -> Answer:
    """A static Space, as a browser asks for it."""
    _, namespace, name, *path = request.parts
    repo = request.store.repo("spaces", f"{namespace}/{name}", None)
    if repo.sdk != "static":
        raise Refused(404, "not a static Space")
    file = repo.resolve("main").files.get("/".join(path) or "index.html")
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound")
    page = not path or path[-1].endswith(".html")
    kind = "text/html; charset=utf-8" if page else "application/octet-stream"
    return 200, {"Content-Type": kind}, file.data


def refs(request: Request) -> Answer:
    repo = repo_of(request)

    def listed(prefix: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"{prefix}/{n}", "targetCommit": o} for n, o in refs.items()]

    body: dict[str, Any] = {
        "branches": listed("refs/heads", repo.branches),
        "tags": listed("refs/tags", repo.tags),
        "converts": [],
    }
    if request.flag("include_prs"):
        body["pullRequests"] = [
            {"name": f"refs/pr/{n}", "ref": f"refs/pr/{n}", "targetCommit": oid}
            for n, oid in repo.pulls.items()
        ]
    return as_json(body)


def commits(request: Request) -> Answer:
    history = repo_of(request).history(request.parts[5])
    return as_json(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in history
        ]
    )
