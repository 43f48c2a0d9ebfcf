"""Tiny tables on scikit-learn's digits, and made-up records of cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from runfactories import TINY_METHODS

from moedd.papertables.cells import Arithmetic, Cell, Evaluation, Facts, RandomCell, SetCell
from moedd.papertables.places import CellPlaces, DataPlace, read_data
from moedd.papertables.plan import Options
from moedd.papertables.rows import Identity
from moedd_loaders.records import Record

FLOAT32 = Arithmetic("float32", "float32")
SETTINGS = (
    *("width=8", "pool.networks=1", "pool.steps=2", "pool.every=1", "pool.batch=8"),
    "diversity.every=2",
)
"""Settings of all sets of a tiny table; those of methods come from `method_settings`."""


def method_settings(*methods: str) -> tuple[str, ...]:
    """Tiny settings of these methods."""
    return tuple(setting for method in methods for setting in TINY_METHODS[method])


def tiny_options(**given: Any) -> Options:
    """Table 3 of IDC with budget 4 on digits: two networks, one epoch."""
    plain: dict[str, Any] = {
        "tables": (3,),
        "budgets": (4,),
        "only": ("idc_i",),
        "groups": ("paper",),
        "networks": ("convnet1",),
        "seeds": 1,
        "repeats": 1,
        "draws": 1,
        "settings": (*SETTINGS, *method_settings("idc_i")),
        "epochs": 1,
        "width": 4,
    }
    return Options(**{**plain, **given})


def digits_facts() -> Facts:
    """What addresses and costs need to know of digits."""
    return Facts.of(read_data(DataPlace("digits")))


def cifar_facts(**fields: Any) -> Facts:
    """CIFAR-10's shapes, without its images."""
    made = Facts(
        "cifar10", "sha256:c1fa", (3, 32, 32), 10, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2), True,
        50_000, 10_000,
    )  # fmt: skip
    return replace(made, **fields)


def places(home: Path, records: Path | None = None, **fields: Any) -> CellPlaces:
    """Everything under one folder."""
    data = (DataPlace("digits"),)
    return CellPlaces(home, records or home / "table-records", data, **fields)


def set_cell(**given: Any) -> SetCell:
    """IDC's plain form, 2x2, on any data."""
    plain: dict[str, Any] = {
        "methods": "idc_i",
        "ipc": 2,
        "experts": 2,
        "seed": 0,
        "fraction": 1.0,
        "row": (),
        "settings": (*SETTINGS, *method_settings("idc_i")),
        "arithmetic": FLOAT32,
    }
    return SetCell(**{**plain, **given})


def evaluation(**given: Any) -> Evaluation:
    """One epoch of `common` on a ConvNet of width 4."""
    plain: dict[str, Any] = {
        "protocol": "common",
        "epochs": 1,
        "width": 4,
        "best": False,
        "arithmetic": FLOAT32,
    }
    return Evaluation(**{**plain, **given})


def cell(on: SetCell | RandomCell | None = None, **given: Any) -> Cell:
    """A network on digits."""
    plain: dict[str, Any] = {
        "data": "digits",
        "on": on or set_cell(),
        "fuse": "none",
        "network": "convnet1",
        "repeat": 0,
        "evaluation": evaluation(),
    }
    return Cell(**{**plain, **given})


def record(
    identity: Identity,
    accuracy: float,
    *,
    seed: int = 0,
    repeat: int = 0,
    network: str = "convnet3",
    fraction: float = 0.002,
    operations: float = 2e14,
    steps: int = 400,
    dependence: float = 0.1,
    settings: tuple[str, ...] = (),
    **fields: Any,
) -> Record:
    """A record of a cell on CIFAR-10; `accuracy` in percent."""
    distilled = identity.variant == "distilled"
    made = {
        "cell": f"{identity}-{seed}-{fraction}", "seed": seed, "fraction": fraction,
        "row": list(identity.overrides), "settings": list(settings),
        "steps": [steps] * identity.experts, "operations": operations, "seconds": 1800.0,
        "hardware": "two cores", "threads": 2, "precision": "float32",
        "unbiased": dependence if identity.experts > 1 else None,
    }  # fmt: skip
    config = {
        "repeat": repeat, "draw": 0 if distilled else seed, "lr": 0.01, "batch": 256, "width": 128,
        "profile": "float32", "fusion": {}, "operations": 1e13, "threads": 2,
        "precision": "float32", "factor": identity.factor, "notes": ["read from a folder"],
        "set": made if distilled else {},
    }  # fmt: skip
    methods = identity.methods.split("+") if distilled else [identity.variant]
    plain: dict[str, Any] = {
        "data": "cifar10",
        "set_name": f"cifar10-{identity.methods or identity.variant}",
        "methods": methods * (identity.experts // len(methods) or 1),
        "ipc": identity.ipc,
        "experts": identity.experts,
        "variant": identity.variant,
        "fuse": identity.fuse,
        "network": network,
        "protocol": "common-300",
        "epochs": 300,
        "schedule_fraction": fraction,
        "seed": seed if distilled else 0,
        "accuracy": accuracy / 100,
        "chance": 0.1,
        "set_hash": "aa",
        "hardware": "two cores",
        "data_fingerprint": "sha256:c1fa",
        "created": "2026-12-01T00:00:00Z",
        "optimizer_steps": 301,
        "seconds": 60.0,
        "n_train": 100,
        "test_images": 10_000,
        **fields,
    }
    config["cell"] = "/".join(map(str, (identity, seed, repeat, network, fraction, accuracy)))
    return Record(config=config, **plain)
