"""moedd: distilled data sets made by a mixture of experts.

`from moedd import load_distilled` serves a distilled set to any training script; it loads the
reading side (`moedd_loaders`) only, never the engine.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moedd_loaders import DistilledDataset, ExpertMix, load_distilled

__version__ = "0.1.0"
__all__ = ["DistilledDataset", "ExpertMix", "__version__", "load_distilled"]


def __getattr__(name: str) -> Any:
    if name in {"DistilledDataset", "ExpertMix", "load_distilled"}:
        import moedd_loaders

        return getattr(moedd_loaders, name)
    raise AttributeError(f"module 'moedd' has no attribute {name!r}")
