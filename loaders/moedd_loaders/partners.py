"""Who may be mixed with whom: the rows of a pool by expert and class, and draws from them.

Everything is vectorised over the rows of a batch; a draw costs a few passes over (experts, batch)
small integers, never a (batch, pool) matrix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moedd_loaders.draws import EXPERT, MEMBER, ROW, Draws
from moedd_loaders.errors import UsageError

__all__ = ["Groups"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Groups:
    """Rows of a pool grouped by (expert, class), or by expert alone.

    Args:
        experts: (R,) int64 expert ids, any integers.
        classes: (R,) int64 in [0, num_classes), or None: any class may be mixed with any other.
        num_classes: number of classes; unused without `classes`.
    """

    def __init__(self, experts: Ints, classes: Ints | None = None, num_classes: int = 1) -> None:
        self.ids, position = np.unique(experts, return_inverse=True)
        self.by_class = classes is not None
        width = num_classes if classes is not None else 1
        key = position if classes is None else position * width + classes
        counts = np.bincount(key, minlength=len(self.ids) * width)
        self.counts: Ints = counts.reshape(len(self.ids), width)
        self._starts: Ints = (np.cumsum(counts) - counts).reshape(self.counts.shape)
        self._order: Ints = np.argsort(key, kind="stable")

    def position(self, experts: Ints) -> Ints:
        """(B,) index into `ids` of each row's expert, -1 where the pool has none of it."""
        index = np.searchsorted(self.ids, experts)
        index[index == len(self.ids)] = 0
        return np.where(self.ids[index] == experts, index, -1)

    def partner(
        self,
        draws: Draws,
        experts: Ints,
        classes: Ints,
        mode: str,
        by: str,
        slots: tuple[int, int] = (EXPERT, ROW),
    ) -> tuple[Ints, Bools]:
        """One partner for every row.

        Args:
            draws: random numbers of the B rows.
            experts, classes: (B,) of the rows to be mixed; classes matter for pools by class only.
            mode: "cross" (another expert), "same" (the same expert) or "vanilla" (anybody).
            by: for "cross", "expert" draws an expert uniformly and then one of its rows, "sample"
                draws uniformly among all rows allowed.
            slots: where to find the two random numbers.

        Returns:
            (B,) row of the pool, (B,) whether there was any to choose from (row 0 where not).
        """
        column = classes if self.by_class else np.zeros_like(classes)
        counts = self.counts[:, column]
        weights = counts
        if mode != "vanilla":
            own = np.arange(len(self.ids))[:, None] == self.position(experts)
            weights = np.where(own if mode == "same" else ~own, counts, 0)
            if mode == "cross" and by == "expert":
                weights = np.minimum(weights, 1)
        total = weights.sum(axis=0)
        found = total > 0
        of_expert, of_row = draws.uniform(*slots)
        ticket = _below(of_expert, total)
        expert = (np.cumsum(weights, axis=0) <= ticket).sum(axis=0)
        expert[~found] = 0
        return self._row(expert, column, of_row, found), found

    def others(self, draws: Draws, experts: Ints, classes: Ints) -> tuple[Ints, Bools]:
        """One row of every other expert: (K-1, B) rows of the pool, (K-1, B) whether found.

        Raises:
            UsageError: a row of an expert that the pool has no row of.
        """
        own = self.position(experts)
        if (own < 0).any():
            missing = int(experts[own < 0][0])
            raise UsageError(
                f"the batch holds expert {missing} and the pool only {self.ids.tolist()}: "
                "dirichlet fusion needs a pool with rows of every expert of the batch"
            )
        column = classes if self.by_class else np.zeros_like(classes)
        slot = np.arange(len(self.ids) - 1)
        expert = slot[:, None] + (slot[:, None] >= own)
        found = self.counts[expert, column] > 0
        return self._row(expert, column, draws.uniform(*(MEMBER + slot)), found), found

    def _row(
        self, expert: Ints, column: Ints, uniform: npt.NDArray[np.float64], found: Bools
    ) -> Ints:
        place = self._starts[expert, column] + _below(uniform, self.counts[expert, column])
        # The start of an empty last group lies one past the end.
        return self._order[np.where(found, place, 0)]


def _below(uniform: npt.NDArray[np.float64], n: Ints) -> Ints:
    """floor(u * n), never n itself: u * n may round up to n."""
    return np.maximum(np.minimum((uniform * n).astype(np.int64), n - 1), 0)
