"""The routes of the Hub for tests: each takes a request and gives status, headers, body."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hub_content
from hub_card import card_problems
from hub_content import Answer, as_json, repo_of
from hub_store import Refused, now

if TYPE_CHECKING:
    from hub_server import Request

_ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/validate-yaml", "validate-yaml"),
    ("GET", r"/api/(models|datasets|spaces)", "search"),
    ("POST", r"/api/collections", "collection-create"),
    ("GET", r"/api/collections/[^/]+/[^/]+", "collection"),
    ("POST", r"/api/collections/[^/]+/[^/]+/items", "collection-add"),
    ("PUT", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/settings", "settings"),
    ("GET", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+(?:/revision/[^/]+)?", "info"),
    ("GET", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/tree/[^/]+(?:/.*)?", "tree"),
    ("POST", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/paths-info/[^/]+", "paths-info"),
    ("POST", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/preupload/[^/]+", "preupload"),
    ("POST", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/commit/[^/]+", "commit"),
    ("GET", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/refs", "refs"),
    ("GET", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/commits/[^/]+", "commits"),
    ("GET", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/discussions/\d+", "discussion"),
    ("POST", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/tag/[^/]+", "tag"),
    ("POST", r"/api/(?:models|datasets|spaces)/[^/]+/[^/]+/branch/[^/]+", "branch"),
    ("POST", r"/.+\.git/info/lfs/objects/batch", "lfs-batch"),
    ("PUT", r"/lfs/.+", "lfs-put"),
    ("POST", r"/lfs-verify/.+", "lfs-verify"),
    ("HEAD", r"/.+/resolve/[^/]+/.+", "head"),
    ("GET", r"/.+/resolve/[^/]+/.+", "get"),
    ("GET", r"/space/[^/]+/[^/]+(?:/.*)?", "space"),
]


def name_of(method: str, path: str) -> str:
    """The route's name, "unknown" if there is none."""
    for wanted, pattern, name in _ROUTES:
        if method == wanted and re.fullmatch(pattern, path):
            return name
    return "unknown"


def serve(route: str, request: Request) -> Answer:
    """Answer a request; raises `Refused`."""
    if route == "unknown":
        raise Refused(404, f"no such route: {request.method} {'/'.join(request.parts)}")
    return _SERVE[route](request)


def _whoami(request: Request) -> Answer:
    who = request.store.account(request.token)
    if who is None:
        raise Refused(401, "Invalid username or password.")
    token = {"displayName": "test", "role": who.role}
    orgs = [{"type": "org", "name": name} for name in who.orgs]
    return as_json({"type": "user", "name": who.name, "orgs": orgs, "auth": {"accessToken": token}})


def _create(request: Request) -> Answer:
    who = request.store.account(request.token)
    body = request.json()
    try:
        repo = request.store.create(who, body)
    except Refused as refused:
        if refused.status == 409:
            kind = f"{body.get('type') or 'model'}s"
            refused.body["url"] = _page(request, kind, refused.body.pop("existing"))
        raise
    return as_json({"url": _page(request, repo.kind, repo.id)})


def _page(request: Request, kind: str, repo_id: str) -> str:
    prefix = "" if kind == "models" else f"{kind}/"
    return f"{request.hub.url}/{prefix}{repo_id}"


def _delete(request: Request) -> Answer:
    body = request.json()
    who = request.store.account(request.token)
    namespace = body.get("organization") or (who.name if who else "")
    key = (f"{body.get('type') or 'model'}s", f"{namespace}/{body['name']}")
    request.store.repo(*key, who, write=True)
    del request.store.repos[key]
    return as_json({})


def _validate_yaml(request: Request) -> Answer:
    body = request.json()
    problems = card_problems(body["content"], f"{body['repoType']}s")
    errors = [{"message": problem} for problem in problems]
    return as_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def _settings(request: Request) -> Answer:
    repo = repo_of(request, write=True)
    body = request.json()
    if "visibility" in body:
        repo.private = body["visibility"] == "private"
    if "gated" in body:
        repo.gated = bool(body["gated"])
    return as_json({})


def _commit(request: Request) -> Answer:
    pull_request = request.flag("create_pr")
    repo = repo_of(request, write=not pull_request)
    who = request.store.account(request.token)
    if who is None or who.role != "write":
        raise Refused(403 if who else 401, "a write token is needed to propose a change")
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except json.JSONDecodeError:
        raise Refused(400, "the body is not lines of JSON") from None
    made, number = request.store.commit(repo, request.parts[5], lines, who.name, pull_request)
    page = _page(request, repo.kind, repo.id)
    body = {"success": True, "commitOid": made.oid, "commitUrl": f"{page}/commit/{made.oid}"}
    body["hookOutput"] = ""
    if number is not None:
        body["pullRequestUrl"] = f"{page}/discussions/{number}"
    return as_json(body)


def _discussion(request: Request) -> Answer:
    """Pull requests only; of what was said there nothing."""
    repo = repo_of(request)
    number = int(request.parts[5])
    if number not in repo.pulls:
        raise Refused(404, "Discussion not found")
    made = repo.commits[repo.pulls[number]]
    return as_json(
        {
            "title": made.title,
            "num": number,
            "author": {"name": made.author},
            "createdAt": made.date,
            "status": "closed" if number in repo.closed else "open",
            "repo": {"name": repo.id, "type": repo.kind[:-1]},
            "isPullRequest": True,
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": [],
            "events": [],
            "diff": "",
        }
    )


def _tag(request: Request) -> Answer:
    repo = repo_of(request, write=True)
    request.store.tag(repo, request.parts[5], request.json()["tag"])
    return as_json({})


def _branch(request: Request) -> Answer:
    repo = repo_of(request, write=True)
    request.store.branch(repo, request.parts[5], request.json().get("startingPoint"))
    return as_json({})


def _collection_create(request: Request) -> Answer:
    who = request.store.account(request.token)
    body = request.json()
    if who is None or who.role != "write" or not who.owns(body["namespace"]):
        raise Refused(403 if who else 401, "no rights to create a collection")
    slug = f"{body['namespace']}/{body['title'].lower().replace(' ', '-')}-64f0"
    if slug in request.store.collections:
        raise Refused(409, "exists", None, slug=slug)
    request.store.collections[slug] = {
        "slug": slug,
        "title": body["title"],
        "owner": {"name": body["namespace"], "type": "user"},
        "items": [],
        "lastUpdated": now(),
        "position": 0,
        "private": bool(body.get("private")),
        "theme": "green",
        "upvotes": 0,
        "description": body.get("description"),
    }
    return as_json(request.store.collections[slug])


def _collection_of(request: Request) -> dict[str, Any]:
    slug = "/".join(request.parts[2:4])
    if slug not in request.store.collections:
        raise Refused(404, "Collection not found", "CollectionNotFound")
    return request.store.collections[slug]


def _collection(request: Request) -> Answer:
    return as_json(_collection_of(request))


def _collection_add(request: Request) -> Answer:
    collection = _collection_of(request)
    who = request.store.account(request.token)
    if who is None or who.role != "write" or not who.owns(collection["owner"]["name"]):
        raise Refused(403 if who else 401, "no rights to change the collection")
    item = request.json()["item"]
    request.store.repo(f"{item['type']}s", item["id"], who)
    if any(there["id"] == item["id"] for there in collection["items"]):
        raise Refused(409, "Item already in collection")
    place = len(collection["items"])
    collection["items"].append(
        {"_id": f"{place:024x}", "id": item["id"], "type": item["type"], "position": place}
    )
    return as_json(collection)


_SERVE: dict[str, Callable[[Request], Answer]] = {
    "whoami": _whoami,
    "create": _create,
    "delete": _delete,
    "validate-yaml": _validate_yaml,
    "search": hub_content.search,
    "collection-create": _collection_create,
    "collection": _collection,
    "collection-add": _collection_add,
    "settings": _settings,
    "info": hub_content.info,
    "tree": hub_content.tree,
    "paths-info": hub_content.paths_info,
    "preupload": hub_content.preupload,
    "commit": _commit,
    "refs": hub_content.refs,
    "commits": hub_content.commits,
    "discussion": _discussion,
    "tag": _tag,
    "branch": _branch,
    "lfs-batch": hub_content.lfs_batch,
    "lfs-put": hub_content.lfs_put,
    "lfs-verify": hub_content.lfs_verify,
    "head": hub_content.resolve,
    "get": hub_content.resolve,
    "space": hub_content.space,
}
