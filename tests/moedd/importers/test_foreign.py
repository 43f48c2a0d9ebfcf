"""Foreign files: what loads, and that nothing in them is ever run."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import releasefactories
import torch

from moedd.importers import foreign
from moedd.importers.foreign import load_npz, load_pickle, load_torch
from moedd_loaders.errors import DataError


class Attack:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.witness, "run"))


class ByOs:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, (f"touch {self.witness}",))


class ByEval:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({str(self.witness)!r}, 'w')",))


ATTACKS = [Attack, ByOs, ByEval]


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "witness"


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_would_work_on_a_careless_reader(witness: Path, attack: type) -> None:
    pickle.loads(pickle.dumps(attack(witness)))
    assert witness.exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, witness: Path, attack: type, protocol: int
) -> None:
    path = tmp_path / "acc_0.5.pkl"
    pair = (releasefactories.pixels(), attack(witness))
    path.write_bytes(pickle.dumps(pair, protocol=protocol))
    with pytest.raises(DataError, match=r"asks for [\w.]+, and moedd reads only.*nothing of it"):
        load_pickle(path)
    assert not witness.exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_is_refused_and_not_run(
    tmp_path: Path, witness: Path, attack: type, zipped: bool
) -> None:
    path = tmp_path / "data.pt"
    torch.save([torch.zeros(2), attack(witness)], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="nothing of it was run"):
        load_torch(path)
    assert not witness.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_storage_inside_of_a_pickle_is_not_run(
    tmp_path: Path, witness: Path, attack: type
) -> None:
    """`_load_from_bytes` is known to the unpickler: the bytes are a file of their own."""
    inner = tmp_path / "inner.pt"
    torch.save(attack(witness), inner, _use_new_zipfile_serialization=False)

    class Storage:
        def __reduce__(self) -> tuple[Any, ...]:
            return (torch.storage._load_from_bytes, (inner.read_bytes(),))

    path = tmp_path / "outer.pkl"
    path.write_bytes(pickle.dumps((Storage(), 1)))
    with pytest.raises(DataError, match="nothing of it was run"):
        load_pickle(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "name", ["builtins.getattr", "os.system", "torch.load", "torch._utils._rebuild_qtensor"]
)
def test_only_the_functions_that_rebuild_tensors_are_known(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b".")
    with pytest.raises(DataError, match=f"asks for {name}"):
        load_pickle(path)


def test_a_pickle_cannot_change_the_functions_it_knows(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever lies on the stack: here of our own rebuilding function."""
    state = pickle.dumps((None, {"_function": OrderedDict}), protocol=2)[2:-1]
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.")
    before = foreign._REBUILDERS[("torch._utils", "_rebuild_tensor_v2")]._function
    with pytest.raises(DataError, match="sets attributes"):
        load_pickle(path)
    assert foreign._REBUILDERS[("torch._utils", "_rebuild_tensor_v2")]._function is before


def test_references_outside_of_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(DataError, match="outside of the file"):
        load_pickle(path)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    class Liar:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.zeros(4)._typed_storage()
            return (torch._utils._rebuild_tensor_v2, (storage, 0, (99,), (1,), False, None))

    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps((Liar(), 1)))
    with pytest.raises(DataError, match="beyond its storage"):
        load_pickle(path)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_tensors_load(tmp_path: Path, protocol: int) -> None:
    images = releasefactories.pixels()
    leaf = torch.nn.Parameter(images[::2].transpose(2, 3))
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps((leaf, {"n": [1, 2.5, "a", None]}), protocol=protocol))
    found = load_pickle(path)
    assert torch.equal(found[0], leaf.detach())
    assert not found[0].requires_grad
    assert type(found[0]) is torch.Tensor
    assert found[1] == {"n": [1, 2.5, "a", None]}


@pytest.mark.parametrize("device", ["cuda:0", "cuda:3", "mps"])
def test_tensors_of_a_device_load_on_the_cpu(tmp_path: Path, device: str) -> None:
    path = releasefactories.make_idm(tmp_path, device=device)
    assert device.encode() in path.read_bytes()
    with pytest.raises(RuntimeError):  # what users meet with a plain pickle.load
        pickle.loads(path.read_bytes())
    images, labels = load_pickle(path)
    assert images.device.type == "cpu"
    assert torch.equal(images, releasefactories.pixels())
    assert torch.equal(labels, releasefactories.by_class())


def test_numpy_scalars_are_the_only_extras_of_torch_files(tmp_path: Path) -> None:
    kinds = [np.float64(0.5), np.float32(0.25), np.int64(3), np.uint8(7), np.bool_(True)]
    torch.save({"accs": kinds}, tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"scalar"):  # torch's own default refuses
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert load_torch(tmp_path / "a.pt") == {"accs": [0.5, 0.25, 3, 7, True]}
    torch.save({"array": np.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"asks for numpy\._core\.multiarray\._reconstruct"):
        load_torch(tmp_path / "b.pt")


def test_scalars_of_numpy_1_load_too(tmp_path: Path) -> None:
    """Files of the time of these projects name the module numpy.core."""
    torch.save({"acc": np.float64(0.5)}, tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as old,
    ):
        for member in new.infolist():
            data = new.read(member)
            assert b"numpy._core" in data or not member.filename.endswith("data.pkl")
            old.writestr(member.filename, data.replace(b"numpy._core", b"numpy.core"))
    assert load_torch(tmp_path / "old.pt") == {"acc": 0.5}


def test_old_torch_files_and_device_tags_load(tmp_path: Path) -> None:
    images = releasefactories.pixels()
    torch.save(images, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_torch(tmp_path / "old.pt"), images)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.pt", b"", "is not a file that torch.save wrote"),
        ("x.pt", b"not a file of torch", "is not a file that torch.save wrote"),
        ("x.pkl", b"", "is not a pickle of tensors"),
        ("x.pkl", b"\x80\x04", "is not a pickle of tensors"),
        ("x.npz", b"PK", "is not an .npz file"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    load = {"x.pt": load_torch, "x.pkl": load_pickle, "x.npz": load_npz}[name]
    with pytest.raises(DataError, match=said):
        load(path)
    path.unlink()
    with pytest.raises(DataError, match="there is no file"):
        load(path)


def test_a_truncated_torch_file(tmp_path: Path) -> None:
    path = releasefactories.make_idc(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"is not a file that torch\.save wrote"):
        load_torch(path)


def test_packed_members_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = releasefactories.make_idc(tmp_path)
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(DataError, match="compressed member"):
        load_torch(tmp_path / "bomb.pt")


class PackedStorage:
    """Pickled, it asks for a storage whose file is compressed."""

    def __reduce__(self) -> tuple[Any, ...]:
        plain, packed = io.BytesIO(), io.BytesIO()
        torch.save(torch.zeros(10_000), plain)
        with (
            zipfile.ZipFile(plain) as old,
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for member in old.infolist():
                new.writestr(member.filename, old.read(member))
        return (torch.storage._load_from_bytes, (packed.getvalue(),))


def test_packed_storages_inside_a_pickle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(PackedStorage()))
    with pytest.raises(DataError, match="compressed member"):
        load_pickle(tmp_path / "x.pkl")


def test_few_lists_cannot_pretend_to_be_many_values(tmp_path: Path) -> None:
    values: list[Any] = [0] * 12
    for _ in range(7):
        values = [values] * 12
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(DataError, match="more than 1,000,000"):
        load_pickle(tmp_path / "x.pkl")


def test_few_numbers_cannot_pretend_to_be_a_huge_tensor(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(10**6, 3, 32, 32), tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"4 bytes that claim to be a tensor"):
        load_torch(tmp_path / "x.pt")


def test_values_that_hold_themselves_end(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(loop))
    with pytest.raises(DataError, match="nests its values"):
        load_pickle(tmp_path / "x.pkl")


def test_arrays_of_objects_are_refused(tmp_path: Path, witness: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.array([Attack(witness)], dtype=object))
    with pytest.raises(DataError, match=r"is not an \.npz file of plain arrays"):
        load_npz(tmp_path / "x.npz")
    assert not witness.exists()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "npz"])
def test_damage_at_random_is_always_one_sentence(tmp_path: Path, kind: str, seed: int) -> None:
    """Whatever a broken file leads the readers to, it is told as wrong data, or it still reads."""
    dice = random.Random(seed)
    path = tmp_path / "x"
    content = {"data": [[releasefactories.pixels(1, (1, 2, 2)), releasefactories.by_class(2, 1)]]}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif kind == "npz":
        path = tmp_path / "x.npz"
        np.savez_compressed(path, images=np.zeros((3, 4)), labels=np.arange(3))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 2, 20])):
        data[dice.randrange(len(data))] = dice.randrange(256)
    path.write_bytes(data)
    load = {"pickle": load_pickle, "npz": load_npz}.get(kind, load_torch)
    with contextlib.suppress(DataError):
        load(path)


def test_an_archive_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros(100_000))
    assert (tmp_path / "x.npz").stat().st_size < 2_000
    monkeypatch.setattr(foreign, "_NPZ_MOST", 100_000)
    with pytest.raises(DataError, match=r"would unpack to 800,\d+ bytes"):
        load_npz(tmp_path / "x.npz")
