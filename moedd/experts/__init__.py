"""The distillation methods. Importing this package registers the ones that moedd ships."""

from moedd.experts import coreset, dc, dm, idc, idm, mtt, rded
from moedd.experts.base import (
    Expert,
    ExpertConfig,
    Ground,
    expert_class,
    method_names,
    register_expert,
)

__all__ = [
    "Expert",
    "ExpertConfig",
    "Ground",
    "coreset",
    "dc",
    "dm",
    "expert_class",
    "idc",
    "idm",
    "method_names",
    "mtt",
    "rded",
    "register_expert",
]
