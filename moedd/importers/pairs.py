"""Images in one tensor file, labels and a step size in files beside it, called alike.

`images_best.pt` goes with `labels_best.pt` and `lr_best.pt`, `images_zca_500.pt` with
`labels_500.pt`, `ema_images_best.pt` with `ema_labels_best.pt`, `images.pt` with `labels.pt`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moedd.importers.choice import BY_CLASS, Choice
from moedd.importers.foreign import load_torch
from moedd.importers.labels import label_tensor
from moedd_loaders.errors import DataError, UsageError

__all__ = ["NAME", "beside", "read_labels", "read_step_size"]

NAME = re.compile(r"(?P<ema>ema_)?images(?P<raw>_zca)?(?P<which>_best|_[0-9]+)?\.pt")


def beside(path: Path, what: str) -> Path:
    """Where the labels or the lr of an images file lie, if they do."""
    match = NAME.fullmatch(path.name)
    if match is None:
        return path.with_name(f"{what}.pt")
    return path.with_name(f"{match['ema'] or ''}{what}{match['which'] or ''}.pt")


def read_labels(path: Path, choice: Choice, images: int) -> tuple[Tensor, list[Path], list[str]]:
    """Labels of the images in `path`, the files they are from, and what was converted.

    Raises:
        UsageError: there is no file of labels, and none was given.
        DataError: the file holds no such labels.
    """
    if choice.labels == BY_CLASS:
        return _by_class(path, choice.count, images)
    file = beside(path, "labels") if choice.labels is None else Path(choice.labels).expanduser()
    if not file.is_file():
        if choice.labels is not None:
            raise DataError(f"there is no file of labels {file}")
        raise UsageError(
            f"{path} holds images without labels and there is no {file.name} beside it: give "
            f"--labels FILE, or --labels {BY_CLASS} if equal numbers of each class follow each "
            "other"
        )
    labels, notes = label_tensor(file, load_torch(file), images)
    return labels, [file], notes


def _by_class(path: Path, count: int | None, images: int) -> tuple[Tensor, list[Path], list[str]]:
    if count is None or images % count:
        given = "the classes are not told" if count is None else f"there are {count} classes"
        raise UsageError(
            f"--labels {BY_CLASS} given for the {images} images of {path}, and {given}: expected "
            "--classes or --data with a number of classes that divides the number of images"
        )
    labels = torch.arange(count).repeat_interleave(images // count)
    return labels, [], [f"labels as told: {images // count} images of each class, class by class"]


def read_step_size(path: Path) -> tuple[float | None, list[Path]]:
    """The learned step size beside the images in `path`, and its file; None without one.

    Raises:
        DataError: the file holds no single finite number.
    """
    file = beside(path, "lr")
    if not file.is_file():
        return None, []
    value: Any = load_torch(file)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{file} holds no single finite number, expected a learned step size")
    return float(value), [file]
