"""Sets read from their tars piece by piece: the same batches, in bounded memory, near and far."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brokensets import sign
from factories import COLUMN_TILES, ROW_TILES, make_rows, make_set, make_source
from rangeserver import RangeServer, serving
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from moedd_loaders import load_distilled, ranges, streamed
from moedd_loaders.errors import (
    AuthError,
    InvalidSetError,
    NetworkError,
    SetNotFoundError,
    UsageError,
)
from moedd_loaders.manifest import TENSORS, NoDecode
from moedd_loaders.streamed import StreamedImages
from moedd_loaders.streaming import open_files

RULES = (COLUMN_TILES, NoDecode(), ROW_TILES)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets: 3 experts of several shards each; one with soft labels."""
    folder = tmp_path_factory.mktemp("shelf")
    make_set(folder / "toy", ipc=3, shape=(3, 9, 8), rules=RULES, rows_per_shard=4)
    make_set(folder / "soft", soft=True)
    return folder


@pytest.fixture
def server(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(ranges, "_PAUSES", (0.01, 0.01, 0.01))
    with serving(shelf) as running:
        yield running


def same_epochs(a: Any, b: Any, epochs: int = 2) -> None:
    assert len(a) == len(b)
    for _ in range(epochs):
        for (x, y), (u, v) in zip(a.batches(16), b.batches(16), strict=True):
            assert torch.equal(x, u)
            assert torch.equal(y, v)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"fuse": "mixup"},
        {"fuse": "dirichlet", "normalize": True},
        {"fuse": "cutmix", "size": 12, "channels": 1},
        {"decode": False, "experts": [2, 0], "fuse": "mixup"},
        {"fuse": "mixup", "transform": lambda image: image**2, "dtype": torch.float64},
    ],
)
def test_a_streamed_set_is_the_set(shelf: Path, given: dict[str, Any]) -> None:
    whole, streamed_ = (load_distilled(shelf / "toy", streaming=s, **given) for s in (False, True))
    assert isinstance(streamed_.images, StreamedImages)
    assert torch.equal(whole.labels, streamed_.labels)
    assert torch.equal(whole.experts, streamed_.experts)
    assert whole.images.shape == streamed_.images.shape
    assert streamed_.origin == "folder"
    same_epochs(whole, streamed_)
    for i in (0, len(whole) - 1):
        assert torch.equal(whole[i][0], streamed_[i][0])


def test_soft_labels_without_the_images(shelf: Path, server: RangeServer) -> None:
    whole = load_distilled(shelf / "soft", fuse="mixup")
    for name in (shelf / "soft", f"{server.url}/soft"):
        same_epochs(whole, load_distilled(name, fuse="mixup", streaming=True))
        whole.set_epoch(0)
        whole = load_distilled(shelf / "soft", fuse="mixup")
    size = (shelf / "soft" / "tensors" / "distilled.safetensors").stat().st_size
    fetched = sum(end - start for start, end in server.parts(".safetensors"))
    assert 0 < fetched < size / 4


def test_over_http_by_range_requests_of_single_rows(shelf: Path, server: RangeServer) -> None:
    whole = load_distilled(shelf / "toy", fuse="mixup")
    ds = load_distilled(f"{server.url}/toy", fuse="mixup", streaming=True)
    assert ds.origin == "url"
    before = len(server.log)
    same_epochs(whole, ds)
    row = len(streamed.npy_prefix((3, 9, 8))) + 4 * 3 * 9 * 8
    parts = server.parts(".tar")
    assert all(start >= 0 for start, _ in parts)
    assert {end - start for method, _, start, end in server.log[before:]} == {row}
    # Anchors and partners come from everywhere: every row was asked for, each once thanks to the
    # cache, which holds this small set.
    rows = [(path, start) for _, path, start, _ in server.log[before:]]
    assert len(rows) == len(set(rows)) == 27
    assert server.parts(".safetensors") == []


def test_workers_open_connections_of_their_own(server: RangeServer) -> None:
    address = f"{server.url}/toy"
    expected = load_distilled(address, fuse="mixup", streaming=True)
    ds = load_distilled(address, fuse="mixup", streaming=True)
    ds[0]  # the parent's connections are open when it forks
    expected[0]
    want = list(DataLoader(expected, batch_size=16))
    loader = DataLoader(ds, batch_size=16, num_workers=2, multiprocessing_context="fork")
    for (a, b), (u, v) in zip(loader, want, strict=True):
        assert torch.equal(a, u)
        assert torch.equal(b, v)


def test_a_remote_index_is_kept_and_used(server: RangeServer, moedd_home: Path) -> None:
    load_distilled(f"{server.url}/toy", streaming=True)
    walked = len(server.parts(".tar"))
    kept = sorted((moedd_home / "cache" / "tar-index").glob("*.npy"))
    assert walked > 0
    assert len(kept) == 9
    load_distilled(f"{server.url}/toy", streaming=True)
    assert len(server.parts(".tar")) == walked
    with serving(server.folder) as elsewhere:  # the same hashes at another address
        load_distilled(f"{elsewhere.url}/toy", streaming=True)
        assert len(elsewhere.parts(".tar")) == walked
    kept[0].write_bytes(b"nonsense")
    load_distilled(f"{server.url}/toy", streaming=True)
    assert len(server.parts(".tar")) > walked


def test_walking_a_tar_of_large_rows_jumps_over_the_pixels(tmp_path: Path) -> None:
    source = make_source(2, (3, 80, 80))
    rows = [make_rows(source, [4, 4], seed=seed) for seed in range(2)]
    make_set(tmp_path / "wide", classes=2, shape=(3, 80, 80), experts=rows)
    with serving(tmp_path) as server:
        load_distilled(f"{server.url}/wide", streaming=True)
        parts = server.parts(".tar")
    size = sum(path.stat().st_size for path in (tmp_path / "wide").glob("webdataset/*.tar"))
    assert len(parts) <= 2 * 16
    assert sum(end - start for start, end in parts) < size / 8


def test_the_cache_is_bounded(shelf: Path) -> None:
    ds = load_distilled(shelf / "toy", streaming=True, fuse="mixup")
    assert isinstance(ds.images, StreamedImages)
    row = 4 * 3 * 9 * 8
    ds.images.cache_bytes = 5 * row + 1
    list(ds.batches(7))
    assert len(ds.images._cache) == 5
    again = pickle.loads(pickle.dumps(ds))
    assert len(again.images._cache) == 0
    assert torch.equal(again[3][0], ds[3][0])


MEMORY = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from moedd_loaders import load_distilled
lines = lambda: Path("/proc/self/status").read_text().splitlines()
peak = lambda: next(int(line.split()[1]) for line in lines() if line.startswith("VmHWM")) // 1024
load_distilled(sys.argv[2], fuse="mixup", streaming=True)[0]  # everything imported and warm
before = peak()
ds = load_distilled(sys.argv[1], fuse="mixup", streaming=sys.argv[3] == "stream", verify=False)
if sys.argv[3] == "stream":
    ds.images.cache_bytes = 1 << 20
for images, labels in ds.batches(4):
    pass
print(peak() - before)
"""


def test_memory_stays_bounded(tmp_path: Path) -> None:
    source = make_source(4, (3, 96, 96))
    flat = [make_rows(source, [60] * 4, seed=seed) for seed in range(2)]
    for rows in flat:  # noise would take long to compress
        rows.images.clamp_(0.5, 0.5)
    make_set(tmp_path / "large", classes=4, shape=(3, 96, 96), experts=flat)
    make_set(tmp_path / "small", shape=(3, 96, 96))
    pixels = 480 * 3 * 96 * 96 * 4 / 2**20

    def grown(how: str) -> int:
        folders = [str(tmp_path / name) for name in ("large", "small")]
        command = [sys.executable, "-c", MEMORY, *folders, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert pixels > 50
    assert grown("whole") > pixels
    assert grown("stream") < pixels / 3


def test_transient_faults_are_retried_and_others_said_in_one_sentence(
    server: RangeServer,
) -> None:
    server.faults = [503, 429, 500]
    load_distilled(f"{server.url}/toy", streaming=True)
    for faults, error, message in (
        ([500] * 9, NetworkError, "could not be read"),
        ([403] * 2, AuthError, "not yours to read"),
        ([410] * 2, NetworkError, "could not be read"),
    ):
        server.faults = faults
        with pytest.raises(error, match=message) as caught:
            load_distilled(f"{server.url}/toy", streaming=True)
        assert "\n" not in str(caught.value)
    server.faults = []
    with pytest.raises(SetNotFoundError, match=r"no http.*nothing/moedd\.json"):
        load_distilled(f"{server.url}/nothing", streaming=True)
    with pytest.raises(UsageError, match="offline is set"):
        load_distilled(f"{server.url}/toy", streaming=True, offline=True)
    with pytest.raises(UsageError, match="cannot be read here"):
        load_distilled("nosuch://place/toy", streaming=True)


def test_passwords_in_addresses_are_never_shown(server: RangeServer) -> None:
    address = server.url.replace("://", "://someone:secret@")
    for faults in ([403] * 9, [500] * 9):
        server.faults = faults
        with pytest.raises((AuthError, NetworkError)) as caught:
            load_distilled(f"{address}/toy", streaming=True)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_server_without_ranges_is_recognised_before_any_tar(server: RangeServer) -> None:
    server.ranges = False
    with pytest.raises(NetworkError, match="does not answer range requests"):
        load_distilled(f"{server.url}/toy", streaming=True)
    assert server.parts(".tar") == []


def damage(folder: Path, name: str, old: bytes, new: bytes) -> None:
    path = folder / name
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))


def test_damage_is_found_where_it_is(tmp_path: Path) -> None:
    tar = "webdataset/train-00001.tar"
    float_header = b"'descr': '<f4'"
    cases: list[tuple[Any, str]] = [
        (lambda f: (f / tar).unlink(), r"train-00001\.tar is missing"),
        (lambda f: (f / tar).write_bytes(b"x"), "has 1 bytes, its manifest says"),
        (
            lambda f: damage(f, tar, b"e01-c0001-k0001.cls", b"e01-c0001-k0009.cls"),
            "no e01-c0001-k0001.cls",
        ),
        (lambda f: damage(f, tar, float_header, b"'descr': '<i4'"), r"is not float32 \(3, 8, 8\)"),
        (
            lambda f: damage(f, "webdataset/_info.json", b"shard_lengths", b"short_lengths"),
            "is damaged",
        ),
        (lambda f: (f / "webdataset/_info.json").unlink(), "there is no .*_info.json"),
        (lambda f: damage(f, "webdataset/_info.json", b" 6,", b" 5,"), "rows too few"),
    ]
    for number, (harm, message) in enumerate(cases):
        folder = tmp_path / f"set{number}"
        make_set(folder)
        harm(folder)
        with pytest.raises(InvalidSetError, match=message) as caught:
            list(load_distilled(folder, streaming=True).batches(50))
        assert "\n" not in str(caught.value)


def huge(raw: dict[str, Any]) -> None:
    raw["experts"][0].update(stored_per_class=[10**9] * 3, decoded_per_class=[4 * 10**9] * 3)


def huge_everywhere(raw: dict[str, Any]) -> None:
    huge(raw)
    raw["files"]["tensors/distilled.safetensors"]["size"] = 10**15


EDITS: list[tuple[Any, str]] = [
    (lambda raw: raw["source"].update(std=[0.2, 0.0, 0.2]), "a positive std"),
    (lambda raw: raw["source"].update(mean=[0.5, float("nan"), 0.2]), "finite numbers"),
    (lambda raw: raw["source"].update(classes=["a", "b", "a"]), "'a' more than once"),
    (lambda raw: raw["experts"][0]["decode"].update(factor=9), "decodes 9x9 tiles"),
    (lambda raw: raw["experts"][0]["decode"].update(order="row-major"), "training_sha256 is"),
    (huge, "counts 3,000,000,006 images, whose pixels are"),
    (
        lambda raw: raw["experts"][0].update(
            stored_per_class=[-2, 4, 4], decoded_per_class=[-8, 16, 16]
        ),
        "negative count",
    ),
]


@pytest.mark.parametrize("number", range(len(EDITS)))
def test_an_edited_manifest_is_refused_as_it_is_in_memory(tmp_path: Path, number: int) -> None:
    edit, message = EDITS[number]
    folder = tmp_path / "toy"
    make_set(folder)
    sign(folder, edit)
    with serving(tmp_path) as server:
        for name, streaming in ((folder, False), (folder, True), (f"{server.url}/toy", True)):
            with pytest.raises(InvalidSetError, match=message) as caught:
                load_distilled(name, streaming=streaming)
            assert "\n" not in str(caught.value)


def test_counts_that_no_tar_has_room_for(tmp_path: Path) -> None:
    make_set(tmp_path / "toy")
    sign(tmp_path / "toy", huge_everywhere)
    for verify in (True, False):
        with pytest.raises(InvalidSetError, match=r"images of expert 0.* lists its tars with"):
            load_distilled(tmp_path / "toy", streaming=True, verify=verify)


def test_what_no_hash_of_the_rows_covers_is_in_the_checksums(tmp_path: Path) -> None:
    make_set(tmp_path / "toy")
    damage(tmp_path / "toy", "moedd.json", b'"class a"', b'"class x"')
    with serving(tmp_path) as server:
        address = f"{server.url}/toy"
        for name, streaming in ((tmp_path / "toy", False), (tmp_path / "toy", True), (address, 1)):
            with pytest.raises(InvalidSetError, match=r"moedd\.json was edited: its sha256 is not"):
                load_distilled(name, streaming=bool(streaming))
            load_distilled(name, streaming=bool(streaming), verify=False)
        (tmp_path / "toy" / "checksums.sha256").unlink()
        assert load_distilled(address, streaming=True).classes[0] == "class x"


def test_soft_labels_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "soft"
    for value, message in ((np.nan, "'soft_labels' holds NaN"), (9.0, "no probability")):
        make_set(folder, soft=True, overwrite=True)
        tensors = load_file(folder / TENSORS)
        tensors["soft_labels"][4, 1] = value
        save_file(tensors, folder / TENSORS)
        sign(folder)
        for streaming in (False, True):
            with pytest.raises(InvalidSetError, match=message):
                load_distilled(folder, streaming=streaming)


def test_pixels_that_are_not_finite(tmp_path: Path) -> None:
    make_set(tmp_path / "nan")
    path = tmp_path / "nan" / "webdataset" / "train-00001.tar"
    data = path.read_bytes()
    at = data.index(streamed.npy_prefix((3, 8, 8))) + len(streamed.npy_prefix((3, 8, 8)))
    path.write_bytes(data[:at] + np.float32(np.nan).tobytes() + data[at + 4 :])
    ds = load_distilled(tmp_path / "nan", streaming=True)
    with pytest.raises(InvalidSetError, match="NaN"):
        ds[24]


def test_addresses() -> None:
    files, origin = open_files("someone/cifar10-idc-5x2@v1.0.0")
    assert (files.where("moedd.json"), origin) == (
        "hf://datasets/someone/cifar10-idc-5x2@v1.0.0/moedd.json",
        "hub",
    )
    files, origin = open_files("digits-idm-5x2")
    assert (files.remote, origin) == (False, "bundled")
    assert json.loads(files.fetch("moedd.json"))["name"] == "digits-idm-5x2"
    with pytest.raises(SetNotFoundError):
        open_files("no-such-set")


def test_any_file_system_that_fsspec_knows(shelf: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(shelf / "toy"), "/shelf/toy", recursive=True)
    same_epochs(
        load_distilled(shelf / "toy", fuse="mixup"),
        load_distilled("memory://shelf/toy", fuse="mixup", streaming=True),
    )
