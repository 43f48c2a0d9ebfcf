"""What a published card says of its repository is so: version, licence, files, revisions."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import hubfactories
import pytest
from hub_server import HubServer
from hubfactories import push, the_repo
from runfactories import cli

from moedd_loaders.errors import ConflictError, UsageError
from moedd_loaders.manifest import read_manifest
from moedd_publish.hub import push_to_hub


def card(hub: HubServer, revision: str = "main") -> str:
    return the_repo(hub).resolve(revision).files["README.md"].data.decode()


def manifest(hub: HubServer, revision: str = "main") -> dict[str, Any]:
    data = the_repo(hub).resolve(revision).files["moedd.json"].data
    found: dict[str, Any] = json.loads(data)
    return found


def named(hub: HubServer, revision: str = "main") -> set[str]:
    """Every revision that a card names; fails if one is not there, or lacks what is said of it."""
    text, repo = card(hub, revision), the_repo(hub)
    tars = re.search(r'"hf://datasets/someone/toy(?:@([^/"]+))?/webdataset/\*\.tar"', text)
    loaded = re.findall(r'load_distilled\("someone/toy(?:@([^"]+))?"', text)
    if tars:
        files = repo.resolve(tars[1] or "main").files
        assert fnmatch.filter(files, "webdataset/*.tar"), tars[0]
    for found in loaded:
        if found != "COMMIT":
            assert "tensors/distilled.safetensors" in repo.resolve(found or "main").files
    return {*loaded, *([tars[1] or ""] if tars else [])} - {"", "COMMIT"}


def test_a_card_alone_changes_no_version_and_no_licence(folder: Path, hub: HubServer) -> None:
    push(folder)
    before = the_repo(hub).branches["main"]
    for option, value in (("--set-version", "2.0.0"), ("--license", "cc-by-4.0")):
        told = cli("push-to-hub", folder, "someone/toy", "--card-only", option, value)
        assert told.code == 2
        assert f"{option} {value} changes moedd.json" in told.sentence
    with pytest.raises(UsageError, match="--card-only"):
        push(folder, card_only=True, version="2.0.0")
    assert the_repo(hub).branches["main"] == before


def test_a_card_alone_tells_what_the_published_manifest_tells(folder: Path, hub: HubServer) -> None:
    """Also where the manifest here has been edited since."""
    push(folder, version="1.2.0", licence="cc-by-4.0")
    path = folder / "moedd.json"
    here = json.loads(path.read_text())
    assert (here["version"], here["source"]["license"]) == ("1.0.0", "mit")
    more = folder.parent / "more.jsonl"
    record = hubfactories.make_record(read_manifest(folder), network="vgg11")
    more.write_text(record.model_dump_json() + "\n")
    push(folder, card_only=True, results=more)
    assert "vgg11" in card(hub)
    assert "Licence of the source: **cc-by-4.0**" in card(hub)
    assert the_repo(hub).card()["license"] == manifest(hub)["source"]["license"] == "cc-by-4.0"
    assert "This is version 1.2.0" in card(hub)


@pytest.mark.parametrize(
    ("formats", "names"),
    [
        (("safetensors",), ["benchmarks"]),
        (("webdataset", "safetensors"), ["default"]),
        (("parquet", "safetensors"), ["default", "by_expert", "benchmarks"]),
    ],
)
def test_a_card_alone_tells_of_the_files_that_are_there(
    folder: Path, hub: HubServer, formats: tuple[str, ...], names: list[str]
) -> None:
    push(folder, formats=formats)
    before = card(hub)
    assert not push(folder, card_only=True).changed
    more = folder.parent / "more.jsonl"
    record = hubfactories.make_record(read_manifest(folder), network="vgg11")
    more.write_text(record.model_dump_json() + "\n")
    assert push(folder, card_only=True, results=more).changed
    assert [config["config_name"] for config in the_repo(hub).card()["configs"]] == names
    for line in ("with `datasets`", "From the tars", "With `safetensors`"):
        assert (line in card(hub)) == (line in before)
    assert hubfactories.missing_files(the_repo(hub).resolve("main")) == []
    told = cli("push-to-hub", folder, "someone/toy", "--card-only", "--formats", "parquet")
    assert (told.code, "give one of them" in told.sentence) == (2, True)


def test_more_formats_later_get_a_tag_of_their_own(folder: Path, hub: HubServer) -> None:
    first = push(folder, formats=("safetensors",))
    assert (first.tag, named(hub)) == ("v1.0.0", {"v1.0.0"})
    second = push(folder, formats=("webdataset", "safetensors"))
    repo = the_repo(hub)
    assert second.tag == "v1.0.0-webdataset"
    assert repo.tags == {"v1.0.0": first.sha, "v1.0.0-webdataset": second.sha}
    assert named(hub) == {"v1.0.0-webdataset"}
    # Again, and for the card alone: the same.
    for options in ({"formats": ("webdataset", "safetensors")}, {"card_only": True}):
        again = push(folder, **options)
        assert (again.changed, again.tag) == (False, "v1.0.0-webdataset")
    third = push(folder)
    assert third.tag == "v1.0.0-parquet-webdataset"
    assert repo.tags["v1.0.0-parquet-webdataset"] == third.sha
    # What has fewer formats needs no tag but the first.
    assert push(folder, formats=("safetensors",)).tag == "v1.0.0"
    assert named(hub) == {"v1.0.0"}
    assert len(repo.tags) == 3


def test_a_tag_that_was_asked_for_and_lacks_files_is_a_conflict(
    folder: Path, hub: HubServer
) -> None:
    push(folder, formats=("safetensors",), tag="mine")
    with pytest.raises(ConflictError, match=r"the tag mine .* no parquet and no webdataset"):
        push(folder, tag="mine")
    told: list[str] = []
    push(folder, tag="v1.0.0")
    assert push_to_hub(folder, "someone/toy", say=told.append).tag == "v1.0.0"
    assert "stays at" in told[-1]


def test_only_tags_that_are_there_are_named(folder: Path, hub: HubServer) -> None:
    assert push(folder, tag="").tag is None
    assert the_repo(hub).tags == {}
    assert named(hub) == set()
    assert "No tag names it" in card(hub)
    assert push(folder, tag="first").tag == "first"
    assert named(hub) == {"first"}
    assert push(folder).tag == "v1.0.0"
    assert named(hub) == {"v1.0.0"}
    # A tag that is there may be named whoever makes none now.
    pushed = push(folder, tag="")
    assert (pushed.changed, pushed.tag, named(hub)) == (False, None, {"v1.0.0"})


def test_a_branch_and_a_proposal_name_no_tag(folder: Path, hub: HubServer, tmp_path: Path) -> None:
    other = tmp_path / "other" / hubfactories.NAME
    hubfactories.make_set(other, seed=5)
    push(folder)
    options = ("--overwrite", "--set-version", "1.1.0")
    told = cli("push-to-hub", other, "someone/toy", *options, "--revision", "trial")
    assert told.code == 0, told.err
    repo = the_repo(hub)
    assert named(hub, "trial") == {"trial"}
    assert card(hub, "trial").count('revision="trial"') == 4
    assert f'load_distilled("someone/toy@{repo.branches["trial"]}"' in told.out
    told = cli("push-to-hub", other, "someone/toy", *options, "--create-pr")
    assert told.code == 0, told.err
    assert named(hub, "refs/pr/1") == set()
    assert f'load_distilled("someone/toy@{repo.pulls[1]}"' in told.out
    assert named(hub) == {"v1.0.0"}
