"""What becomes of the rows of a batch: the plan that fusion draws on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moedd_loaders.draws import BOX_X, BOX_Y, SPARE, Draws
from moedd_loaders.errors import UsageError
from moedd_loaders.partners import Bools, Groups, Ints

__all__ = ["MixPlan", "anybody", "cut_boxes", "no_partner", "unmixed"]


@dataclass(frozen=True, eq=False)
class MixPlan:
    """What becomes of each of B rows; M partners per row (0 for mode "none").

    Attributes:
        partner: (B, M) int64, rows of the pool.
        weight: (B, 1 + M) float32, of the row itself and of its partners; rows sum to 1.
        mixed: (B,) bool; where False, weight is (1, 0, ..., 0).
        box: (B, 4) int64 y0, y1, x0, x1 (half-open) pasted from the partner; None without CutMix.
    """

    partner: Ints
    weight: npt.NDArray[np.float32]
    mixed: Bools
    box: Ints | None = None


def unmixed(rows: int) -> MixPlan:
    """Every row as it is."""
    nobody = np.empty((rows, 0), dtype=np.int64)
    return MixPlan(nobody, np.ones((rows, 1), np.float32), np.zeros(rows, np.bool_))


def anybody(
    draws: Draws, experts: Ints, classes: Ints, groups: Groups, partner: Ints, found: Bools
) -> tuple[Ints, Bools]:
    """Any row of the pool (of the same class, in pools by class) where none was `found`.

    Args:
        partner, found: (M, B), as drawn so far.
    """
    partner, found = partner.copy(), found.copy()
    for slot in range(len(partner)):
        spare = (SPARE + 2 * slot, SPARE + 2 * slot + 1)
        other, any_found = groups.partner(draws, experts, classes, "vanilla", "sample", spare)
        partner[slot] = np.where(found[slot], partner[slot], other)
        found[slot] |= any_found
    return partner, found


def no_partner(mode: str, expert: int, known: Ints, by_class: bool) -> UsageError:
    """The error for an image of `expert` that nothing can be mixed into."""
    of_class = " of the same class" if by_class else ""
    return UsageError(
        f'mode "{mode}" finds no partner{of_class} for an image of expert {expert} among '
        f'experts {known.tolist()}: use mode="vanilla" or mode="none", or let single rows '
        'fall back with fallback="vanilla" or "none"'
    )


def cut_boxes(
    draws: Draws, lam: npt.NDArray[np.float32], size: tuple[int, int], shared: bool
) -> Ints:
    """(B, 4) CutMix boxes as IDC draws them: side ratio sqrt(1 - lam), centre anywhere, clipped.

    Args:
        lam: (B,) area to keep.
        size: (H, W) of the images.
        shared: one centre for all rows, the first row's.
    """
    ratio = np.sqrt(1 - lam.astype(np.float64))
    edges: list[Ints] = []
    for side, uniform in zip(size, draws.uniform(BOX_Y, BOX_X), strict=True):
        centre = np.minimum((uniform * side).astype(np.int64), side - 1)
        if shared:
            centre[:] = centre[0]
        half = (ratio * side).astype(np.int64) // 2
        edges += [np.maximum(centre - half, 0), np.minimum(centre + half, side)]
    return np.stack(edges, axis=1)
