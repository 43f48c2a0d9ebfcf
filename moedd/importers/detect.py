"""From a path to what lies there: which family of files, read into `Released`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from moedd.importers.choice import Choice, only
from moedd.importers.dc import is_dc, read_dc
from moedd.importers.ddranking import read_ddranking
from moedd.importers.foreign import load_torch
from moedd.importers.idc import is_idc, read_idc
from moedd.importers.idm import read_idm
from moedd.importers.kip import read_kip
from moedd.importers.mtt import read_mtt
from moedd.importers.pairs import NAME
from moedd.importers.released import Released
from moedd.readers import IMAGE_ENDINGS
from moedd_loaders.errors import DataError, UsageError

__all__ = ["ACCEPTED", "read_release"]

ACCEPTED = (
    "res_*.pt (DC, DSA, DM, IDM), acc_*.pkl (IDM), images_best.pt with labels_best.pt (MTT, TESLA, "
    "FTD, DATM), data.pt (IDC), images.pt with labels.pt (DD-Ranking), .npz (KIP), class folders "
    "of pictures (RDED, SRe2L), Parquet files or NAMESPACE/NAME on the Hub (image and class number)"
)
"""What can be imported, in words."""


def read_release(address: str, choice: Choice) -> Released:
    """Everything that lies at `address`: a file, a folder, or NAMESPACE/NAME on the Hub.

    Raises:
        UsageError: several sets and none chosen; companions missing; a set of moedd.
        DataError: nothing there that can be imported, or it is damaged.
        NetworkError, AuthError: of the Hub.
    """
    path = Path(address).expanduser()
    if path.is_dir():
        return _read_folder(path, choice)
    if path.exists():
        return _read_file(path, choice)
    from moedd.importers.hub import is_hub_id, read_hub

    if is_hub_id(address) and not path.is_absolute():
        return read_hub(address)
    raise DataError(f"there is nothing at {address}; expected {ACCEPTED}")


def _read_folder(folder: Path, choice: Choice) -> Released:
    if (folder / "moedd.json").is_file():
        raise UsageError(
            f"{folder} is a set of moedd already: use it by its folder, there is nothing to import"
        )
    patterns = ("res_*.pt", "*images_best.pt", "images.pt", "data.pt", "*.pkl", "*.npz")
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    found = found or sorted(path for path in folder.glob("*images_*.pt") if NAME.match(path.name))
    if found:
        return _read_file(only(folder, found), choice)
    if any(folder.rglob("*.parquet")):
        from moedd.importers.hub import read_parquet

        return read_parquet(folder)
    if any(path.suffix.lower() in IMAGE_ENDINGS for path in folder.glob("*/**/*")):
        from moedd.importers.folders import read_folders

        return read_folders(folder)
    raise DataError(f"{folder} holds nothing that moedd imports; expected {ACCEPTED}")


def _read_file(path: Path, choice: Choice) -> Released:
    ending = path.suffix.lower()
    if ending in (".pkl", ".pickle"):
        return read_idm(path, choice)
    if ending == ".npz":
        return read_kip(path)
    if ending not in (".pt", ".pth"):
        raise DataError(f"{path} is no file that moedd imports; expected {ACCEPTED}")
    found = load_torch(path)
    if is_dc(found):
        return read_dc(path, found, choice)
    if is_idc(found):
        return read_idc(path, found)
    if isinstance(found, Tensor):
        plain = path.name == "images.pt"
        return (read_ddranking if plain else read_mtt)(path, found, choice)
    keys = (
        f" with the keys {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else ""
    )
    raise DataError(
        f"{path} holds a {type(found).__name__}{keys}, which no known release looks like; expected "
        f"{ACCEPTED}"
    )
