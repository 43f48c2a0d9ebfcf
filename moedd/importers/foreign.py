"""Opening files that others wrote: tensors and numbers come out, nothing in them is ever run.

`.pt` files are read with `weights_only=True` and a short list of NumPy scalar types (DC's result
files hold accuracies as `numpy.float64`). Plain pickles (IDM) go through an unpickler that knows
the functions which rebuild tensors and no others; the storages inside are files of torch's own and
are read with `weights_only=True` again. Everything lands on the CPU, wherever it was saved.
"""

from __future__ import annotations

import io
import itertools
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moedd_loaders.errors import DataError

__all__ = ["load_npz", "load_pickle", "load_torch"]

_DTYPES = [
    "Bool",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "Float16",
    "Float32",
    "Float64",
]
_ROOM = 64_000_000
"""Bytes that a tensor may claim beyond what its file holds (an expanded view of few numbers)."""
_DEEPEST = 20
_MOST_VALUES = 1_000_000
_NPZ_MOST = 4_000_000_000
"""Bytes to which an .npz file may unpack."""


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`: tensors (on the CPU), numbers, text, lists, dicts.

    Raises:
        DataError: not such a file, or it holds an object of another kind; nothing of it was run.
    """
    try:
        with path.open("rb") as file:
            _refuse_packed(path)
            with warnings.catch_warnings(), torch.serialization.safe_globals(_scalars()):
                warnings.simplefilter("ignore")  # of protocols, to people who cannot change them
                found = torch.load(file, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, expected a file") from None
    # The reader raises whatever a broken file leads to: none of it is a fault of ours.
    except Exception as error:
        raise _refused(path, error) from None
    return _plain(path, found)


def load_pickle(path: Path) -> Any:
    """What `pickle.dump` wrote to `path`, if that is tensors, numbers, text, lists and dicts.

    Raises:
        DataError: not a pickle, or it asks for anything else; nothing of it was run.
    """
    try:
        with path.open("rb") as file:
            found = _TensorUnpickler(file).load()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except Exception as error:  # as above
        raise _refused(path, error) from None
    return _plain(path, found)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; arrays of Python objects are refused.

    Raises:
        DataError: not such a file, an array of objects, or one that claims more than it holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _NPZ_MOST:
            raise DataError(
                f"{path} would unpack to {unpacked:,} bytes, expected at most {_NPZ_MOST:,}"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except Exception as error:  # as above
        raise DataError(f"{path} is not an .npz file of plain arrays ({_first(error)})") from None


def _scalars() -> list[Any]:
    """NumPy scalars under the names of NumPy 1 and 2, and the types that describe them."""
    scalar = np.float64(0).__reduce__()[0]  # the function's own place differs between the two
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        *(getattr(np.dtypes, f"{name}DType") for name in _DTYPES),
    ]


class _TensorUnpickler(pickle.Unpickler):
    """Knows the functions that rebuild tensors; anything else is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        known = _REBUILDERS.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name} was")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def _storage(data: bytes) -> Any:
    """A storage: in a plain pickle it is the bytes of a file of torch's own."""
    packed = _packed(io.BytesIO(data))
    if packed is not None:
        raise pickle.UnpicklingError(f"a storage holds the compressed member {packed.filename!r}")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """A tensor over a storage that was read; hooks and metadata are dropped."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without a storage")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min([offset, *size, *stride]) < 0 or (0 not in size and last >= len(flat)):
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Any, requires_grad: bool = False, hooks: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


def _latin(text: Any, codec: Any = "latin1") -> bytes:
    """Bytes as pickles of protocol 2 and below write them."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError(f"text in {codec!r}")
    return text.encode("latin1")


class _Sealed:
    """A function that a pickle can call and not change: it has no attributes to set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of functions")


_REBUILDERS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Sealed(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Sealed(_parameter),
    ("torch.storage", "_load_from_bytes"): _Sealed(_storage),
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Sealed(_latin),
}


def _refuse_packed(path: Path) -> None:
    """torch never compresses: a compressed member may unpack to any size."""
    member = _packed(path)
    if member is not None:
        raise DataError(
            f"{path} holds the compressed member {member.filename!r} "
            f"({member.file_size:,} bytes unpacked), which torch does not write"
        )


def _packed(file: Path | io.BytesIO) -> zipfile.ZipInfo | None:
    """The first compressed member of an archive, if it is one."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        return next((m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED), None)


def _plain(path: Path, found: Any) -> Any:
    """The same in plain lists, dicts, numbers and fresh tensors: no class or attribute of theirs.

    A few numbers that pretend to be a huge tensor by a stride of 0 are refused, and a few lists
    that hold each other so often that they would be more values than anybody releases.
    """
    return _copied(path, found, 0, itertools.count(1))


def _copied(path: Path, found: Any, depth: int, number: Iterator[int]) -> Any:
    if depth > _DEEPEST or next(number) > _MOST_VALUES:
        raise DataError(
            f"{path} nests its values more than {_DEEPEST} deep, or holds more than "
            f"{_MOST_VALUES:,} of them"
        )
    if isinstance(found, Tensor):
        return _fresh(path, found)
    if isinstance(found, dict):
        return {key: _copied(path, value, depth + 1, number) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_copied(path, value, depth + 1, number) for value in found]
    return found.item() if isinstance(found, np.generic) else found


def _fresh(path: Path, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise DataError(f"{path} holds a {tensor.layout} tensor on {tensor.device}, expected plain")
    claims = tensor.numel() * tensor.element_size()
    has = tensor.untyped_storage().nbytes()
    if claims > has + _ROOM:
        raise DataError(
            f"{path} holds {has:,} bytes that claim to be a tensor of {tuple(tensor.shape)} "
            f"({claims:,} bytes)"
        )
    return Tensor.clone(Tensor.detach(tensor), memory_format=torch.contiguous_format)


def _refused(path: Path, error: Exception) -> DataError:
    named = re.search(r"GLOBAL ([\w.]+) (?:was|whose)", str(error))
    if named is not None:
        return DataError(
            f"{path} asks for {named[1]}, and moedd reads only tensors and numbers from foreign "
            "files: nothing of it was run; get the file from a source you trust and save its "
            "tensors anew"
        )
    kind = "a file that torch.save wrote" if path.suffix != ".pkl" else "a pickle of tensors"
    return DataError(f"{path} is not {kind} ({_first(error)})")


def _first(error: BaseException) -> str:
    """The first line of an error, without its end stop."""
    text = next(iter(str(error).splitlines()), "").strip().rstrip(".")
    return (text or type(error).__name__)[:200]
