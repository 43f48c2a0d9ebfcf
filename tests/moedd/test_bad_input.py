"""Wrong input on the command line: one sentence, its exit code, and nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import make_set
from imagefactories import class_folders, encoded, noise, png, write_tree
from runfactories import Told, cli, payload, tiny_arguments, tree

from moedd_loaders import files, load_distilled
from moedd_loaders.errors import InvalidSetError


@pytest.fixture
def untouched(home: Path) -> Iterator[Path]:
    """`$MOEDD_HOME`, which must be as empty after the test as before it."""
    before = tree(home)
    yield home
    assert tree(home) == before


def refused(told: Told, code: int, *parts: str) -> None:
    """The command ended with `code` and one sentence that holds `parts`, the only error line."""
    assert told.code == code, told.err
    for part in parts:
        assert part in told.sentence
    assert told.out == ""


def distil(name: str, *more: str | Path) -> Told:
    return cli("distill", name, "--no-evaluate", *more)


# --------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["digits", "digits-idm", "digits-idm-5", "digits-idm-x2", "Digits-idm-5x2", "digits--5x2"],
)
def test_a_name_that_does_not_parse(name: str, untouched: Path) -> None:
    refused(distil(name), 2, f"'{name}'", "expected <data>-<method>", "cifar10-idc-5x2")


def test_methods_that_do_not_divide_the_experts(untouched: Path) -> None:
    refused(distil("digits-idm+idc-5x3"), 2, "2 methods for 3 experts", "must be a multiple")


def test_unknown_data(untouched: Path) -> None:
    refused(distil("cifra10-idm-5x2"), 2, "cifra10", "cifar10", "--data")


def test_unknown_method(untouched: Path) -> None:
    refused(distil("digits-idn-5x2"), 2, "unknown method 'idn'; known: ", "did you mean 'idm'")


def test_unknown_network(untouched: Path) -> None:
    told = distil("digits-idm-5x2", "--set", "network=resnet")
    refused(told, 2, "unknown network 'resnet'; known: ", "did you mean 'resnet18'")


def test_an_image_side_too_small_for_the_network(untouched: Path) -> None:
    told = distil("digits-idm-5x2", "--set", "network=vgg11")
    refused(told, 2, "vgg11 needs images of at least", "not 8x8", "use convnet2", "--size")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("widht=3", ("unknown setting 'widht'", "did you mean 'width'")),
        ("width=x", ("width='x' does not fit",)),
        ("width", ("expected KEY=VALUE",)),
        ("network=convnet2_bn", ("batch norm", "convnet2")),
    ],
)
def test_wrong_settings(setting: str, parts: tuple[str, ...], untouched: Path) -> None:
    refused(distil("digits-idm-5x2", "--set", setting), 2, *parts)


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--schedule", "long", "unknown schedule 'long'; known: paper, short, smoke"),
        ("--max-hours", "0", "expected hours above 0"),
        ("--size", "3x4x5", "expected a side (64) or HEIGHTxWIDTH"),
        ("--size", "4", "too small, expected at least 8"),
        ("--channels", "2", "expected 1 (grey) or 3 (RGB)"),
    ],
)
def test_wrong_options(option: str, value: str, part: str, untouched: Path) -> None:
    refused(distil("digits-idm-5x2", option, value), 2, part)


# ---------------------------------------------------------------------------------- data


def test_no_images_per_class(untouched: Path) -> None:
    refused(distil("digits-idm-0x2"), 2, "0 images per class", "digits-idm-5x2")


@pytest.mark.parametrize("name", ["digits-idm-140x1", "digits-idm-70x2"])
def test_more_images_per_class_than_there_are(name: str, untouched: Path) -> None:
    refused(distil(name), 2, "class '8'", "139 training images", "140 per class")


def test_every_part_of_all_data_needs_only_its_ipc(untouched: Path) -> None:
    """`parts=all` gives every expert all images: 70 of them fit, 140 do not."""
    config = distil("digits-idm-70x2", "--set", "parts=all", "--print-config")
    assert config.code == 0
    refused(distil("digits-idm-140x2", "--set", "parts=all"), 2, "class '8'")


def test_a_missing_folder(untouched: Path, tmp_path: Path) -> None:
    told = distil("toy-idm-1x2", "--data", tmp_path / "nowhere")
    refused(told, 2, str(tmp_path / "nowhere"), "expected a folder of")


def test_an_empty_folder(untouched: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = distil("toy-idm-1x2", "--data", tmp_path / "empty")
    refused(told, 2, str(tmp_path / "empty"), "is empty", "expected a folder of")


def test_a_wrong_folder(untouched: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "wrong", {"notes.txt": b"hello", "sub/table.csv": b"1,2"})
    told = distil("toy-idm-1x2", "--data", tmp_path / "wrong")
    refused(told, 2, str(tmp_path / "wrong"), "expected a folder of")


def test_a_file_instead_of_a_folder(untouched: Path, tmp_path: Path) -> None:
    write_tree(tmp_path, {"file.png": png()})
    refused(distil("toy-idm-1x2", "--data", tmp_path / "file.png"), 2, "is a file; expected")


def test_a_distilled_set_is_no_real_data(untouched: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "toy")
    refused(distil("toy-idm-1x2", "--data", tmp_path / "toy"), 2, "is a distilled set")


def test_a_class_folder_without_an_image(untouched: Path, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 3, "dog": 3}, "train")
    (data / "train" / "eel").mkdir()
    (data / "train" / "eel" / "readme.txt").write_text("to come")
    refused(distil("toy-idm-1x2", "--data", data), 2, "eel", "no")


def test_grey_images_where_three_channels_are_declared(untouched: Path, tmp_path: Path) -> None:
    grey = encoded(noise(32, 32))
    files = {f"train/class{c}/{n}.png": grey for c in range(10) for n in range(2)}
    data = write_tree(tmp_path / "grey", files)
    told = distil("cifar10-idm-1x1", "--data", data)
    refused(told, 2, "is grey", "declared to have 3 channels", "--channels 3", "--channels 1")


def test_images_that_cannot_be_read_are_listed(untouched: Path, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 4, "dog": 4}, "train")
    for n in (0, 1):
        write_tree(data, {f"train/cat/bad{n}.png": png()[:60]})
    told = distil("toy-idm-1x2", "--data", data)
    refused(told, 2, "2 of ", "cannot be read", "bad0.png", "bad1.png", "--skip-bad")


# ------------------------------------------------------------------------ what is there


def test_an_existing_set_is_not_replaced(home: Path) -> None:
    make_set(home / "sets" / "digits-idm-1x1", name="digits-idm-1x1")
    before = tree(home)
    refused(distil("digits-idm-1x1"), 4, "exists already", "--overwrite")
    assert tree(home) == before


def test_what_is_no_set_is_never_replaced(home: Path) -> None:
    write_tree(home / "sets" / "digits-idm-1x1", {"thesis.tex": b"years of work"})
    before = tree(home)
    for more in ((), ("--overwrite",), ("--resume",)):
        refused(distil("digits-idm-1x1", *more), 4, str(home / "sets" / "digits-idm-1x1"))
    assert tree(home) == before


# ------------------------------------------------------------------------------ full disk


@pytest.mark.parametrize("written", [0, 4, 8])
def test_a_full_disk_while_the_set_is_written(
    written: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [written]

    def put(path: Path, data: bytes) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        left[0] -= 1
        files.put(path, data)

    arguments = tiny_arguments("digits-idm-1x1", "idm.steps=2")
    with monkeypatch.context() as patch:
        patch.setattr("moedd_publish.write.put", put)
        refused(cli(*arguments), 1, "the disk is full", "digits-idm-1x1", "free some space")
    assert left == [0]
    assert not list(home.glob("sets/*"))
    assert not list(home.rglob("*.tmp"))
    # The work is not lost: the last checkpoint holds it all.
    told = cli(*arguments, "--resume")
    assert told.code == 0, told.err
    assert "resuming at tick 2" in told.err


@pytest.mark.parametrize("place", ["moedd.checkpoint.os.fsync", "moedd_publish.preview.put"])
def test_a_full_disk_during_the_run(
    place: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, full)
    told = cli(*tiny_arguments("digits-idm-1x1", "idm.steps=2"))
    refused(told, 1, "the disk is full while distilling digits-idm-1x1")
    assert not list(home.glob("sets/*"))
    assert not [path for path in home.rglob(".*") if path.is_file()]


def test_a_full_disk_leaves_the_old_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tiny_arguments("digits-idm-1x1", "idm.steps=2")
    assert cli(*arguments).code == 0
    folder = home / "sets" / "digits-idm-1x1"
    before = payload(folder)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("moedd_publish.write.put", full)
    refused(cli(*arguments, "--seed", "1", "--overwrite"), 1, "the disk is full")
    assert payload(folder) == before
    assert [path.name for path in (home / "sets").iterdir()] == [folder.name]


# --------------------------------------------------------------------------- broken sets


@pytest.fixture
def broken(home: Path, finished_home: Path) -> Path:
    """A copy of a finished set, to be damaged."""
    shutil.copytree(finished_home / "sets" / "pair", home / "sets" / "pair")
    return home / "sets" / "pair"


def everything_refuses(broken: Path, file: str, *parts: str, shown: bool = False) -> None:
    """Every command and the loader refuse the set, name the file, and write nothing."""
    before = tree(broken)
    commands = ["validate", "evaluate", *(["show"] if shown else [])]
    for command in commands:
        refused(cli(command, "pair"), 5, file, *parts)
    with pytest.raises(InvalidSetError) as caught:
        load_distilled("pair")
    assert file in str(caught.value)
    assert tree(broken) == before


@pytest.mark.parametrize("damage", ["truncated", "edited", "missing"])
def test_a_damaged_payload_is_named(damage: str, broken: Path) -> None:
    path = broken / "tensors" / "distilled.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "edited" else data[:-100])
    everything_refuses(broken, "tensors/distilled.safetensors")


@pytest.mark.parametrize("file", ["webdataset/train-00000.tar", "recipe/config.json"])
def test_validate_checks_every_file(file: str, broken: Path) -> None:
    with open(broken / file, "ab") as appended:
        appended.write(b" ")
    refused(cli("validate", "pair"), 5, file)


@pytest.mark.parametrize("damage", ["truncated", "no JSON", "not UTF-8", "wrong type"])
def test_a_damaged_manifest_is_named(damage: str, broken: Path) -> None:
    path = broken / "moedd.json"
    data = path.read_bytes()
    plain = json.loads(data)
    plain["experts"] = "two"
    path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "no JSON": b"hello",
            "not UTF-8": data.replace(b'"pair"', b'"\xff"'),
            "wrong type": json.dumps(plain).encode(),
        }[damage]
    )
    everything_refuses(broken, "moedd.json", shown=True)


def test_a_manifest_of_a_newer_major_version(broken: Path) -> None:
    path = broken / "moedd.json"
    path.write_text(path.read_text().replace('"moedd/1"', '"moedd/2"'))
    everything_refuses(broken, "moedd/2", "pip install -U moedd", shown=True)


def test_a_minor_addition_is_no_reason_to_refuse(broken: Path) -> None:
    path = broken / "moedd.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "added in 1.1": {"x": 1}}))
    listed = broken / "checksums.sha256"
    others = [line for line in listed.read_text().splitlines() if not line.endswith("moedd.json")]
    own = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  moedd.json"
    listed.write_text("\n".join([*others, own]) + "\n")
    assert cli("show", "pair").code == 0
    assert len(load_distilled("pair")) == 80


def test_a_folder_that_is_no_set(untouched: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for command in ("show", "validate", "evaluate"):
        refused(cli(command, tmp_path / "plain"), 2, "holds no moedd.json")
        refused(cli(command, tmp_path / "absent"), 2, "no folder")
        refused(cli(command, "nothing://bucket/set"), 2, "cannot be read here")


# ----------------------------------------------------------------------------- a run


def test_a_checkpoint_of_another_configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments = tiny_arguments("digits-idm-1x1", "idm.steps=2")
    with monkeypatch.context() as patch:
        patch.setattr("moedd.distill.write_result", full)
        assert cli(*arguments).code == 1
    before = tree(home)
    for more, said in (
        (("--set", "idm.lr=0.5"), "experts.0.lr: was 0.05, is 0.5"),
        (("--seed", "4"), "seed: was 0, is 4"),
    ):
        told = cli(*arguments, "--resume", *more)
        refused(told, 2, "another configuration", said, "--overwrite")
    assert tree(home) == before
