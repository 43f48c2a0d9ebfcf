"""How experts are mixed in an evaluation, as text: a public fusion string, with the parameter of
its Beta distribution behind a colon where that is not 1."""

import math

from moedd_loaders.errors import UsageError, unknown
from moedd_loaders.fuse import FUSE_MODES


def fusion_of(fuse: str) -> tuple[str, float]:
    """Mode of a fusion, and alpha of its Beta(alpha, alpha): `mixup`, or `mixup:0.4`.

    Raises UsageError: an unknown mode; an alpha that is no number above 0, or of no fusion.
    """
    mode, colon, text = fuse.partition(":")
    if mode not in FUSE_MODES:
        raise unknown("fuse", mode, FUSE_MODES)
    try:
        alpha = float(text) if colon else 1.0
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf or (colon and mode == "none"):
        raise UsageError(
            f"fuse={fuse} given; expected a way of mixing and, where it is not 1, the parameter of "
            "its Beta distribution, a number above 0: mixup, or mixup:0.4"
        )
    return mode, alpha
