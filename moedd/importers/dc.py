"""`res_METHOD_DATA_NETWORK_NNipc.pt`: result files of DC, DSA, DM and IDM.

A dict: `data` lists one [images (N, C, H, W), labels (N,)] for each repetition of the experiment,
`accs_all_exps` the accuracies (fractions) by network. Nothing in it says which pixels these are:
the scripts work in normalised space. IDM's scripts call their method DM in the file's name unless
told otherwise, and store images that are cut into tiles for training (DC notes, section 6; IDM
notes, section 10).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moedd.importers.choice import Choice
from moedd.importers.labels import label_tensor
from moedd.importers.released import Released, image_tensor, source_files
from moedd_loaders.errors import DataError, UsageError

__all__ = ["is_dc", "read_dc"]

_NAME = re.compile(r"res_(?P<method>[A-Za-z0-9]+)_(?P<data>.+)_[A-Za-z0-9]+_[0-9]+ipc\.pt")
_CERTAIN = {"DC": "dc", "DSA": "dsa"}


def is_dc(found: Any) -> bool:
    """Whether a loaded file has this form."""
    return isinstance(found, dict) and isinstance(found.get("data"), list)


def read_dc(path: Path, found: dict[str, Any], choice: Choice) -> Released:
    """The set of one experiment.

    Raises:
        UsageError: several experiments and none chosen, or one that is not there.
        DataError: no images and labels where they should be.
    """
    sets = found["data"]
    number = _chosen(path, len(sets), choice.experiment)
    pair = sets[number]
    if not isinstance(pair, list) or len(pair) != 2:
        raise DataError(f"{path}: experiment {number} is no pair of images and labels")
    images, notes = image_tensor(path, pair[0])
    labels, more = label_tensor(path, pair[1], len(images))
    if len(sets) > 1:
        notes.append(f"experiment {number} of {len(sets)} in the file")
    match = _NAME.fullmatch(path.name)
    says = match["method"] if match else ""
    hints = {"space": "these scripts work in normalised space"}
    if says == "DM":
        hints["method"] = "the name says DM, and IDM's scripts write that too"
    if says not in _CERTAIN:
        hints["decode"] = "DM stores plain images, IDM 2x2 tiles counted along columns"
    return Released(
        format="dc",
        images=images,
        labels=labels,
        files=source_files([path]),
        method=_CERTAIN.get(says, ""),
        methods=("dc", "dsa", "dm", "idm"),
        data=match["data"].lower() if match else "",
        hints=hints,
        reported=_reported(found.get("accs_all_exps")),
        notes=tuple(notes + more),
    )


def _chosen(path: Path, count: int, given: int | None) -> int:
    if not count:
        raise DataError(f"{path} holds no set: its experiments were not finished")
    if given is None and count > 1:
        raise UsageError(
            f"{path} holds the sets of {count} experiments: choose one with --experiment 0 to "
            f"--experiment {count - 1}"
        )
    number = given or 0
    if not 0 <= number < count:
        raise UsageError(
            f"--experiment {number} given, and {path} holds {count}: choose 0 to {count - 1}"
        )
    return number


def _reported(accuracies: Any) -> dict[str, list[float]]:
    """Accuracies (fractions) by network; anything of another form is left out."""
    if not isinstance(accuracies, dict):
        return {}
    return {
        str(network): [float(value) for value in values]
        for network, values in accuracies.items()
        if isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    }
