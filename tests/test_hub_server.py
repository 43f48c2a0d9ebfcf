"""The Hub for tests refuses what the real one refuses, and the real client knows why."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from hub_card import card_problems
from hub_faults import STATUSES
from hub_server import HubServer
from hubfactories import log_in
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

ID = "someone/things"


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    made = HfApi()
    made.create_repo(ID, repo_type="dataset")
    return made


def ask(
    hub: HubServer, method: str, path: str, body: bytes = b"", **headers: str | None
) -> tuple[int, dict[str, str], bytes]:
    """A request without any client's help."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    headers = {"Authorization": "Bearer hf_writer", **headers}
    sent = {key: value for key, value in headers.items() if value is not None}
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), data


def commit(hub: HubServer, *lines: dict[str, Any], revision: str = "main") -> tuple[int, str]:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    status, _, data = ask(hub, "POST", f"/api/datasets/{ID}/commit/{revision}", body)
    return status, json.loads(data).get("error", "")


HEADER = {"key": "header", "value": {"summary": "s", "description": ""}}


def file(path: str, data: bytes = b"x") -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def test_commits_are_strict(api: HfApi, hub: HubServer) -> None:
    assert commit(hub, HEADER, file("a.txt"))[0] == 200
    head = hub.store.repos["datasets", ID].branches["main"]
    moved = {"key": "header", "value": {"summary": "s", "parentCommit": "0" * 40}}
    large = {"path": "a.bin", "algo": "sha256", "oid": "1" * 64, "size": 3}
    for lines, status, said in (
        ([moved, file("b.txt")], 412, "A commit has happened since"),
        ([file("b.txt")], 400, "must be the header"),
        ([{"key": "header", "value": {"summary": ""}}], 400, "summary is required"),
        ([HEADER, {"key": "lfsFile", "value": large}], 400, "was not uploaded"),
        ([HEADER, file("b.parquet")], 400, "must be pushed with LFS"),
        ([HEADER, file("../b.txt")], 400, "invalid path"),
        ([HEADER, {"key": "deletedFile", "value": {"path": "none"}}], 404, "doesn't exist"),
        ([HEADER, file("README.md", b"---\nlicense: mine\n---\n")], 400, "Invalid metadata"),
        ([HEADER, {"key": "odd", "value": {"path": "x"}}], 400, "unknown operation"),
    ):
        found = commit(hub, *lines)
        assert found[0] == status
        assert said in found[1]
        assert hub.store.repos["datasets", ID].branches["main"] == head
    assert commit(hub, HEADER, file("c.txt"), revision="nowhere")[0] == 404


def test_large_files_are_strict(api: HfApi, hub: HubServer) -> None:
    data = b"0123456789"
    oid = hashlib.sha256(data).hexdigest()
    batch = {
        "operation": "upload", "hash_algo": "sha256", "ref": {"name": "main"},
        "objects": [{"oid": oid, "size": len(data)}, {"oid": "short", "size": 1}],
    }  # fmt: skip
    where = f"/datasets/{ID}.git/info/lfs/objects/batch"
    _, _, answer = ask(hub, "POST", where, json.dumps(batch).encode())
    good, bad = json.loads(answer)["objects"]
    assert bad["error"]["code"] == 422
    href = urlsplit(good["actions"]["upload"]["href"])
    upload, verify = f"{href.path}?{href.query}", good["actions"]["verify"]["href"]
    assert ask(hub, "PUT", upload, data)[0] == 400  # the storage host must not see a token
    connection = http.client.HTTPConnection(href.netloc, timeout=10)
    for body, status in ((data[:5], 400), (data[::-1], 400), (data, 200)):
        described = json.dumps({"oid": oid, "size": len(data)}).encode()
        if status == 200:
            assert ask(hub, "POST", urlsplit(verify).path, described)[0] == 404
        connection.request("PUT", upload, body)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status
    connection.close()
    assert ask(hub, "POST", urlsplit(verify).path, described)[0] == 200
    _, _, answer = ask(hub, "POST", where, json.dumps(batch).encode())
    assert "actions" not in json.loads(answer)["objects"][0]


def test_names_accounts_and_visibility(
    api: HfApi, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("some--one", "x..y", "x.git", "-x", ".x", "x-", "a b", "x" * 97):
        body = json.dumps({"name": name, "type": "dataset"}).encode()
        assert ask(hub, "POST", "/api/repos/create", body)[0] == 400
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(ID, repo_type="dataset")
    assert api.create_repo(ID, repo_type="dataset", exist_ok=True).repo_id == ID
    api.update_repo_settings(ID, repo_type="dataset", private=True)
    assert api.dataset_info(ID).private
    log_in(monkeypatch, "hf_other")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(ID)
    hub.store.repos["datasets", ID].private = False
    with pytest.raises(HfHubHTTPError, match="403"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=ID, repo_type="dataset")
    hub.store.repos["datasets", ID].gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download(ID, ".gitattributes", repo_type="dataset")
    log_in(monkeypatch, "hf_wrong")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()


def test_history_branches_tags(api: HfApi, hub: HubServer) -> None:
    def add(path: str, revision: str = "main") -> str:
        operations = [CommitOperationAdd(path, b"data of " + path.encode())]
        return api.create_commit(
            ID, operations, commit_message=path, repo_type="dataset", revision=revision
        ).oid

    first = add("a.txt")
    api.create_tag(ID, tag="v1", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(ID, tag="v1", repo_type="dataset")
    api.create_branch(ID, branch="trial", repo_type="dataset")
    second = add("dir/b.bin", "trial")
    refs = api.list_repo_refs(ID, repo_type="dataset")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {
        "main": first,
        "trial": second,
    }
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    titles = [c.title for c in api.list_repo_commits(ID, repo_type="dataset", revision="trial")]
    assert titles == ["dir/b.bin", "a.txt", "initial commit"]
    (info,) = api.get_paths_info(ID, ["dir/b.bin", "no"], repo_type="dataset", revision="trial")
    assert info.lfs.sha256 == hashlib.sha256(b"data of dir/b.bin").hexdigest()
    assert not api.file_exists(ID, "dir/b.bin", repo_type="dataset")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(ID, "dir/b.bin", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(ID, "a.txt", repo_type="dataset", revision="none")
    operations = [CommitOperationDelete("dir/", is_folder=True)]
    api.create_commit(ID, operations, commit_message="gone", repo_type="dataset", revision="trial")
    paths = {e.path for e in api.list_repo_tree(ID, repo_type="dataset", revision="trial")}
    assert paths == {".gitattributes", "a.txt"}
    api.delete_repo(ID, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(ID)


def test_ranges(api: HfApi, hub: HubServer) -> None:
    commit(hub, HEADER, file("a.txt", b"0123456789"))
    where = f"/datasets/{ID}/resolve/main/a.txt"
    for asked, status, body in (
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=20-", 416, b""),
        ("", 200, b"0123456789"),
    ):
        found = ask(hub, "GET", where, Range=asked)
        assert (found[0], found[2]) == (status, body)
        assert len(found[1]["X-Repo-Commit"]) == 40


def test_search_turns_pages(hub: HubServer) -> None:
    api = HfApi()
    for number in range(5):
        name = f"someone/set{number}"
        api.create_repo(name, repo_type="dataset")
        card = b"---\ntags:\n- wanted\n---\n" if number else b"# none\n"
        operations = [CommitOperationAdd("README.md", card)]
        api.create_commit(name, operations, commit_message="card", repo_type="dataset")
    found = [info.id for info in api.list_datasets(filter="wanted")]
    assert found == [f"someone/set{number}" for number in range(1, 5)]


def test_every_fault(api: HfApi, hub: HubServer) -> None:
    for status in STATUSES:
        hub.faults.add("info", str(status))
        found = ask(hub, "GET", f"/api/datasets/{ID}")
        assert found[0] == status
        assert ask(hub, "GET", f"/api/datasets/{ID}")[0] == 200
    for kind in ("drop", "lost"):
        hub.faults.add("info", kind)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(hub, "GET", f"/api/datasets/{ID}")
    data = b"large"
    oid = hashlib.sha256(data).hexdigest()
    for route, method, path, body in (
        ("info", "GET", f"/api/datasets/{ID}", b""),
        ("head", "HEAD", f"/datasets/{ID}/resolve/main/.gitattributes", b""),
        ("lfs-put", "PUT", f"/lfs/datasets/{ID}/{oid}?size=5", data),
    ):
        fault = hub.faults.add(route, "slow")
        began = time.perf_counter()
        token = None if route == "lfs-put" else "Bearer hf_writer"
        assert ask(hub, method, path, body, Authorization=token)[0] == 200
        assert time.perf_counter() - began >= hub.stall
        assert fault.hits == 1
    hub.faults.add("branch", "lost")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(hub, "POST", f"/api/datasets/{ID}/branch/made", b"{}")
    assert "made" in hub.store.repos["datasets", ID].branches
    hub.faults.add("branch", "truncate")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(hub, "POST", f"/api/datasets/{ID}/branch/never", b"{" + b" " * 100 + b"}")
    assert "never" not in hub.store.repos["datasets", ID].branches
    hub.faults.add("head", "503", None)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(ID, ".gitattributes", repo_type="dataset")


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("# no YAML at all\n", None),
        ("---\nlicense: cc-by-4.0\ntags: [a, b]\n---\n", None),
        ("---\nlicense: other\nlicense_name: my-terms\n---\n", None),
        ("---\nlicense: other\n---\n", "license_name"),
        ("---\nlicense: other\nlicense_name: My Terms\n---\n", "license_name"),
        ("---\nlicense: CC BY\n---\n", "license"),
        ("---\ntags:\n- 3\n---\n", "tags"),
        ("---\nsize_categories: [huge]\n---\n", "size_categories"),
        ("---\nconfigs: {a: 1}\n---\n", "configs"),
        (
            "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: x-1\n    path: p\n---\n",
            "split",
        ),
        ("---\na: [1\n---\n", "Invalid YAML"),
        ("---\n!!python/tuple [1]\n---\n", "Invalid YAML"),
        ("---\n- a\n---\n", "mapping"),
    ],
)
def test_cards(card: str, problem: str | None, api: HfApi) -> None:
    found = card_problems(card, "datasets")
    assert (found == []) == (problem is None)
    assert problem is None or problem in found[0]
    operations = [CommitOperationAdd("README.md", card.encode())]
    if problem is None:
        api.create_commit(ID, operations, commit_message="card", repo_type="dataset")
    else:
        with pytest.raises((ValueError, BadRequestError), match=r"README\.md"):
            api.create_commit(ID, operations, commit_message="card", repo_type="dataset")
