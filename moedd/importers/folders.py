"""Class folders of pictures: RDED, SRe2L and whoever else releases JPEGs or PNGs.

RDED numbers its folders `00000`, SRe2L `new000`; the numbers are class numbers of the observer,
whose order of classes is the best known trap of these releases (RDED notes, section 9). Folders
with real names carry their classes with them. Soft labels are made anew for every batch by their
observers and are no part of the release.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from moedd.imagescan import Item
from moedd.importers.encoded import read_images
from moedd.importers.released import Released, source_files
from moedd.readers import open_image_folder
from moedd_loaders.errors import DataError

__all__ = ["read_folders"]

_NUMBERED = re.compile(r"(?:new|class)?_?([0-9]+)", re.ASCII)


def read_folders(root: Path) -> Released:
    """The pictures of all class folders.

    Raises:
        DataError: no class folders, an empty or unreadable one, two folders of one number.
    """
    opened = open_image_folder(root)
    if opened is None:
        raise DataError(f"{root} holds no class folders of images")
    items = [item for item in opened.train.items() if isinstance(item, Item)]
    images, labels, notes = read_images(items, opened.train.count, root.name or str(root))
    names = opened.classes
    numbers = [_NUMBERED.fullmatch(name) for name in names]
    paths = [item.data for item in items if isinstance(item.data, Path)]
    numbered = all(number is not None for number in numbers)
    if numbered:
        values = [int(number[1]) for number in numbers if number is not None]
        if len(set(values)) < len(values):
            raise DataError(f"{root} has two folders of one number among {', '.join(names)}")
        labels = torch.tensor(values)[labels]
        order = torch.sort(labels, stable=True).indices
        images, labels = images[order], labels[order]
        notes.append(f"folders are numbers: {names[0]} to {names[-1]}")
    return Released(
        format="folders",
        images=images,
        labels=labels,
        files=source_files(paths, root),
        folders=None if numbered else names,
        methods=("rded", "sre2l"),
        hints={
            "method": "RDED numbers its folders 00000, SRe2L new000",
            "decode": "RDED and SRe2L train on the stored images as they are, IDC would cut tiles",
            "classes": "numbers are the classes of the observer network",
        },
        notes=(*notes, *opened.notes, "8-bit pictures: values of 255 steps"),
    )
