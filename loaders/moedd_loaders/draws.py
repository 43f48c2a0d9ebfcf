"""Counter-based random numbers: a draw is a function of (seed, row, times served), nothing else.

Nothing is consumed in sequence, so a sample's draws are the same whether it is served alone, in a
batch, or by any worker process, and no global generator is read or advanced. The hash is the
output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), nested over seed, row and count, and then run as that generator.

A slot says what a number is for; each purpose has its own, so that switching one setting (say
`prob`) leaves all other draws as they were.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "BOX_X",
    "BOX_Y",
    "EXPERT",
    "LAM",
    "MEMBER",
    "ROW",
    "SPARE",
    "SWITCH",
    "Draws",
    "dirichlet",
    "key",
    "of_rank",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Slots, one uniform number each; MEMBER, SPARE and LAM are the first of a range.
SWITCH, EXPERT, ROW, BOX_Y, BOX_X = range(5)
MEMBER = 1 << 16
SPARE = 1 << 20
LAM = 1 << 32

_RANKS = 1 << 32

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STEP, _A, _B = np.uint64(_GOLDEN), np.uint64(_FIRST), np.uint64(_SECOND)
_30, _27, _31, _12 = (np.uint64(n) for n in (30, 27, 31, 12))


class Draws:
    """Uniform numbers of B rows, addressed by slot.

    Args:
        seed: any Python integer (taken modulo 2**64).
        rows: (B,) int64, which sample each row is.
        served: (B,) int64, how often that sample was served before.
    """

    def __init__(self, seed: int, rows: Ints, served: Ints) -> None:
        self._state = _hash(_hash(np.uint64(key(seed, 0)), rows), served)

    def __len__(self) -> int:
        return len(self._state)

    def uniform(self, *slots: int) -> Floats:
        """(len(slots), B) float64, uniform in the open interval (0, 1)."""
        return _to_unit(_hash(self._state, np.array(slots, dtype=np.int64)[:, None]))

    def at(self, rows: Ints, slots: Ints) -> Floats:
        """Uniform numbers of chosen rows (positions 0..B-1) and slots; the two broadcast."""
        return _to_unit(_hash(self._state[rows], slots))


def key(seed: int, number: int) -> int:
    """64 random bits of (seed, number), for a whole epoch rather than for a sample."""
    x = (seed + (number + 1) * _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def of_rank(seed: int, rank: int) -> int:
    """The seed of one process of a distributed run; that of rank 0 is `seed` itself.

    Ranks count for themselves how often they served a sample: with one seed, a sample that comes
    to another rank in the next epoch would be mixed as it was before.
    """
    return key(seed, _RANKS + rank) if rank else seed


def dirichlet(draws: Draws, alpha: float, parts: int) -> Floats:
    """(parts, B) float64: weights of Dirichlet(alpha * 1), non-negative, summing to 1.

    With two parts, row 0 is Beta(alpha, alpha). alpha = 0 puts all weight on part 0 (no mixing),
    the limit that the original mixup code takes; alpha > 0 and finite is the caller's business.
    """
    rows = len(draws)
    if alpha == 0 or parts == 1:
        weights = np.zeros((parts, rows))
        weights[0] = 1.0
        return weights
    if alpha == 1 and parts == 2:
        first = draws.uniform(LAM)
        return np.concatenate([first, 1.0 - first])
    # Gamma variables in the log domain: at small alpha most of them underflow, and 0/0 is NaN.
    logs = _log_gamma(draws, alpha, parts)
    logs -= logs.max(axis=0)
    with np.errstate(over="ignore"):  # to -inf, whose exponential is the right 0
        logs /= min(alpha, 1.0)
    np.exp(logs, out=logs)
    return logs / logs.sum(axis=0)


def _log_gamma(draws: Draws, alpha: float, parts: int) -> Floats:
    """(parts, B): min(alpha, 1) * log of Gamma(alpha, 1) variables (finite for every alpha > 0).

    Marsaglia and Tsang, "A simple method for generating gamma variables" (2000); below 1 through
    Gamma(alpha + 1) * U**(1/alpha). Rejected entries alone draw again, from slots of their own.
    """
    rows = len(draws)
    part, row = (grid.ravel() for grid in np.indices((parts, rows)))
    shape = alpha if alpha >= 1 else alpha + 1
    d = shape - 1 / 3
    c = 1 / np.sqrt(9 * d)
    logs = np.empty(parts * rows)
    pending = np.arange(parts * rows)
    trial = 0
    while len(pending):
        slot = LAM + parts + 3 * (trial * parts + part[pending])
        u, v, w = (draws.at(row[pending], slot + k) for k in range(3))
        z = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
        root = 1 + c * z
        # log v is taken only where v is positive; elsewhere the entry is rejected anyway.
        log_cube = 3 * np.log(np.where(root > 0, root, 1.0))
        accept = (root > 0) & (np.log(w) < z * z / 2 + d - d * root**3 + d * log_cube)
        logs[pending[accept]] = np.log(d) + log_cube[accept]
        pending = pending[~accept]
        trial += 1
    if alpha < 1:
        logs = alpha * logs + np.log(draws.at(row, LAM + part))
    return logs.reshape(parts, rows)


def _hash(state: npt.NDArray[np.uint64] | np.uint64, counter: Ints) -> npt.NDArray[np.uint64]:
    """SplitMix64's output number `counter` (from 0) of the generators in `state`."""
    x = (counter.astype(np.uint64) + np.uint64(1)) * _STEP + state
    x ^= x >> _30
    x *= _A
    x ^= x >> _27
    x *= _B
    x ^= x >> _31
    return x


def _to_unit(bits: npt.NDArray[np.uint64]) -> Floats:
    """52 random bits to the midpoints of 2**52 equal cells: never 0, never 1, so logs are safe."""
    return ((bits >> _12).astype(np.float64) + 0.5) * 2.0**-52
