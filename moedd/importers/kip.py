"""`.npz` files of KIP and label solve: `images` (N, H, W, C) and `labels` (N, K), both float.

The name tells network, size, whitening and label learning:
`kip_cifar10_ConvNet_ssize100_zca_nol_noaug_ckpt1000.npz`. Learned labels are regression targets,
others one-hot minus a constant.
"""

from __future__ import annotations

import re
from pathlib import Path

from moedd.importers.foreign import load_npz
from moedd.importers.labels import label_tensor
from moedd.importers.released import Released, image_tensor, source_files
from moedd_loaders.errors import DataError

__all__ = ["read_kip"]

_NAME = re.compile(
    r"(?:kip_)?(?:(?P<data>[a-z0-9_]+)_)?ConvNet3?_ssize[0-9]+_(?P<zca>no)?zca_(?:no)?l_.+\.npz"
)


def read_kip(path: Path) -> Released:
    """The set of one archive.

    Raises:
        DataError: not such a file, or no arrays `images` and `labels` in it.
    """
    arrays = load_npz(path)
    for name in ("images", "labels"):
        if name not in arrays:
            raise DataError(
                f"{path} holds the arrays {', '.join(arrays) or 'none'}, expected images and labels"
            )
    images, notes = image_tensor(path, arrays["images"])
    labels, more = label_tensor(path, arrays["labels"], len(images))
    match = _NAME.fullmatch(path.name)
    space = "KIP normalises, and whitens in the files with zca in their name"
    if match:
        space = "the name says nozca: normalised" if match["zca"] else "the name says zca: whitened"
    return Released(
        format="kip",
        images=images,
        labels=labels,
        files=source_files([path]),
        method="kip" if match else "",
        methods=("kip",),
        data=(match["data"] or "") if match else "",
        hints={"space": space, "labels": "KIP's learned labels are regression targets"},
        notes=tuple(notes + more),
    )
