"""From the pixels of a release to unit space, by constants or a matrix that were named.

All conversions are linear and computed in float64; nothing is clipped, so that an export gives the
same tensors back up to float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moedd.datatable import DATA
from moedd.importers.answers import Answers
from moedd.zca import Whitening, check_zca, fit_zca
from moedd_loaders.errors import DataError, UsageError
from moedd_loaders.manifest import TrainedIn

__all__ = ["Converted", "convert"]

_CONSTANTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Constants in use for other data than their own; those of the data sets are in the table."""
_AMBIGUOUS = {
    "cifar100": "DC, DSA and DM normalise CIFAR-100 by its own constants, MTT and IDC by CIFAR-10's"
}


@dataclass(frozen=True)
class Converted:
    """Images (N, C, H, W) float32 in unit space, and what they were in before.

    `files` is the payload that the space needs (a whitening matrix); `rule` says in words which
    constants were used and on whose word.
    """

    images: Tensor
    trained_in: TrainedIn
    rule: str
    files: dict[str, bytes] = field(default_factory=dict)
    warning: str | None = None


def convert(images: Tensor, said: Answers) -> Converted:
    """Unit-space pixels of (N, C, H, W) uint8 or float32 images.

    Raises:
        UsageError: an unknown space, constants that are missing, ambiguous or do not fit.
        DataError: a whitening that cannot be read or has no inverse.
    """
    space, _, detail = (said.space or "unit").partition(":")
    if images.dtype == torch.uint8:
        if space != "unit":
            raise UsageError(
                f"--space {said.space} given, and the pixels are 8-bit pictures, which are unit "
                "space: leave --space out"
            )
        return Converted(images.float() / 255, TrainedIn(space="unit"), "8-bit values / 255")
    if space not in ("unit", "normalized", "zca") or (space == "unit" and detail):
        raise UsageError(
            f"--space {said.space!r} given, expected unit, normalized, normalized:NAME, zca or "
            "zca:PATH"
        )
    if space != "normalized" and (said.mean or said.std):
        raise UsageError(f"--mean and --std given with --space {space}: they are of normalized")
    if space == "unit":
        return Converted(images, TrainedIn(space="unit"), "as told", warning=_far(images))
    if space == "zca":
        return _from_zca(images, said, detail)
    return _from_normalized(images, said, detail)


def _from_normalized(images: Tensor, said: Answers, name: str) -> Converted:
    channels = images.shape[1]
    mean, std, rule = _constants(said, name, channels)
    m, s = (torch.tensor(values).double()[:, None, None] for values in (mean, std))
    unit = (images.double() * s + m).float()
    low, high = unit.aminmax()
    warning = None
    if float(images.min()) >= 0 and float(images.max()) <= 1:
        warning = "the pixels were told to be normalised, and all of them lie between 0 and 1"
    elif float(low) < -5 or float(high) > 6:
        warning = f"denormalised pixels go from {low:.3g} to {high:.3g}, far beyond black and white"
    made = TrainedIn(space="normalized", mean=list(mean), std=list(std))
    return Converted(unit, made, rule, warning=warning)


def _constants(
    said: Answers, name: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    if said.mean is not None or said.std is not None:
        if name or said.mean is None or said.std is None:
            raise UsageError("give --mean and --std together, and without normalized:NAME")
        mean, std, rule = said.mean, said.std, "constants as told with --mean and --std"
    else:
        mean, std, rule = _named_constants(said, name)
        if channels == 3 and len(mean) == 1:
            mean, std = mean * 3, std * 3
    if not len(mean) == len(std) == channels:
        raise UsageError(
            f"{len(mean)} means and {len(std)} standard deviations for images of {channels} "
            "channels: give one of each per channel"
        )
    if min(std) <= 0:
        raise UsageError(f"--std {','.join(map(str, std))} given, expected positive numbers")
    return mean, std, rule


def _named_constants(said: Answers, name: str) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    if not name and said.data in _AMBIGUOUS:
        raise UsageError(
            f"--space normalized given for {said.data}, and two pairs of constants are in use: "
            f"{_AMBIGUOUS[said.data]}; give --space normalized:{said.data} or normalized:cifar10"
        )
    wanted = name or said.data or ""
    if wanted in _CONSTANTS:
        return *_CONSTANTS[wanted], f"the constants of {wanted}"
    if wanted not in DATA:
        given = f"normalized:{name}" if name else "normalized"
        raise UsageError(
            f"--space {given} given without known constants: give --mean and --std, or "
            f"normalized:NAME with one of {', '.join([*DATA, *_CONSTANTS])}"
        )
    return DATA[wanted].mean, DATA[wanted].std, f"the constants of {wanted} in moedd's table"


def _from_zca(images: Tensor, said: Answers, place: str) -> Converted:
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    check_zca(shape)
    if place.endswith(".safetensors"):
        whitening, rule = _read_whitening(Path(place).expanduser(), images[0].numel())
    else:
        whitening, rule = _fitted(said, place, shape)
    matrix = whitening.matrix.double()
    exact = Whitening(whitening.mean.double(), matrix, _inverse(matrix, rule))
    unit = exact.unit(images.double()).float()
    name, data = whitening.file()
    made = TrainedIn(space="zca", matrix=name)
    return Converted(unit, made, rule, {name: data})


def _read_whitening(path: Path, values: int) -> tuple[Whitening, str]:
    """A whitening in a file with the tensors mean (d,) and matrix (d, d); inverted here."""
    if not path.is_file():
        raise DataError(f"there is no whitening file {path}")
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{path} is no safetensors file: {error}") from None
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found.get("mean") != (values,) or found.get("matrix") != (values, values):
        raise DataError(
            f"{path} holds {found}, expected mean ({values},) and matrix ({values}, {values})"
        )
    whitening = Whitening(tensors["mean"].float(), tensors["matrix"].float())
    return whitening, f"the whitening in {path.name}"


def _inverse(matrix: Tensor, what: str) -> Tensor:
    """The inverse of a (d, d) float64 matrix, if its product with the matrix is the identity."""
    try:
        inverse = torch.linalg.inv(matrix)
        off = float((matrix @ inverse - torch.eye(len(matrix), dtype=matrix.dtype)).abs().max())
    except torch.linalg.LinAlgError:
        off = math.inf
    if not off < 1e-6:
        raise DataError(
            f"{what} has no inverse, so its pixels cannot be brought back to unit space"
        )
    return inverse


def _fitted(said: Answers, place: str, shape: tuple[int, int, int]) -> tuple[Whitening, str]:
    """MTT's whitening is a function of the real data, and was fitted anew in every run."""
    from moedd.parts import whole
    from moedd.realdata import load_real

    name = said.data or ""
    if not place and name not in DATA:
        raise UsageError(
            "--space zca given, and the whitening is in no file: give zca:FILE.safetensors (mean "
            "and matrix), zca:FOLDER with the real training images, or --data with a known name"
        )
    real = load_real(name or "real", path=place or None, size=shape[1:], channels=shape[0])
    whitening = fit_zca(whole(real))
    return whitening, (
        f"whitening fitted by moedd to the {len(real.train)} training images of {real.data} "
        f"({real.fingerprint}), eps 0.1, as MTT's scripts fit it"
    )


def _far(images: Tensor) -> str | None:
    low, high = (float(value) for value in images.aminmax())
    if low >= -1 and high <= 2:
        return None
    return f"the pixels were told to be in unit space, and go from {low:.3g} to {high:.3g}"
