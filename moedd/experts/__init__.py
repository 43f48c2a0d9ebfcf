"""The distillation methods. Importing this package registers the ones that moedd ships."""

from moedd.experts import coreset, dc, dm, idc, idm, rded
from moedd.experts.base import (
    Expert,
    ExpertConfig,
    expert_class,
    method_names,
    register_expert,
)

__all__ = [
    "Expert",
    "ExpertConfig",
    "coreset",
    "dc",
    "dm",
    "expert_class",
    "idc",
    "idm",
    "method_names",
    "rded",
    "register_expert",
]
