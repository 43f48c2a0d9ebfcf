"""`acc_0.NN.pkl`: IDM's best set so far, a plain pickle of (images, labels) on the training device.

The folder above tells data, images per class and whether the run stored tiles:
`CIFAR10_ipc_10_aug_True_model_ConvNet`. Images are in normalised space, not expanded (IDM notes,
section 10).
"""

from __future__ import annotations

import re
from pathlib import Path

from moedd.importers.choice import Choice
from moedd.importers.foreign import load_pickle
from moedd.importers.labels import label_tensor
from moedd.importers.released import Released, image_tensor, source_files
from moedd_loaders.errors import DataError

__all__ = ["read_idm"]

_FILE = re.compile(r"acc_[0-9.]+\.pkl")
_FOLDER = re.compile(r"(?P<data>.+)_ipc_[0-9]+_aug_(?P<aug>True|False)_model_.+")


def read_idm(path: Path, choice: Choice) -> Released:
    """The set in one pickle.

    Raises:
        DataError: not a pickle of a pair of tensors; nothing else in it is run.
    """
    pair = load_pickle(path)
    if not isinstance(pair, list) or len(pair) != 2:
        raise DataError(f"{path} holds a {type(pair).__name__}, expected (images, labels)")
    images, notes = image_tensor(path, pair[0])
    labels, more = label_tensor(path, pair[1], len(images))
    match = _FOLDER.fullmatch(path.resolve().parent.name)
    decode = "IDM's presets store 2x2 tiles counted along columns"
    if match:
        tiles = match["aug"] == "True"
        decode = f"the folder says aug_{match['aug']}: " + (
            "2x2 tiles counted along columns" if tiles else "plain images"
        )
    return Released(
        format="idm-pickle",
        images=images,
        labels=labels,
        files=source_files([path]),
        method="idm" if _FILE.fullmatch(path.name) else "",
        methods=("idm",),
        data=match["data"].lower() if match else "",
        hints={"space": "IDM works in normalised space", "decode": decode},
        notes=tuple(notes + more),
    )
