"""What a published card says of its repository is so: version, licence, files, revisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hubfactories
import pytest
from hub_server import HubServer
from hubfactories import the_repo
from runfactories import cli

from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import read_manifest
from moedd_publish.hub import Pushed, PushOptions, push_to_hub

SILENT: Any = lambda _: None  # noqa: E731


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / hubfactories.NAME
    hubfactories.make_set(path)
    return path


def push(folder: Path, repo_id: str = "someone/toy", **options: Any) -> Pushed:
    return push_to_hub(folder, repo_id, PushOptions(**options), say=SILENT)


def card(hub: HubServer, revision: str = "main") -> str:
    return the_repo(hub).resolve(revision).files["README.md"].data.decode()


def manifest(hub: HubServer, revision: str = "main") -> dict[str, Any]:
    data = the_repo(hub).resolve(revision).files["moedd.json"].data
    found: dict[str, Any] = json.loads(data)
    return found


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
    assert "This is version 1.2.0." in card(hub)


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
