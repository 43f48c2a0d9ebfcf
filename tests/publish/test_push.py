"""`push_to_hub` against a Hub: what arrives, what is refused, what a second push does."""

from __future__ import annotations

import json
from pathlib import Path

import factories
import hubfactories
import pytest
from hub_server import HubServer
from hub_store import File
from hubfactories import SILENT, push, the_repo, writes

from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    InvalidSetError,
    UsageError,
)
from moedd_loaders.manifest import read_manifest
from moedd_publish.hub import PushOptions, plan_push


def test_one_commit_holds_all_of_it_under_a_tag(folder: Path, hub: HubServer) -> None:
    pushed = push(folder)
    repo = the_repo(hub)
    newest, first = repo.history()
    assert first.title == "initial commit"
    assert newest.title == f"{hubfactories.NAME} 1.0.0 (moedd)"
    assert (pushed.sha, pushed.changed, pushed.tag) == (newest.oid, True, "v1.0.0")
    assert repo.tags == {"v1.0.0": newest.oid}
    manifest = read_manifest(folder)
    for name in manifest.files:
        assert newest.files[name].data == (folder / name).read_bytes()
    added = {*manifest.files, "README.md", "moedd.json", "checksums.sha256", "assets/preview.png"}
    results = {"benchmarks/results.jsonl", "benchmarks/results.parquet"}
    assert set(newest.files) == added | results | {".gitattributes"}
    sums = newest.files["checksums.sha256"].data.decode()
    assert f"{newest.files['moedd.json'].sha256}  moedd.json\n" in sums
    # The large files went first, the commit was checked, then tagged.
    assert writes(hub.log)[0] == "create"
    assert writes(hub.log)[-2:] == ["commit", "tag"]
    asked = [a.route for a in hub.log]
    assert "tree" in asked[asked.index("commit") : asked.index("tag")]


def test_a_second_push_changes_nothing(folder: Path, hub: HubServer) -> None:
    first = push(folder)
    hub.log.clear()
    second = push(folder)
    assert not second.changed
    assert (second.sha, second.tag) == (first.sha, first.tag)
    assert writes(hub.log) == []
    # The same images made a second time, at another time, are no other set.
    text = (folder / "moedd.json").read_text()
    again = folder.parent / "again" / hubfactories.NAME
    hubfactories.make_set(again, created="2027-01-01T00:00:00Z")
    assert text != (again / "moedd.json").read_text()
    assert not push(again).changed


def test_other_images_need_overwrite_and_a_higher_version(
    folder: Path, other: Path, hub: HubServer
) -> None:
    first = push(folder)
    with pytest.raises(ConflictError, match=r"--overwrite --set-version 1\.1\.0"):
        push(other)
    with pytest.raises(ConflictError, match="expected a higher version"):
        push(other, overwrite=True)
    with pytest.raises(ConflictError, match="expected a higher version"):
        push(other, overwrite=True, version="0.9.0")
    with pytest.raises(ConflictError, match="--overwrite"):
        push(other, version="1.1.0")
    with pytest.raises(UsageError, match=r"expected X\.Y\.Z"):
        push(other, overwrite=True, version="two")
    assert the_repo(hub).branches["main"] == first.sha
    pushed = push(other, overwrite=True, version="1.1.0")
    repo = the_repo(hub)
    assert repo.tags == {"v1.0.0": first.sha, "v1.1.0": pushed.sha}
    # Shards that the new set does not have went in the same commit.
    assert repo.resolve("main").parent == first.sha
    assert "webdataset/train-00001.tar" in pushed.deleted
    assert hubfactories.broken_states(repo) == []
    assert json.loads(repo.resolve("main").files["moedd.json"].data)["version"] == "1.1.0"
    # And again: idempotent, also without saying the version once more.
    assert not push(other, overwrite=True, version="1.1.0").changed
    assert not push(other).changed
    with pytest.raises(ConflictError, match="is at version"):
        push(other, version="1.0.1")


def test_a_tag_on_other_images_is_a_conflict(folder: Path, hub: HubServer) -> None:
    push(folder, tag="")
    repo = the_repo(hub)
    assert repo.tags == {}
    repo.tags["v1.0.0"] = repo.history()[-1].oid
    with pytest.raises(ConflictError, match=r"the tag v1\.0\.0 .* other images"):
        push(folder)
    assert push(folder, tag="first").tag == "first"
    assert repo.tags["first"] == repo.branches["main"]


def test_a_new_record_updates_the_card_and_leaves_the_tag(folder: Path, hub: HubServer) -> None:
    first = push(folder)
    manifest = read_manifest(folder)
    more = folder.parent / "more.jsonl"
    more.write_text(hubfactories.make_record(manifest, network="vgg11").model_dump_json() + "\n")
    pushed = push(folder, results=more)
    assert pushed.changed
    added = {"README.md", "benchmarks/results.jsonl", "benchmarks/results.parquet"}
    assert set(pushed.added) == added
    repo = the_repo(hub)
    assert repo.tags == {"v1.0.0": first.sha}
    assert "vgg11" in repo.resolve("main").files["README.md"].data.decode()
    # Records that were published stay, whoever has the file no longer.
    assert not push(folder).changed


def test_records_of_other_images_are_refused(folder: Path, hub: HubServer) -> None:
    manifest = read_manifest(folder)
    foreign = folder.parent / "foreign.jsonl"
    record = hubfactories.make_record(manifest, set_hash="f" * 64)
    foreign.write_text(record.model_dump_json() + "\n")
    with pytest.raises(InvalidSetError, match="record 1, is of other images"):
        push(folder, results=foreign)
    thin = hubfactories.make_record(manifest, hardware="", versions={})
    foreign.write_text(thin.model_dump_json() + "\n")
    with pytest.raises(InvalidSetError, match="says nothing of hardware, versions"):
        push(folder, results=foreign)
    with pytest.raises(UsageError, match="there is no file"):
        push(folder, results=Path("nowhere.jsonl"))
    beside = folder / "benchmarks" / "results.jsonl"
    beside.write_text(beside.read_text() + record.model_dump_json() + "\n")
    with pytest.raises(InvalidSetError, match=r"results\.jsonl, record 9, is of other images"):
        push(folder)
    assert hub.store.repos == {}


def test_the_licence_must_be_said(tmp_path: Path, hub: HubServer) -> None:
    source = factories.make_source().model_copy(update={"license": "unknown"})
    rows = [factories.make_rows(source, [1, 1, 1])]
    folder = tmp_path / "toy"
    factories.make_set(folder, experts=rows, source=source)
    with pytest.raises(UsageError, match="--license"):
        push(folder)
    assert hub.store.repos == {}
    push(folder, licence="https://example.org/terms")
    card = the_repo(hub).card()
    assert (card["license"], card["license_link"]) == ("other", "https://example.org/terms")
    manifest = json.loads(the_repo(hub).resolve("main").files["moedd.json"].data)
    assert manifest["source"]["license"] == "https://example.org/terms"
    assert not push(folder).changed


def test_private_and_public_are_read_back(folder: Path, hub: HubServer) -> None:
    assert push(folder, private=True).private
    with pytest.raises(ConflictError, match=r"is private and --public was given"):
        push(folder, private=False)
    assert not push(folder, "someone/open", private=False).private
    with pytest.raises(ConflictError, match=r"is public and --private was given.*nothing was sent"):
        push(folder, "someone/open", private=True)
    hub.store.private_by_default = True  # an organisation's rule
    pushed = push(folder, "lab/toy")
    assert pushed.private
    with pytest.raises(ConflictError, match="is private and --public"):
        plan_push(folder, "lab/toy", PushOptions(private=False), say=SILENT)


def test_a_dry_run_writes_nothing(folder: Path, other: Path, hub: HubServer) -> None:
    remote, plan = plan_push(folder, "toy", say=SILENT)
    assert (remote.repo_id, remote.exists) == ("someone/toy", False)
    assert {item.path for item in plan.adds} >= {"moedd.json", "README.md"}
    assert writes(hub.log) == []
    assert hub.store.repos == {}
    push(folder)
    hub.log.clear()
    options = PushOptions(overwrite=True, version="2.0.0")
    remote, plan = plan_push(other, "someone/toy", options, say=SILENT)
    assert plan.tag == "v2.0.0"
    assert "webdataset/train-00001.tar" in plan.deletes
    assert [item.path for item in plan.unchanged] == ["recipe/config.json"] or plan.unchanged
    with pytest.raises(ConflictError):
        plan_push(other, "someone/toy", say=SILENT)
    assert writes(hub.log) == []


def test_card_only(folder: Path, other: Path, hub: HubServer) -> None:
    with pytest.raises(ConflictError, match="without --card-only"):
        push(folder, card_only=True)
    assert hub.store.repos == {}
    push(folder)
    before = dict(the_repo(hub).resolve("main").files)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMy own words.\n")
    pushed = push(folder, card_only=True)
    assert pushed.added == ("README.md",)
    after = dict(the_repo(hub).resolve("main").files)
    assert "My own words." in after.pop("README.md").data.decode()
    assert after == {name: file for name, file in before.items() if name != "README.md"}
    with pytest.raises(ConflictError, match="are not those of"):
        push(other, card_only=True)
    with pytest.raises(UsageError, match="--card-only"):
        push(folder, card_only=True, overwrite=True)


@pytest.mark.parametrize(
    ("formats", "there", "configs"),
    [
        (("safetensors",), {"tensors", "recipe"}, ["benchmarks"]),
        (
            ("parquet", "safetensors"),
            {"data", "tensors", "recipe"},
            ["default", "by_expert", "benchmarks"],
        ),
        (("webdataset", "safetensors"), {"webdataset", "tensors", "recipe"}, ["default"]),
    ],
)
def test_formats(
    folder: Path,
    hub: HubServer,
    formats: tuple[str, ...],
    there: set[str],
    configs: list[str],
) -> None:
    push(folder)
    pushed = push(folder, formats=formats)
    commit = the_repo(hub).resolve("main")
    folders = {name.split("/")[0] for name in commit.files if "/" in name}
    assert folders - {"assets", "benchmarks"} == there
    assert pushed.deleted
    assert [config["config_name"] for config in the_repo(hub).card()["configs"]] == configs
    sums = commit.files["checksums.sha256"].data.decode().split()[1::2]
    assert {name.split("/")[0] for name in sums} == there | {"moedd.json"}
    assert set(sums) <= set(commit.files)


def test_what_is_not_of_a_set_is_not_overwritten(folder: Path, hub: HubServer) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("someone/toy", repo_type="dataset")
    push(folder, tag="")  # a repository made on the website is fine
    repo = the_repo(hub)
    head = repo.resolve("main")
    files = {"data/train-00000-of-00001.parquet": File(b"theirs"), "notes.txt": File(b"kept")}
    theirs = repo.add("theirs", {**files, "README.md": File(b"# Theirs\n")}, head)
    repo.branches["main"] = theirs.oid
    with pytest.raises(ConflictError, match="which is not of a set that can be read"):
        push(folder)
    pushed = push(folder, overwrite=True)
    assert pushed.deleted == ("data/train-00000-of-00001.parquet",)
    after = repo.resolve("main").files
    assert after["notes.txt"].data == b"kept"
    assert "# Theirs" in after["README.md"].data.decode()


def test_a_collection(folder: Path, hub: HubServer) -> None:
    from huggingface_hub import create_collection

    slug = create_collection("moedd distilled sets", namespace="someone").slug
    push(folder, collection=slug)
    push(folder, collection=slug)
    assert [item["id"] for item in hub.store.collections[slug]["items"]] == ["someone/toy"]
    with pytest.raises(AuthError, match="is published, but there is no collection"):
        push(folder, collection="someone/none-0000")


def test_records_and_preview_of_other_images_go_with_them(
    folder: Path, tmp_path: Path, hub: HubServer
) -> None:
    first = push(folder)
    bare = tmp_path / "bare" / hubfactories.NAME
    factories.make_set(bare, seed=5)
    (bare / "assets" / "preview.png").unlink()
    pushed = push(bare, overwrite=True, version="1.1.0")
    repo = the_repo(hub)
    gone = {"benchmarks/results.jsonl", "benchmarks/results.parquet", "assets/preview.png"}
    assert gone <= set(pushed.deleted)
    assert gone <= set(repo.resolve(first.sha).files)
    assert gone.isdisjoint(repo.resolve("main").files)
    assert repo.resolve("main").parent == first.sha
    assert "benchmarks" not in {config["config_name"] for config in repo.card()["configs"]}
    assert hubfactories.missing_files(repo.resolve("main")) == []
    # Left there by somebody else: records of other images under these ones.
    head = repo.resolve("main")
    old = repo.resolve(first.sha).files["benchmarks/results.jsonl"]
    files = {**head.files, "benchmarks/results.jsonl": old}
    repo.branches["main"] = repo.add("theirs", files, head).oid
    assert push(bare).deleted == ("benchmarks/results.jsonl",)
    # The same images from a copy without preview and records: what is there stays.
    push(folder, "someone/whole")
    (folder / "assets" / "preview.png").unlink()
    (folder / "benchmarks" / "results.jsonl").unlink()
    assert not push(folder, "someone/whole").changed
