"""Sets made to mislead or to harm a reader: each is one sentence, and none is unpacked."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brokensets import PARQUET, TAR, reparquet, retar, sign
from PIL import Image
from safetensors.numpy import load_file, save_file

from moedd_loaders import setfiles
from moedd_loaders.dataset import load_distilled
from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import TENSORS, TrainedIn, read_manifest
from moedd_loaders.parquetrows import parquet_rows
from moedd_loaders.read import read_tensors
from moedd_loaders.validate import validate_set


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "toy-idm-2x2"
    factories.make_set(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "toy-idm-2x2"))


def fault(folder: Path, said: str) -> None:
    with pytest.raises(InvalidSetError, match=said) as caught:
        validate_set(folder)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def verdict(folder: Path) -> str | None:
    """What the gate and the reader say; anything but their own error is a fault of theirs."""
    try:
        read_tensors(folder, validate_set(folder))
    except InvalidSetError as error:
        return str(error)
    return None


def manifest(folder: Path, change: Callable[[str], str | bytes]) -> None:
    path = folder / "moedd.json"
    found = change(path.read_text())
    path.write_bytes(found if isinstance(found, bytes) else found.encode())


# The manifest itself.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.encode("utf-16"), r"moedd\.json is not UTF-8 text \(byte 0\)"),
        (lambda text: text.replace('"mit"', '"caf\xe9"').encode("latin-1"), "is not UTF-8 text"),
        (lambda text: text[:-30], r"moedd\.json is not JSON"),
        (lambda text: "[" * 100_000, r"moedd\.json is not JSON"),
        (lambda text: '{"a": ' + "9" * 5000 + "}", r"moedd\.json is not JSON"),
        (lambda text: "[]", "holds a JSON list, expected an object"),
        (lambda text: text.replace("moedd/1", "moedd/2"), "pip install -U moedd"),
        (lambda text: text.replace("moedd/1", "moedd/0"), "never released"),
        (lambda text: text.replace("moedd/1", "dataset/1"), "has schema 'dataset/1'"),
        (lambda text: text.replace('"name"', '"title"', 1), "name: Field required"),
        (
            lambda text: text.replace('"name"', '"name": "other",\n "name"', 1),
            r"moedd\.json holds the key 'name' twice",
        ),
    ],
)
def test_manifests_that_cannot_be_read(
    folder: Path, change: Callable[[str], str | bytes], said: str
) -> None:
    manifest(folder, change)
    fault(folder, said)


def test_a_manifest_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setfiles, "_LARGEST", 2000)
    fault(folder, r"moedd\.json has [\d,]+ bytes, expected at most 2,000")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: raw.update(name="../up"), r"names the set '\.\./up'"),
        (lambda raw: raw["source"].update(std=[0.2, 0.0, 0.2]), "a positive std"),
        (lambda raw: raw["source"].update(mean=[0.5, 0.5, float("nan")]), "finite numbers"),
        (lambda raw: raw["source"].update(mean=[0.5, 0.5, float("inf")]), "finite numbers"),
        (lambda raw: raw["source"].update(classes=["a", "b", "a"]), "'a' more than once"),
        (lambda raw: raw["source"].update(shape=[3, 0, 8]), "do not fit"),
        (lambda raw: raw["experts"][0]["decode"].update(factor=9), "decodes 9x9 tiles"),
        (lambda raw: raw["experts"][0]["decode"].update(factor=-2), "greater than or equal to 1"),
        (lambda raw: raw["experts"][0].update(step_size=float("nan")), "step size nan"),
        (lambda raw: raw["experts"][0]["trained_in"].update(mean=[0.5]), "with 1 means and 3"),
        (lambda raw: raw["experts"][0]["trained_in"].update(std=[0, 1, 1]), "expert 0 has mean"),
        (lambda raw: raw["experts"][0].update(trained_in={"space": "zca"}), "names no matrix"),
        (
            lambda raw: raw["experts"][0].update(
                stored_per_class=[10**9] * 3, decoded_per_class=[4 * 10**9] * 3
            ),
            r"counts 3,000,000,006 images, whose pixels are [\d,]+ bytes, and lists tensors/dis",
        ),
        (
            lambda raw: raw["experts"][0].update(
                stored_per_class=[2, 2, 3], decoded_per_class=[8, 8, 12]
            ),
            r"counts 13 images|'images' is torch\.float32 \(12, 3, 8, 8\), the manifest says",
        ),
        (
            lambda raw: raw["experts"][0].update(
                stored_per_class=[-2, 4, 4], decoded_per_class=[-8, 16, 16]
            ),
            "negative count",
        ),
        (
            lambda raw: raw["experts"][0].update(stored_per_class=[6], decoded_per_class=[24]),
            "counts 1 classes",
        ),
        (lambda raw: raw["experts"].reverse(), "the ids 0, 1|shards are"),
        (lambda raw: raw.update(labels={"kind": "soft"}), "holds no soft labels"),
    ],
)
def test_manifests_that_contradict_themselves(
    folder: Path, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    sign(folder, edit)
    fault(folder, said)


def test_checksums_that_list_a_file_twice(folder: Path) -> None:
    path = folder / "checksums.sha256"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0].replace(lines[0][:64], "0" * 64), *lines]))
    fault(folder, "line 2 lists data/train-00000-of-00002.parquet a second time")


def test_checksums_that_are_no_text(folder: Path) -> None:
    (folder / "checksums.sha256").write_bytes(b"\xff\xfe")
    fault(folder, r"checksums\.sha256 is not text")
    (folder / "checksums.sha256").unlink()
    (folder / "checksums.sha256").mkdir()
    fault(folder, r"checksums\.sha256 is a folder")


# Files that are not those of their rows.


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("pattern", ["webdataset/train-0000{}.tar",
                                     "data/train-0000{}-of-00002.parquet"])  # fmt: skip
def test_swapped_files(folder: Path, pattern: str, signed: bool) -> None:
    one, other = (folder / pattern.format(shard) for shard in range(2))
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])
    if signed:
        sign(folder)
        fault(folder, "id is 'e01-c0000-k0000', the tensors say 'e00-c0000-k0000'")
    else:
        fault(folder, r"train-0000[01].*(bytes, its manifest says|sha256 differs)")


def test_a_missing_shard_that_is_not_listed_either(folder: Path) -> None:
    (folder / TAR).unlink()
    raw = json.loads((folder / "moedd.json").read_text())
    del raw["files"][TAR]
    (folder / "moedd.json").write_text(json.dumps(raw))
    sign(folder)
    fault(folder, "does not list webdataset/train-00001.tar, shard 1")


def test_labels_changed_everywhere_but_in_the_counts(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors["labels"][0] = 2
    save_file(tensors, folder / TENSORS)
    sign(folder)
    fault(folder, "'labels' of expert 0 are not the rows that the manifest counts")


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range(folder: Path, label: int) -> None:
    reparquet(folder / PARQUET, "label", lambda values: [label, *values[1:]])
    sign(folder)
    fault(folder, f"label is {label}, the tensors say 0")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers(folder: Path, value: float) -> None:
    tensors = load_file(folder / TENSORS)
    tensors["images"][3, 1, 2, 3] = value
    save_file(tensors, folder / TENSORS)
    sign(folder)
    fault(folder, "'images' holds NaN or infinity")


@pytest.mark.parametrize("change", [lambda s: s * 2, lambda s: -s, np.log])
def test_soft_labels_that_are_no_probabilities(
    tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    factories.make_set(tmp_path / "s", soft=True)
    tensors = load_file(tmp_path / "s" / TENSORS)
    tensors["soft_labels"] = change(tensors["soft_labels"])
    save_file(tensors, tmp_path / "s" / TENSORS)
    sign(tmp_path / "s")
    fault(tmp_path / "s", "soft label of row e00-c0000-k0000 is no probability distribution")


def test_a_count_for_timm_that_is_wrong(folder: Path) -> None:
    path = folder / "webdataset" / "_info.json"
    path.write_text(path.read_text().replace('"num_samples": 12', '"num_samples": 13'))
    sign(folder)
    fault(folder, r"_info\.json counts .*13\), the tars hold")
    path.write_text("{}")
    sign(folder)
    fault(folder, r"_info\.json does not count the samples")


def test_a_whitening_that_is_damaged(tmp_path: Path) -> None:
    from safetensors.torch import save

    torch = factories.torch
    name = "tensors/zca-0.safetensors"
    for tensors, said in (
        ({"mean": torch.zeros(192), "matrix": torch.eye(3)}, "expected {'mean'"),
        ({"mean": torch.zeros(192)}, "expected {'mean'"),
        ({"mean": torch.zeros(192), "matrix": torch.full((192, 192), torch.nan)}, "non-finite"),
        (None, "is damaged"),
    ):
        data = b"no tensors" if tensors is None else save(tensors)
        rows = factories.make_rows(
            factories.make_source(), [2, 2, 2], files={name: data},
            trained_in=TrainedIn(space="zca", matrix=name),
        )  # fmt: skip
        factories.make_set(tmp_path / "s", experts=[rows], overwrite=True)
        fault(tmp_path / "s", said)


# Tars.


def add_member(path: Path, name: str, data: bytes = b"x", **fields: Any) -> None:
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for key, value in fields.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(data) if member.isreg() else None)


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/passwd", "a/../../evil.cls", "sub/e00.png", "a\\b.png"]
)
def test_tar_members_that_leave_the_folder(folder: Path, name: str) -> None:
    add_member(folder / TAR, name)
    sign(folder)
    fault(folder, r"train-00001\.tar holds the member .*, which leaves the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar(folder: Path, kind: bytes) -> None:
    add_member(folder / TAR, "e09-c0000-k0000.cls", b"", type=kind, linkname="/etc/passwd")
    sign(folder)
    fault(folder, r"holds the link 'e09-c0000-k0000\.cls'")


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_devices_and_folders_in_a_tar(folder: Path, kind: bytes) -> None:
    add_member(folder / TAR, "e09-c0000-k0000.cls", b"", type=kind)
    sign(folder)
    fault(folder, "unexpected member 'e09-c0000-k0000.cls'")


def test_a_row_twice(folder: Path) -> None:
    with tarfile.open(folder / TAR) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar][-4:]
        again = [(name, file.read()) for name, file in members if file is not None]
    for name, data in again:
        add_member(folder / TAR, name, data)
    sign(folder)
    fault(folder, "holds the key 'e01-c0002-k0001' twice")


def test_a_member_twice(folder: Path) -> None:
    retar(folder / TAR, lambda name, data: data)
    with tarfile.open(folder / TAR) as tar:
        first = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [first[0], first[0], *first[2:]]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (folder / TAR).write_bytes(buffer.getvalue())
    sign(folder)
    fault(folder, rf"holds the member '{first[0][0]}' twice")


def test_a_member_that_claims_more_than_there_is(folder: Path) -> None:
    add_member(folder / TAR, "e09-c0000-k0000.cls")
    data = bytearray((folder / TAR).read_bytes())
    at = data.rindex(b"e09-c0000-k0000.cls")
    data[at + 124 : at + 136] = b"%011o\x00" % (8 * 10**9)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\x00 " % sum(data[at : at + 512])
    (folder / TAR).write_bytes(data)
    sign(folder)
    fault(folder, r"claims 8000000000 bytes in a file of|is not a whole tar file")


@pytest.mark.parametrize("cut", [1, 600, 5000])
def test_a_tar_cut_short(folder: Path, cut: int) -> None:
    data = (folder / TAR).read_bytes()
    end = len(data.rstrip(b"\0"))
    (folder / TAR).write_bytes(data[: end - cut])
    sign(folder)
    fault(folder, r"train-00001\.tar")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("expert"), "expected an object with the keys"),
        (lambda row: row.update(extra=1), "expected an object with the keys"),
        (lambda row: row.update(label=True), "expected an object with the keys"),
        (lambda row: row.update(k=1.0), "expected an object with the keys"),
        (lambda row: row.update({"class": "class a"}), "class is 'class a'"),
        (lambda row: row.update(expert=0), "expert is 0"),
    ],
)
def test_the_json_of_a_row(folder: Path, change: Callable[[Any], None], said: str) -> None:
    def edit(name: str, data: bytes) -> bytes:
        if name != "e01-c0001-k0001.json":
            return data
        row = json.loads(data)
        change(row)
        return json.dumps(row).encode()

    retar(folder / TAR, edit)
    sign(folder)
    fault(folder, said)


def test_json_without_end(folder: Path) -> None:
    retar(folder / TAR, lambda name, data: b"[" * 10**5 if name.endswith("json") else data)
    sign(folder)
    fault(folder, r"bad \.json or \.cls")


# Bombs: files that unpack to far more than they are.


def png_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def huge_png(side: int = 60_000) -> bytes:
    """A PNG of a few kilobytes that claims 3.6 billion pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 10**6)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )


def test_a_png_bomb_in_a_tar_and_in_parquet(folder: Path) -> None:
    bomb = huge_png()
    retar(folder / TAR, lambda name, data: bomb if name == "e01-c0000-k0000.png" else data)
    sign(folder)
    fault(folder, r"the PNG claims 60000x60000 pixels \(width x height\), expected 8x8")
    reparquet(
        folder / PARQUET, "image", lambda values: [{"bytes": bomb, "path": None}, *values[1:]]
    )
    sign(folder)
    fault(folder, r"parquet, row e01-c0000-k0000: the PNG claims 60000x60000")


def test_an_npy_header_that_claims_a_huge_array(folder: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    wide = buffer.getvalue() + bytes(768)
    retar(folder / TAR, lambda name, data: wide if name == "e01-c0000-k0000.npy" else data)
    sign(folder)
    fault(folder, r"bad \.npy: it claims float32 \(1000000000000,\)")


def test_a_parquet_bomb(folder: Path) -> None:
    table = pq.read_table(folder / PARQUET)
    at = table.column_names.index("method")
    wide = pa.array(["x" * 40_000_000] * 1 + ["y"] * (len(table) - 1), pa.string())
    pq.write_table(table.set_column(at, table.schema.field(at), wide), folder / PARQUET,
                   use_dictionary=False, compression="ZSTD")  # fmt: skip
    assert (folder / PARQUET).stat().st_size < 100_000
    sign(folder)
    fault(folder, r"would unpack to 40,\d{3},\d{3} bytes, and its 6 rows need at most")


def test_a_parquet_file_that_counts_its_own_rows(folder: Path) -> None:
    """A million rows make room for a million pixels, if the file is asked how many it may hold."""
    table = pq.read_table(folder / PARQUET)
    many = table.take(pa.array([0] * 1_000_000))
    pq.write_table(many, folder / PARQUET, compression="ZSTD")
    assert (folder / PARQUET).stat().st_size < 1_000_000
    sign(folder)
    fault(folder, r"holds 1,000,000 rows, and the manifest leaves it 6 at most")


def test_a_large_value_for_every_row_of_a_dictionary(folder: Path) -> None:
    table = pq.read_table(folder / PARQUET)
    at, size = table.column_names.index("method"), 15_000_000
    wide = pa.array(["x" * size] * len(table), pa.string())
    pq.write_table(table.set_column(at, table.schema.field(at), wide), folder / PARQUET)
    assert (folder / PARQUET).stat().st_size < 2_000_000
    before = pa.total_allocated_bytes()
    rows = parquet_rows(folder / PARQUET, read_manifest(folder).classes, 4096, len(table))
    assert len(next(rows)["method"]) == size
    assert pa.total_allocated_bytes() - before < 4 * size
    sign(folder)
    fault(folder, r"method is .{90,130}, the tensors say")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [(b"{", "names other classes"), (b"[]", "names other classes"), (None, "names other classes")],
)
def test_parquet_metadata_that_are_no_features(
    folder: Path, metadata: bytes | None, said: str
) -> None:
    table = pq.read_table(folder / PARQUET)
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": metadata} if metadata else None),
        folder / PARQUET,
    )
    sign(folder)
    fault(folder, said)


def test_images_of_another_type_in_parquet(folder: Path) -> None:
    table = pq.read_table(folder / PARQUET)
    at = table.column_names.index("image")
    pq.write_table(table.set_column(at, "image", pa.array(["x"] * len(table))), folder / PARQUET)
    sign(folder)
    fault(folder, "stores its images as string")


@pytest.mark.parametrize("mode", ["P", "I;16", "RGBA", "LA"])
def test_pngs_that_only_look_like_the_view(tmp_path: Path, mode: str) -> None:
    """Equal numbers under a palette, or in 16 bits, are another picture."""
    factories.make_set(tmp_path / "s", shape=(1, 8, 8))

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("png"):
            return data
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image)
        if mode == "P":
            made = Image.frombytes("P", (8, 8), pixels.tobytes())
            made.putpalette([255 - value for value in range(256) for _ in range(3)])
        elif mode == "I;16":
            made = Image.fromarray(pixels.astype(np.uint16))
        else:
            made = Image.fromarray(pixels).convert(mode)
        buffer = io.BytesIO()
        made.save(buffer, "PNG")
        return buffer.getvalue()

    retar(tmp_path / "s" / TAR, change)
    sign(tmp_path / "s")
    fault(tmp_path / "s", f"bad PNG: its pixels are {mode}, expected 8 bits in 1 channels")


# What training reads goes through the same checks.


def test_loading_refuses_rules_that_were_edited(folder: Path) -> None:
    sign(folder, lambda raw: raw["experts"][0]["decode"].update(order="row-major"))
    with pytest.raises(InvalidSetError, match="training_sha256 is"):
        load_distilled(folder)
    load_distilled(folder, verify=False)
    sign(folder, lambda raw: raw["source"].update(std=[0.2, 0.2, 0.0]))
    with pytest.raises(InvalidSetError, match="a positive std"):
        load_distilled(folder, verify=False)


@pytest.mark.parametrize("seed", range(60))
def test_bytes_changed_at_random_are_noticed(folder: Path, seed: int) -> None:
    """Unsigned, every change of the payload is seen; signed, whatever is raised is a sentence."""
    dice = random.Random(seed)
    files = sorted(read_manifest(folder).files)
    path = folder / dice.choice([name for name in files if not name.startswith("recipe")])
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 3, 30])):
        data[dice.randrange(len(data))] = dice.randrange(256)
    if bytes(data) == path.read_bytes():
        data[0] ^= 1
    path.write_bytes(data)
    fault(folder, "sha256 differs")
    sign(folder)
    said = verdict(folder)
    assert said is None or str(folder) in said


@pytest.mark.parametrize("seed", range(40))
def test_manifests_changed_at_random_are_noticed(folder: Path, seed: int) -> None:
    dice = random.Random(seed)

    def edit(raw: dict[str, Any]) -> None:
        place: Any = raw
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = dice.choice(keys)
            if not isinstance(place[key], dict | list) or not place[key] or dice.random() < 0.2:
                wild = [None, -1, 10**12, "", "x", [], {}, True, 1e308, float("nan"), ["a"], "../x"]
                place[key] = dice.choice(wild)
                return
            place = place[key]

    # An edit of `files` itself may leave no list of files to be signed.
    with contextlib.suppress(AttributeError, TypeError):
        sign(folder, edit)
    said = verdict(folder)
    assert said is None or "\n" not in said
