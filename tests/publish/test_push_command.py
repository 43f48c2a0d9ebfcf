"""`moedd push-to-hub` and `moedd pull` as a person uses them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import traceback
from pathlib import Path

import factories
import hubfactories
import pytest
from hub_server import HubServer
from hub_store import Account
from hubfactories import log_in, the_repo
from runfactories import cli

from moedd.cli import main
from moedd_loaders.errors import MoeddError
from moedd_loaders.manifest import read_manifest
from moedd_publish.hub import PushOptions, push_to_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    hubfactories.make_set(path)
    return path


def test_what_is_printed(folder: Path, hub: HubServer) -> None:
    told = cli("push-to-hub", folder, "toy")
    assert told.code == 0, told.err
    commit = the_repo(hub).branches["main"]
    assert f"published: {hub.url}/datasets/someone/toy (public)" in told.out
    assert f"commit:    {commit} (version 1.0.0, tag v1.0.0); every checksum agrees" in told.out
    assert 'load_distilled("someone/toy@v1.0.0", fuse="mixup")' in told.out
    told = cli("push-to-hub", folder, "toy")
    assert told.code == 0
    assert f"someone/toy: already published at {commit}; nothing was changed" in told.out
    told = cli("push-to-hub", folder, "toy", "--quiet")
    assert (told.code, told.out, told.err) == (0, "", "")
    told = cli("push-to-hub", folder, "toy", "--json")
    assert told.err == ""
    said = json.loads(told.out)
    assert (said["repo"], said["sha"], said["tag"]) == ("someone/toy", commit, "v1.0.0")
    assert (said["changed"], said["visibility"]) == (False, "public")
    assert said["url"] == f"{hub.url}/datasets/someone/toy"


def test_a_dry_run_shows_everything(folder: Path, tmp_path: Path, hub: HubServer) -> None:
    manifest = read_manifest(folder)
    told = cli("push-to-hub", folder, "someone/toy", "--dry-run", "--private")
    assert told.code == 0, told.err
    assert "repository: someone/toy (private, to be created)" in told.out
    assert "version:    1.0.0, tag v1.0.0" in told.out
    for name, entry in manifest.files.items():
        assert any(
            line.split() == ["add", f"{entry.size:,}", name] for line in told.out.splitlines()
        )
    assert "--- README.md ---\n---\nlicense: mit" in told.out
    assert "# toy" in told.out
    assert "nothing was written" in told.out
    assert {asked.method for asked in hub.log} <= {"GET", "HEAD"}
    cli("push-to-hub", folder, "someone/toy")
    other = tmp_path / "other" / "toy"
    factories.make_set(other, rules=(factories.ROW_TILES,), seed=3)
    hub.log.clear()
    update = ("push-to-hub", other, "someone/toy", "--overwrite", "--set-version", "1.1.0")
    told = cli(*update, "--dry-run")
    kinds = {line.split()[2]: line.split()[0] for line in told.out.splitlines() if "/" in line
             and len(line.split()) == 3}  # fmt: skip
    assert kinds["webdataset/train-00001.tar"] == "delete"
    assert kinds["tensors/distilled.safetensors"] == "change"
    assert kinds["recipe/environment.txt"] == "unchanged"
    said = json.loads(cli(*update, "--dry-run", "--json").out)
    assert said["delete"].keys() >= {"webdataset/train-00001.tar"}
    assert said["card"].startswith("---\nlicense: mit")
    assert {asked.method for asked in hub.log} <= {"GET", "HEAD"}
    assert cli("push-to-hub", other, "someone/toy", "--dry-run").code == 4


def test_exit_codes_and_single_sentences(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("push-to-hub", folder, "someone/toy", "--tag", "x", "--no-tag").code == 2
    assert cli("push-to-hub", folder, "someone/toy", "--formats", "csv").code == 2
    log_in(monkeypatch, None)
    told = cli("push-to-hub", folder, "someone/toy")
    assert (told.code, "hf auth login" in told.sentence) == (3, True)
    log_in(monkeypatch, "hf_writer")
    (folder / "data" / "train-00000-of-00002.parquet").write_bytes(b"x")
    assert cli("push-to-hub", folder, "someone/toy").code == 5


@pytest.mark.parametrize("token", ["hf_VeryWellKeptSecret12345", "jwt.like-Secret_98765"])
def test_the_token_is_never_seen(
    token: str,
    folder: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not even where the server sends it back: in no output, log or traceback."""
    hub.store.accounts[token] = Account("someone", "write")
    log_in(monkeypatch, token)
    caplog.set_level(logging.DEBUG)
    for noisy in ("PIL", "matplotlib"):
        caplog.set_level(logging.INFO, logger=noisy)
    seen = []
    for route, kind in (
        ("whoami", "401"), ("info", "500"), ("create", "403"), ("preupload", "503"),
        ("lfs-batch", "403"), ("lfs-put", "500"), ("validate-yaml", "403"), ("commit", "409"),
        ("commit", "500"), ("tag", "403"),
    ):  # fmt: skip
        hub.faults.clear()
        hub.faults.add(route, kind, None, echo=True)
        told = cli("push-to-hub", folder, "someone/toy")
        assert told.code in (3, 4, 6), (route, told.err)
        seen += [told.out, told.err]
        if route in ("whoami", "commit"):
            with pytest.raises(MoeddError) as caught:
                push_to_hub(folder, "someone/toy", PushOptions(), say=seen.append)
            seen.append("".join(traceback.format_exception(caught.value)))
    hub.faults.clear()
    seen.append(cli("push-to-hub", folder, "someone/toy").out)
    hub.faults.add("head", "403", None, echo=True)
    seen.append(cli("pull", "someone/toy").err)
    assert any("you sent: " in text for text in seen), "the server's words are passed on"
    assert not [text for text in seen if token in text]
    assert token not in caplog.text


def test_a_fault_inside_is_a_traceback_without_the_token(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    token = "hf_VeryWellKeptSecret12345"
    hub.store.accounts[token] = Account("someone", "write")
    log_in(monkeypatch, token)
    monkeypatch.setattr("moedd_publish.hub._verify", broken)
    monkeypatch.setattr(sys, "argv", ["moedd", "push-to-hub", str(folder), "someone/toy"])
    with pytest.raises(ZeroDivisionError) as caught, contextlib.redirect_stderr(io.StringIO()):
        main()
    shown = "".join(traceback.format_exception(caught.value))
    assert "a mistake of ours" in shown
    assert token not in shown


def test_offline_and_without_xet(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = cli("push-to-hub", folder, "someone/toy")
    assert (told.code, "HF_HUB_OFFLINE is set" in told.sentence) == (6, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")  # put back afterwards
    constants.HF_HUB_DISABLE_XET = False  # the fixture puts it back
    told = cli("push-to-hub", folder, "someone/toy")
    assert (told.code, "--no-xet" in told.sentence) == (6, True)
    told = cli("push-to-hub", folder, "someone/toy", "--no-xet")
    assert told.code == 0, told.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_the_upload_on_a_terminal(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = cli("push-to-hub", folder, "someone/quiet")
    assert "%|" not in told.err
    screen = Terminal()
    monkeypatch.setattr(sys, "argv", ["moedd", "push-to-hub", str(folder), "someone/toy"])
    monkeypatch.setattr("moedd.publishing.terminal", lambda: True)
    with (
        contextlib.redirect_stderr(screen),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        main()
    assert "LFS files: 100%|" in screen.getvalue()


def test_pull(folder: Path, hub: HubServer, tmp_path: Path) -> None:
    cli("push-to-hub", folder, "someone/toy")
    commit = the_repo(hub).branches["main"]
    told = cli("pull", "someone/toy@v1.0.0")
    assert told.code == 0, told.err
    assert f"commit:  {commit}" in told.out
    assert "someone/toy@v1.0.0: toy 1.0.0, 12 images" in told.out
    said = json.loads(cli("pull", "someone/toy", "--json").out)
    assert said["sha"] == commit
    names = {p.name for p in Path(said["folder"]).rglob("*") if not p.is_dir()}
    assert names == {"moedd.json", "distilled.safetensors"}
    target = tmp_path / "copy"
    told = cli("pull", "someone/toy", "--to", target)
    assert told.code == 0, told.err
    assert (target / "README.md").read_text().startswith("---")
    assert cli("validate", target).code == 0
    assert cli("pull", "someone/toy", "--to", target).code == 4
    assert cli("pull", "toy").code == 2
    told = cli("push-to-hub", "someone/toy", "someone/again")
    assert told.code == 2
    assert "moedd pull someone/toy --to FOLDER" in told.sentence
    told = cli("validate", "someone/toy")
    assert told.code == 0
    assert "manifest and tensors; its other files are not here" in told.out
    assert cli("show", "someone/toy").code == 0


def test_a_copy_of_a_part_is_no_set(folder: Path, hub: HubServer, tmp_path: Path) -> None:
    cli("push-to-hub", folder, "someone/toy", "--formats", "safetensors")
    told = cli("pull", "someone/toy", "--to", tmp_path / "copy")
    assert told.code == 5
    assert "is missing" in told.sentence
    assert list(tmp_path.glob("*copy*")) == []


def test_a_dry_run_ends_as_the_push_would(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the rights that the push needs; nothing is written by either."""
    for token, repo_id, options in (
        (None, "someone/toy", ()),
        ("hf_wrong", "someone/toy", ()),
        ("hf_reader", "someone/toy", ()),
        ("hf_other", "someone/toy", ()),
        ("hf_writer", "nobody/toy", ()),
        ("hf_writer", "lab/toy", ()),
        ("hf_other", "someone/toy", ("--create-pr",)),
    ):
        log_in(monkeypatch, token)
        asked = ("push-to-hub", folder, repo_id, *options)
        told = cli(*asked, "--dry-run")
        assert {asked.method for asked in hub.log} <= {"GET", "HEAD"}
        assert hub.store.repos == {}
        assert told.code == cli(*asked).code == (0 if repo_id == "lab/toy" else 3), told.err
        if repo_id == "someone/toy":
            assert "log in" in told.sentence
        hub.reset()


def test_a_dry_run_needs_the_rights_that_are_used(
    folder: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("push-to-hub", folder, "someone/toy").code == 0
    other = tmp_path / "other" / "toy"
    hubfactories.make_set(other, seed=3)
    update = ("push-to-hub", other, "someone/toy", "--overwrite", "--set-version", "1.1.0")
    for token, options, code in (
        ("hf_reader", ("push-to-hub", folder, "someone/toy"), 0),  # nothing to be done
        ("hf_reader", update, 3),
        ("hf_reader", (*update, "--create-pr"), 3),
        ("hf_other", update, 3),
        ("hf_other", (*update, "--create-pr"), 0),
    ):
        log_in(monkeypatch, token)
        told = cli(*options, "--dry-run")
        assert (told.code, cli(*options).code) == (code, code), (token, options, told.err)


def test_a_tag_alone_is_told(folder: Path, hub: HubServer) -> None:
    """As where the push before broke off between the commit and its tag."""
    cli("push-to-hub", folder, "someone/toy")
    repo = the_repo(hub)
    commit = repo.tags.pop("v1.0.0")
    told = cli("push-to-hub", folder, "someone/toy")
    said = f"someone/toy: already published at {commit}; tagged v1.0.0; no file was changed"
    assert said in told.out
    assert repo.tags == {"v1.0.0": commit}
    del repo.tags["v1.0.0"]
    shown = json.loads(cli("push-to-hub", folder, "someone/toy", "--json").out)
    assert (shown["changed"], shown["tagged"], shown["tag"]) == (False, True, "v1.0.0")
    shown = json.loads(cli("push-to-hub", folder, "someone/toy", "--json").out)
    assert (shown["changed"], shown["tagged"], shown["tag"]) == (False, False, "v1.0.0")
