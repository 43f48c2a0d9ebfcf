"""Reading distilled sets: `load_distilled(name, fuse="mixup")` and what it is made of.

Importing this package imports nothing else; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moedd_loaders.adapt import EvalTransform
    from moedd_loaders.collate import MixCollate
    from moedd_loaders.dataset import DistilledDataset, load_distilled
    from moedd_loaders.errors import (
        AuthError,
        ConflictError,
        DataError,
        DiskFullError,
        InvalidSetError,
        MoeddError,
        NetworkError,
        NonFiniteError,
        SetNotFoundError,
        UsageError,
    )
    from moedd_loaders.fuse import FUSE_MODES, ExpertMix, Pool
    from moedd_loaders.manifest import Manifest, read_manifest
    from moedd_loaders.names import SetName, parse_name
    from moedd_loaders.read import StoredSet, read_tensors
    from moedd_loaders.records import Record, append_records, read_records
    from moedd_loaders.resolve import Resolved, bundled_names, known_names
    from moedd_loaders.samplers import ExpertBatchSampler
    from moedd_loaders.validate import validate_set

__all__ = [
    "FUSE_MODES",
    "AuthError",
    "ConflictError",
    "DataError",
    "DiskFullError",
    "DistilledDataset",
    "EvalTransform",
    "ExpertBatchSampler",
    "ExpertMix",
    "InvalidSetError",
    "Manifest",
    "MixCollate",
    "MoeddError",
    "NetworkError",
    "NonFiniteError",
    "Pool",
    "Record",
    "Resolved",
    "SetName",
    "SetNotFoundError",
    "StoredSet",
    "UsageError",
    "append_records",
    "bundled_names",
    "known_names",
    "load_distilled",
    "parse_name",
    "read_manifest",
    "read_records",
    "read_tensors",
    "validate_set",
]

# The function `resolve` is not among them: that name is taken by the module.
_HOMES = {
    "adapt": "EvalTransform",
    "collate": "MixCollate",
    "dataset": "DistilledDataset load_distilled",
    "errors": "AuthError ConflictError DataError DiskFullError InvalidSetError MoeddError "
    "NetworkError NonFiniteError SetNotFoundError UsageError",
    "fuse": "FUSE_MODES ExpertMix Pool",
    "manifest": "Manifest read_manifest",
    "names": "SetName parse_name",
    "read": "StoredSet read_tensors",
    "records": "Record append_records read_records",
    "resolve": "Resolved bundled_names known_names",
    "samplers": "ExpertBatchSampler",
    "validate": "validate_set",
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
