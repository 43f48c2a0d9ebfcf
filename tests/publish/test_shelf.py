"""Sets at addresses of fsspec: written, read again by the same address, never half."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import factories
import hubfactories
import pytest
import torch
from runfactories import cli

from moedd_loaders import load_distilled
from moedd_loaders.errors import (
    AuthError,
    ConflictError,
    InvalidSetError,
    MoeddWarning,
    NetworkError,
    SetNotFoundError,
    UsageError,
)
from moedd_loaders.manifest import read_manifest
from moedd_loaders.records import records_in
from moedd_loaders.resolve import resolve
from moedd_loaders.validate import validate_set
from moedd_publish.shelf import push_to_url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    hubfactories.make_set(path)
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """A local S3 (moto's server)."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of an empty bucket, which the standard variables lead to."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    system = s3fs.S3FileSystem()
    if not system.exists(name):
        system.mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="module")
def gcs_server() -> Iterator[str]:
    """A local Google Cloud Storage with one bucket."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def test_gcs_and_back(folder: Path, gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gcsfs

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs.GCSFileSystem.clear_instance_cache()
    url = "gs://bucket/sets/toy"
    told = cli("push", folder, url)
    assert told.code == 0, told.err
    assert f'load_distilled("{url}", fuse="mixup")' in told.out
    loaded = load_distilled(url, fuse="mixup")
    assert torch.equal(loaded.images, load_distilled(folder).images)
    assert not push_to_url(folder, url).changed
    other = folder.parent / "other" / "toy"
    factories.make_set(other, seed=4, rules=(factories.ROW_TILES,))
    made = push_to_url(other, url, overwrite=True, version="1.1.0")
    assert {"webdataset/train-00001.tar", "benchmarks/results.jsonl"} <= set(made.deleted)
    assert torch.equal(load_distilled(url).images, load_distilled(other).images)
    with pytest.raises(SetNotFoundError, match="there is no set at"):
        load_distilled("gs://bucket/nothing")
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("gs://b/toy", "gcsfs", "gcs"), ("gcs://b/toy", "gcsfs", "gcs"), ("s3://b/toy", "s3fs", "s3")],
)
def test_a_package_that_is_missing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, url.split(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    for use in (lambda: push_to_url(folder, url), lambda: load_distilled(url)):
        with pytest.raises(UsageError, match=rf"pip install moedd\[{extra}\]"):
            use()


def test_s3_and_back(folder: Path, bucket: str) -> None:
    url = f"{bucket}/sets/toy"
    told = cli("push", folder, url)
    assert told.code == 0, told.err
    assert f'load_distilled("{url}", fuse="mixup")' in told.out
    loaded = load_distilled(url, fuse="mixup")
    assert loaded.origin == "url"
    assert torch.equal(loaded.images, load_distilled(folder).images)
    told = cli("push", folder, url)
    assert "already published as version 1.0.0; nothing was changed" in told.out
    assert cli("show", url).code == 0
    with pytest.raises(SetNotFoundError, match="there is no set at"):
        load_distilled(f"{bucket}/nothing")
    with pytest.raises((SetNotFoundError, AuthError, NetworkError)):
        push_to_url(folder, "s3://no-such-bucket-anywhere/toy")


def test_s3_that_does_not_answer(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    url = f"{bucket}/sets/toy"
    push_to_url(folder, url)
    load_distilled(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.warns(MoeddWarning, match="the copy fetched before"):
        assert resolve(url).folder.is_dir()
    with pytest.raises(NetworkError):
        resolve(url, offline=False)
    with pytest.raises(NetworkError):
        resolve(f"{bucket}/sets/other")


def test_file_and_back(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "shelf" / "toy"
    url = f"file://{target}"
    first = push_to_url(folder, url)
    assert first.changed
    validate_set(target)
    assert (target / "README.md").read_text().count(f'load_distilled("{url}"') == 1
    again = push_to_url(folder, url)
    assert (again.changed, again.written) == (False, ())
    loaded = load_distilled(url)
    assert torch.equal(loaded.images, load_distilled(folder).images)
    assert len(load_distilled(url, offline=True)) == len(loaded)
    with pytest.raises(NetworkError, match="not fetched before"):
        load_distilled("file:///never/seen", offline=True)
    with pytest.raises(SetNotFoundError, match="moedd push"):
        load_distilled("file:///never/seen")


def test_other_images_come_as_a_higher_version(folder: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shelf"
    push_to_url(folder, url)
    old = load_distilled(url).images
    other = tmp_path / "other" / "toy"
    factories.make_set(other, seed=4, rules=(factories.ROW_TILES,))
    with pytest.raises(ConflictError, match=r"--overwrite --set-version 1\.1\.0"):
        push_to_url(other, url)
    made = push_to_url(other, url, overwrite=True, version="1.1.0")
    assert "webdataset/train-00001.tar" in made.deleted
    assert validate_set(tmp_path / "shelf").version == "1.1.0"
    assert load_distilled(url).images.shape != old.shape or not torch.equal(
        load_distilled(url).images, old
    )


def test_a_push_that_breaks_off_leaves_no_set_and_goes_on(folder: Path, tmp_path: Path) -> None:
    """At every file in turn: a reader finds no set, or the whole new one; the rerun completes."""
    other = tmp_path / "other" / "toy"
    hubfactories.make_set(other, seed=4)
    options: dict[str, Any] = {"overwrite": True, "version": "1.1.0"}
    totals = []
    stop = 0
    while not totals or stop < totals[0]:
        stop += 1
        url = f"file://{tmp_path}/shelf{stop}"
        push_to_url(folder, url)

        def broken(name: str, done: int, total: int, at: int = stop) -> None:
            totals.append(total)
            if done == at:
                raise OSError("the line is dead")

        with pytest.raises(NetworkError, match="the line is dead"):
            push_to_url(other, url, on_file=broken, **options)
        if stop < totals[0]:
            with pytest.raises(SetNotFoundError):
                load_distilled(url)
        else:
            load_distilled(url)
        push_to_url(other, url, **options)
        assert validate_set(tmp_path / f"shelf{stop}").version == "1.1.0"
    assert stop > 8


def test_a_reader_meets_a_replacement(folder: Path, tmp_path: Path) -> None:
    """Tensors that are not the manifest's are refused, and nothing of them is kept."""
    url = f"file://{tmp_path}/shelf"
    push_to_url(folder, url)
    path = tmp_path / "shelf" / "tensors" / "distilled.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(InvalidSetError, match="sha256 differs"):
        load_distilled(url)
    path.write_bytes(whole)
    assert len(load_distilled(url)) > 0
    # Repaired by pushing again, too, although the manifest is the same.
    path.write_bytes(b"x")
    assert push_to_url(folder, url).written == ("tensors/distilled.safetensors", "moedd.json")
    validate_set(tmp_path / "shelf")


def test_what_is_no_shelf(folder: Path, tmp_path: Path) -> None:
    for url, error, message in (
        ("nothing://a/b", UsageError, "cannot be read here"),
        ("hf://datasets/a/b", UsageError, "push-to-hub"),
    ):
        with pytest.raises(error, match=message):
            push_to_url(folder, url)
    assert "push-to-hub" in cli("push", folder, "someone/toy").sentence
    (tmp_path / "full" / "data").mkdir(parents=True)
    (tmp_path / "full" / "data" / "x.csv").write_text("1")
    with pytest.raises(ConflictError, match=r"holds data/x\.csv"):
        push_to_url(folder, f"file://{tmp_path}/full")
    source = factories.make_source().model_copy(update={"license": "unknown"})
    rows = [factories.make_rows(source, [1, 1, 1])]
    factories.make_set(tmp_path / "bare", experts=rows, source=source)
    with pytest.raises(UsageError, match="--license"):
        push_to_url(tmp_path / "bare", f"file://{tmp_path}/s")
    assert not (tmp_path / "s").exists()


def test_a_password_in_an_address_is_not_shown() -> None:
    from moedd_loaders.shelf import explain_shelf, plain_url

    url = "https://me:secret@host.org/set"
    assert plain_url(url) == "https://host.org/set"
    for error in (OSError(f"no {url}"), FileNotFoundError(url), PermissionError(url)):
        assert "secret" not in str(explain_shelf(error, url, "reading"))
    with pytest.raises(NetworkError) as caught:
        resolve("http://me:secret@127.0.0.1:9/set")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:s@cret@host.org/set", "https://host.org/set"),
        ("https://me:s@cr@et@host.org:80/set@2", "https://host.org:80/set@2"),
        ("https://me:s/cret@host.org/set", "https://host.org/set"),
        ("https://secret@host.org/set", "https://host.org/set"),
        ("sftp://me:@host.org/set", "sftp://host.org/set"),
        ("https://host.org:8080/a@b/set", "https://host.org:8080/a@b/set"),
        ("s3://bucket/a@b/set", "s3://bucket/a@b/set"),
        ("file:///home/me@work/set", "file:///home/me@work/set"),
    ],
)
def test_no_part_of_a_password_is_shown(url: str, shown: str) -> None:
    from moedd_loaders.shelf import explain_shelf, plain_url

    assert plain_url(url) == shown
    said = str(explain_shelf(OSError(f"no {url} here, ask a@b.org"), url, "reading"))
    assert f"no {shown} here, ask a@b.org" in said


def test_a_name_of_the_hub_as_an_address(hub: Any, folder: Path) -> None:
    from moedd_publish.hub import push_to_hub

    push_to_hub(folder, "someone/toy", say=lambda _: None)
    found = resolve("hf://datasets/someone/toy@v1.0.0")
    assert found.origin == "hub"
    assert read_manifest(found.folder).name == "toy"


def test_records_that_are_there_stay(folder: Path, tmp_path: Path) -> None:
    """Whoever has them no longer; records of other images go with those."""
    url = f"file://{tmp_path}/shelf"
    target = tmp_path / "shelf"
    manifest = read_manifest(folder)
    more = tmp_path / "more.jsonl"
    record = hubfactories.make_record(manifest, network="vgg11")
    more.write_text(record.model_dump_json() + "\n")
    push_to_url(folder, url, results=more)
    published = records_in(target / "benchmarks" / "results.jsonl")
    assert len(published) == 9
    assert not push_to_url(folder, url).changed
    results = folder / "benchmarks" / "results.jsonl"
    later = hubfactories.make_record(manifest, network="resnet18")
    results.write_text(later.model_dump_json() + "\n")
    push_to_url(folder, url)
    assert records_in(target / "benchmarks" / "results.jsonl") == [*published, later]
    said = (target / "README.md").read_text()
    assert "vgg11" in said
    assert "resnet18" in said
    other = tmp_path / "other" / "toy"
    factories.make_set(other, seed=4)
    (other / "assets" / "preview.png").unlink()
    made = push_to_url(other, url, overwrite=True, version="1.1.0")
    assert "benchmarks/results.jsonl" in made.deleted
    assert not list((target / "benchmarks").glob("*"))
    assert not (target / "assets" / "preview.png").exists()
    assert "vgg11" not in (target / "README.md").read_text()
    validate_set(target)
