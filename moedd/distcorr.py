"""Distance correlation and its companion statistics: differentiable, no state, no randomness.

How independent are two sets of paired feature rows? `distance_correlation` answers with 0 for
independent (in the population) and 1 for equal up to rotation, shift and scale. The biased form is
the V-statistic of Székely, Rizzo and Bakirov (2007), the unbiased one the U-centred form of
Székely and Rizzo (2014). `linear_cka` (Kornblith et al. 2019; HSIC_1 of Song et al. 2012 when
unbiased) is the same ratio for squared distances.

Numerics. Distances come from matrix products, so time is O(n^2 d) and memory O(n^2). Rows are
centred first (the statistics do not depend on the mean, cancellation does) and everything is
computed in float64 where the device has it: n is a few hundred, so that costs nothing beside the
network that made the features, and no reduced-precision matmul mode (TF32, autocast) can reach it.
Two rows closer than their own rounding are duplicates: distance exactly 0, gradient 0.
"""

import torch
from torch import Tensor

from moedd_loaders.errors import NonFiniteError, UsageError

__all__ = [
    "MIN_ROWS",
    "MIN_ROWS_UNBIASED",
    "centred",
    "check_pair",
    "check_rows",
    "cosine",
    "distance_correlation",
    "distance_covariance",
    "distance_matrix",
    "floor_of",
    "linear_cka",
    "pairing_floor",
    "result_dtype",
    "share",
    "unit_rows",
    "without_class_blocks",
    "without_classes",
]

MIN_ROWS = 2
MIN_ROWS_UNBIASED = 4  # the U inner product divides by n (n - 3)


def distance_covariance(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    """Squared sample distance covariance of paired rows.

    Args:
        x, y: (n, ...) real tensors of the same n, flattened from dimension 1; a 1-D tensor is n
            scalars. Feature sizes may differ. Half precision is raised to float32.
        unbiased: the U-centred estimator (n >= 4, may be negative) instead of the V-statistic
            (n >= 2, never negative).

    Returns:
        0-d tensor with graph, in the wider dtype of the inputs (at least float32); its unit is
        the product of the units of x and y.

    Raises:
        UsageError: integer dtype, unequal or too few rows. NonFiniteError: a NaN or infinite entry.
    """
    check_pair(x, y, unbiased)
    a = centred(distance_matrix(x), unbiased)
    b = centred(distance_matrix(y), unbiased)
    n = a.shape[0]
    covariance = (a * b).sum() / (n * (n - 3) if unbiased else n * n)
    return covariance.to(result_dtype(x, y))


def distance_correlation(
    x: Tensor,
    y: Tensor,
    unbiased: bool = False,
    squared: bool = True,
    exponent: float = 1.0,
) -> Tensor:
    """Sample distance correlation of paired rows.

    Args:
        x, y: as in `distance_covariance`.
        unbiased: U-centred estimator, in [-1, 1] and 0 on average for independent rows; otherwise
            the V-statistic, in [0, 1], with the floor that `pairing_floor` gives.
        squared: return dCor^2, the quantity of the mixture paper's Eq. 2; False takes the root.
        exponent: power of the Euclidean distances, in (0, 2]; 2 gives linear CKA.

    Returns:
        0-d tensor with graph. Exactly 0 with zero gradient where a side does not vary (all rows
        equal; for the unbiased form also all rows equally far apart).

    Raises:
        UsageError: as in `distance_covariance`; `squared=False` with `unbiased=True` (it can be
            negative, so it has no root); an exponent outside (0, 2].
        NonFiniteError: a NaN or infinite entry.
    """
    if unbiased and not squared:
        raise UsageError(
            "distance_correlation was given squared=False with unbiased=True, but the unbiased "
            "value can be negative and has no square root: leave squared=True"
        )
    check_pair(x, y, unbiased)
    distances_x, distances_y = distance_matrix(x, exponent), distance_matrix(y, exponent)
    value = cosine(
        centred(distances_x, unbiased), centred(distances_y, unbiased), distances_x, distances_y
    )
    if not squared:
        positive = value > 0
        # double where: the root's infinite slope at 0 must not reach the backward pass
        value = torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)
    return value.to(result_dtype(x, y))


def pairing_floor(x: Tensor, y: Tensor, exponent: float = 1.0) -> Tensor:
    """Mean numerator of biased dCor^2 over all n! re-pairings of the rows, as a dCor^2.

    What biased dCor^2 shows when nothing is paired with anything: mean(a) mean(b) / ((n - 1)
    sqrt(dVar^2(X) dVar^2(Y))), exact. The unbiased value needs none (its floor is 0).

    Returns:
        0-d tensor with graph, in [0, 1]; 0 where a side is constant. Errors as in
        `distance_correlation`.
    """
    check_pair(x, y, unbiased=False)
    value = floor_of(distance_matrix(x, exponent), distance_matrix(y, exponent))
    return value.to(result_dtype(x, y))


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    """Linear centred kernel alignment of paired rows: distance correlation at exponent 2.

    Squared distances, centred, are -2 times the centred Gram matrix; the factor cancels.

    Args:
        x, y: as in `distance_covariance`.
        unbiased: the debiased form (HSIC_1, n >= 4, in [-1, 1]) instead of the plain one (in
            [0, 1]).

    Returns:
        0-d tensor with graph; 0 with zero gradient where a side does not vary. Errors as in
        `distance_covariance`.
    """
    return distance_correlation(x, y, unbiased, exponent=2.0)


def distance_matrix(x: Tensor, exponent: float = 1.0) -> Tensor:
    """Euclidean distances between rows, to a power.

    Args:
        x: (n, ...) real tensor; a 1-D tensor is n scalars.
        exponent: in (0, 2].

    Returns:
        (n, n) tensor in the working dtype (float64, or float32 on a device without it): symmetric,
        exactly 0 on the diagonal and between rows that differ by no more than rounding; those
        entries have zero gradient.
    """
    if not 0 < exponent <= 2:
        raise UsageError(
            f"distance exponent {exponent} is outside (0, 2]: "
            "use 1 for distance correlation or 2 for linear CKA"
        )
    rows = _rows(x)
    raw_norms = rows.detach().square().sum(1)
    # The mean is a constant for the gradient: distances do not depend on it.
    rows = rows - rows.detach().mean(0)
    gram = rows @ rows.T
    norms = gram.diagonal()
    squares = norms[:, None] + norms[None, :] - 2 * gram
    with torch.no_grad():
        product_error = 8 * torch.finfo(rows.dtype).eps * max(1.0, rows.shape[1] ** 0.5)
        input_error = 4 * torch.finfo(x.dtype).eps
        rounding = product_error * (norms[:, None] + norms[None, :])
        rounding += input_error**2 * (raw_norms[:, None] + raw_norms[None, :])
        apart = squares > rounding
        apart.fill_diagonal_(False)
    # double where: the root's infinite slope at 0 must not reach the backward pass
    safe = torch.where(apart, squares, 1.0)
    powered = safe if exponent == 2 else safe.sqrt() if exponent == 1 else safe ** (exponent / 2)
    return torch.where(apart, powered, 0.0)


def check_pair(x: Tensor, y: Tensor, unbiased: bool = False) -> None:
    """Raise unless x and y are finite real rows, paired, and enough for the estimator."""
    for name, side in (("x", x), ("y", y)):
        if not side.is_floating_point():
            raise UsageError(
                f"{name} has dtype {side.dtype}, but distances need real numbers: pass a float "
                f"tensor, e.g. {name}.float()"
            )
        if side.numel() == 0 or side.dim() == 0:
            raise UsageError(
                f"{name} has shape {tuple(side.shape)}, but rows of features were expected: "
                "pass a tensor of shape (n, d)"
            )
    if x.shape[0] != y.shape[0]:
        raise UsageError(
            f"x has {x.shape[0]} rows and y has {y.shape[0]}, but rows are paired: "
            "pass the same number of rows on both sides"
        )
    check_rows(x.shape[0], unbiased)
    for name, side in (("x", x), ("y", y)):
        broken = int((~side.detach().isfinite()).sum())
        if broken:
            raise NonFiniteError(
                f"{name} holds {broken} NaN or infinite value(s): "
                "check the images and the network that made the features"
            )


def check_rows(n: int, unbiased: bool) -> None:
    """Raise where the estimator is undefined for n paired rows."""
    least = MIN_ROWS_UNBIASED if unbiased else MIN_ROWS
    if n < least:
        raise UsageError(
            f"the {'unbiased' if unbiased else 'biased'} estimator was given {n} row(s) and needs "
            f"at least {least}: pass more rows" + (" or use the biased one" if unbiased else "")
        )


def centred(distances: Tensor, unbiased: bool) -> Tensor:
    """Double-centred distances (n, n): V-centred, or U-centred with a zero diagonal."""
    n = distances.shape[0]
    row_sums = distances.sum(1)
    if not unbiased:
        means = row_sums / n
        return distances - means[:, None] - means[None, :] + means.mean()
    means = row_sums / (n - 2)
    grand = row_sums.sum() / ((n - 1) * (n - 2))
    matrix = distances - means[:, None] - means[None, :] + grand
    return matrix.masked_fill(torch.eye(n, dtype=torch.bool, device=matrix.device), 0.0)


def cosine(a: Tensor, b: Tensor, distances_a: Tensor, distances_b: Tensor) -> Tensor:
    """Cosine of two centred (n, n) matrices: dCor^2, as the estimators' prefactors cancel.

    Returns:
        0-d tensor; 0 with zero gradient where a matrix is zero up to the rounding of the distances
        it was made from.
    """
    return share(a, b, a, b, distances_a, distances_b)


def share(
    part_a: Tensor, part_b: Tensor, a: Tensor, b: Tensor, distances_a: Tensor, distances_b: Tensor
) -> Tensor:
    """What parts of two centred (n, n) matrices contribute to their cosine.

    Orthogonal parts that add up to the matrices have shares that add up to `cosine(a, b)`.
    """
    return _ratio(
        (part_a * part_b).mean(),
        a.square().mean(),
        b.square().mean(),
        distances_a.mean(),
        distances_b.mean(),
    )


def without_classes(matrix: Tensor, classes: Tensor) -> Tensor:
    """A U-centred matrix minus its projection on that of the one-hot labels.

    The cosine of two such residuals is the partial distance correlation given the labels (Székely
    and Rizzo 2014). It removes "of the same class or not" and no more: which classes are alike is
    left in, unlike in `without_class_blocks`.

    Args:
        matrix: (n, n), U-centred. classes: (n,) int64 labels of its rows.

    Returns:
        (n, n) residual with graph; `matrix` itself where the labels tell nothing (one class, or
        every row of its own).
    """
    apart = (classes[:, None] != classes[None, :]).to(matrix.dtype)  # one-hot distance / sqrt(2)
    given = centred(apart, unbiased=True)
    length = given.square().sum()
    if float(length) <= torch.finfo(matrix.dtype).eps * len(matrix):
        return matrix
    return matrix - (matrix * given).sum() / length * given


def without_class_blocks(matrix: Tensor, classes: Tensor) -> Tensor:
    """A centred matrix minus its class-block means: what classes alone do not explain.

    The block means (every pair of classes; within a class the diagonal and the rest separately)
    are the average over all re-orderings of the rows within classes. The inner product of two such
    residuals is therefore 0 on average over within-class re-pairings, whatever the classes are.

    Args:
        matrix: (n, n), symmetric. classes: (n,) int64 labels of its rows.

    Returns:
        (n, n) residual with graph.
    """
    _, index, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    member = torch.nn.functional.one_hot(index, len(counts)).to(matrix.dtype)
    diagonal = matrix.diagonal()
    same_row = torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    sums = member.T @ matrix.masked_fill(same_row, 0.0) @ member
    cells = counts[:, None] * counts[None, :] - torch.diag(counts)
    means = sums / cells.clamp(min=1)  # a class of one row has no off-diagonal cell: sum 0
    diagonal_means = (member.T @ diagonal) / counts
    explained = torch.where(same_row, diagonal_means[index][:, None], means[index][:, index])
    return matrix - explained


def floor_of(distances_x: Tensor, distances_y: Tensor) -> Tensor:
    """`pairing_floor` from two (n, n) distance matrices."""
    mean_x, mean_y = distances_x.mean(), distances_y.mean()
    own_x = centred(distances_x, unbiased=False).square().mean()
    own_y = centred(distances_y, unbiased=False).square().mean()
    return _ratio(mean_x * mean_y / (distances_x.shape[0] - 1), own_x, own_y, mean_x, mean_y)


def unit_rows(x: Tensor) -> Tensor:
    """Rows (n, d) of length 1, at least float32; zero rows stay zero with zero gradient."""
    x = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    squares = x.square().sum(1, keepdim=True)
    nonzero = squares > 0
    return torch.where(nonzero, x / torch.where(nonzero, squares, 1.0).sqrt(), 0.0)


def result_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """dtype of a statistic of x and y: the wider of the two, at least float32."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


def _ratio(cross: Tensor, own_x: Tensor, own_y: Tensor, unit_x: Tensor, unit_y: Tensor) -> Tensor:
    """cross / sqrt(own_x own_y); 0 where own <= tiny * unit^2, i.e. a side is only rounding.

    The guard is relative, so the ratio stays invariant to the scale of the features.
    """
    tiny = (1e3 * torch.finfo(cross.dtype).eps) ** 2
    live = (own_x > tiny * unit_x.square()) & (own_y > tiny * unit_y.square())
    # two roots, not the root of the product: the product of four lengths leaves the range early
    scale = torch.where(live, own_x, 1.0).sqrt() * torch.where(live, own_y, 1.0).sqrt()
    return torch.where(live, cross / scale, 0.0)


def _rows(x: Tensor) -> Tensor:
    """x as (n, d) in the working dtype."""
    return (x[:, None] if x.dim() == 1 else x.flatten(1)).to(_working_dtype(x.device))


def _working_dtype(device: torch.device) -> torch.dtype:
    # MPS has no float64; there the centring alone has to keep the products accurate.
    return torch.float32 if device.type == "mps" else torch.float64
