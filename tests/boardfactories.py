"""Sets for a leaderboard: two recipes, two data sets, several budgets, a stranger's odd names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import factories
from hubfactories import make_record

from moedd_loaders.manifest import Manifest
from moedd_loaders.records import append_records

MARKUP = "a[/x] [bold]b \x1b[31mc"
ODD = '<img src=x onerror="window.hacked=1">$x_1$'


def make_shelf(folder: Path) -> dict[str, Manifest]:
    """Sets of toy data with 2 and 4 images per class, one of other data, all with records."""
    made = {}
    for name, ipc, seed in (("toy-small", 1, 0), ("toy-large", 2, 1)):
        made[name] = factories.make_set(folder / name, ipc=ipc, seed=seed)
        step = 0.1 * seed
        _records(folder / name, made[name], accuracy=0.3 + step)
        _records(folder / name, made[name], accuracy=0.4 + step, fuse="mixup")
        _records(folder / name, made[name], accuracy=0.2 + step, variant="random")
        _records(folder / name, made[name], accuracy=0.9, variant="full")
        _records(folder / name, made[name], accuracy=0.5 + step, network="vgg11")
    large = made["toy-large"]
    _records(folder / "toy-large", large, accuracy=0.95, protocol="idc", epochs=1000)
    _records(folder / "toy-large", large, accuracy=0.97, data_fingerprint="sha256:other")
    _records(folder / "toy-large", large, accuracy=0.1, network=ODD)
    source = factories.make_source(2).model_copy(update={"data": "others"})
    rows = [factories.make_rows(source, [3, 3], seed=5)]
    made["others-one"] = factories.make_set(folder / "others-one", experts=rows, source=source)
    _records(folder / "others-one", made["others-one"], accuracy=0.6)
    return made


def _records(folder: Path, manifest: Manifest, accuracy: float, **changes: Any) -> None:
    """Three networks, two points apart."""
    given = {"config": {"width": 128, "profile": "float32", "draw": 0}, **changes}
    records = [
        make_record(
            manifest,
            accuracy=accuracy + 0.02 * (repeat - 1),
            **{**given, "config": {**given["config"], "repeat": repeat}},
        )
        for repeat in range(3)
    ]
    append_records(folder, records, manifest.training_sha256)
