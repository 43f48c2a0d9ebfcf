"""The diversity loss: pairing of rows, conditioning on class, records, weights."""

import math
from itertools import permutations, product

import dcor
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from moedd.distcorr import (
    centred,
    distance_correlation,
    distance_matrix,
    pairing_floor,
    without_class_blocks,
    without_classes,
)
from moedd.diversity import DiversityConfig, DiversityLoss, weight_for_ratio
from moedd_loaders.errors import NonFiniteError, UsageError

FORMS = [
    *(
        (within, estimator)
        for within in ("pooled", "block")
        for estimator in ("biased", "unbiased")
    ),
    *(("per_class", "biased"), ("per_class", "unbiased"), ("partial", "unbiased")),
]
BOTH = pytest.mark.parametrize("unbiased", [False, True])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expert(
    classes: int = 4, ipc: int = 5, d: int = 6, seed: int = 0, signal: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Class-major random features, with class centres of size `signal` shared by all seeds."""
    labels = torch.arange(classes).repeat_interleave(ipc)
    centres = signal * torch.randn(classes, d, generator=seeded(99), dtype=torch.float64)
    noise = torch.randn(len(labels), d, generator=seeded(seed), dtype=torch.float64)
    return centres[labels] + noise, labels


# ------------------------------------------------------------------ conditioning on class


@BOTH
def test_block_residual_equals_the_average_over_within_class_orders(unbiased: bool) -> None:
    classes = torch.tensor([0, 0, 0, 1, 1])
    matrix = centred(distance_matrix(expert(1, 5, 3)[0]), unbiased)
    orders = [
        [*first, *second] for first, second in product(permutations([0, 1, 2]), ([3, 4], [4, 3]))
    ]
    mean = torch.stack([matrix[order][:, order] for order in orders]).mean(0)
    residual = without_class_blocks(matrix, classes)
    torch.testing.assert_close(residual, matrix - mean, rtol=0, atol=1e-14)


@BOTH
def test_block_value_is_zero_on_average_and_uses_any_label_order(unbiased: bool) -> None:
    estimator = "unbiased" if unbiased else "biased"
    config = DiversityConfig(within="block", estimator=estimator, reshuffle=False)
    features_i, features_j = expert(1, 6, 4, seed=1)[0], expert(1, 6, 3, seed=2)[0]
    labels = torch.tensor([5, 3, 5, 3, 5, 3])
    rows = {5: [0, 2, 4], 3: [1, 3, 5]}
    values = []
    for first, second in product(permutations(rows[5]), permutations(rows[3])):
        order = torch.empty(6, dtype=torch.int64)
        order[rows[5]], order[rows[3]] = torch.tensor(first), torch.tensor(second)
        loss = DiversityLoss(config)
        values.append(loss(features_i, labels, features_j[order], labels, seeded())[1].value)
    assert sum(values) / len(values) == pytest.approx(0, abs=1e-14)
    assert max(values) > 0.05


def test_block_ignores_what_classes_explain_and_sees_what_they_do_not() -> None:
    config = DiversityConfig(within="block", estimator="unbiased", reshuffle=False)
    (x, labels), (y, _) = expert(10, 8, signal=6, seed=1), expert(10, 8, signal=6, seed=2)
    record = DiversityLoss(config)(x, labels, y, labels, seeded())[1]
    assert record.unbiased is not None
    assert record.unbiased > 0.8  # the classes
    assert abs(record.value) < 0.1
    same = DiversityLoss(config)(x, labels, 3 * x + 1, labels, seeded())[1]
    assert same.value == pytest.approx(1, abs=1e-12)


def test_block_needs_two_pairs_of_a_class() -> None:
    config = DiversityConfig(within="block")
    with pytest.raises(UsageError, match="two images per class"):
        DiversityLoss(config)(*expert(6, 1, seed=1), *expert(6, 1, seed=2), seeded())


def test_partial_is_the_partial_distance_correlation_given_the_one_hot_labels() -> None:
    config = DiversityConfig(within="partial", estimator="unbiased", reshuffle=False)
    for classes, ipc in ((3, 4), (5, 2), (2, 7)):
        (x, labels), (y, _) = expert(classes, ipc, seed=1, signal=2), expert(classes, ipc, seed=2)
        given = np.eye(classes)[labels.numpy()]
        expected = dcor.partial_distance_correlation(x.numpy(), y.numpy(), given)
        record = DiversityLoss(config)(x, labels, y, labels, seeded())[1]
        assert record.value == pytest.approx(float(expected), abs=1e-12)
        assert record.unbiased == pytest.approx(float(distance_correlation(x, y, True)), abs=1e-14)


def test_partial_reproduces_the_reference_vectors() -> None:
    """V5 and V7 of the notes, section 8."""
    v5x = [[1, 2, 0], [0, 1, 3], [2, 2, 1], [4, 0, 1], [1, 3, 2], [0, 0, 5]]
    v5y = [[0, 1], [2, 1], [1, 3], [5, 2], [0, 4], [3, 3]]
    v7x = [[5 * i % 12, i**2 % 7, (3 * i + 1) % 5] for i in range(12)]
    v7y = [[7 * i % 11, (i**2 + 2) % 9] for i in range(12)]
    config = DiversityConfig(within="partial", estimator="unbiased", reshuffle=False)
    for x, y, labels, expected in (
        (v5x, v5y, [0, 0, 0, 1, 1, 1], 0.140545851248),
        (v7x, v7y, [i // 4 for i in range(12)], -0.016573911524),
    ):
        sides = [torch.tensor(side, dtype=torch.float64) for side in (x, y)]
        classes = torch.tensor(labels)
        record = DiversityLoss(config)(sides[0], classes, sides[1], classes, seeded())[1]
        assert record.value == pytest.approx(expected, abs=6e-13)


@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5]])
def test_labels_that_tell_nothing_leave_the_unbiased_value(labels: list[int]) -> None:
    x, y = expert(1, 6, 3, seed=1)[0], expert(1, 6, 4, seed=2)[0]
    matrix = centred(distance_matrix(x), unbiased=True)
    classes = torch.tensor(labels)
    assert torch.equal(without_classes(matrix, classes), matrix)
    config = DiversityConfig(within="partial", estimator="unbiased", reshuffle=False)
    record = DiversityLoss(config)(x, classes, y, classes, seeded())[1]
    assert record.value == record.unbiased


@BOTH
def test_per_class_is_the_mean_over_the_classes_with_enough_pairs(unbiased: bool) -> None:
    estimator = "unbiased" if unbiased else "biased"
    config = DiversityConfig(within="per_class", estimator=estimator, reshuffle=False)
    sizes = (6, 1, 4, 3, 5)
    labels = torch.arange(5).repeat_interleave(torch.tensor(sizes))
    x, y = (expert(1, len(labels), d, seed=d)[0] for d in (3, 4))
    of = dcor.u_distance_correlation_sqr if unbiased else dcor.distance_correlation_sqr
    counted = [c for c, size in enumerate(sizes) if size >= (4 if unbiased else 2)]
    each = [float(of(x[labels == c].numpy(), y[labels == c].numpy())) for c in counted]
    loss, record = DiversityLoss(config)(x, labels, y, labels, seeded())
    assert record.value == pytest.approx(sum(each) / len(each), abs=1e-12)
    if unbiased:
        # Clamped class by class: one that is negative is no licence for another to be dependent.
        assert min(each) < 0
        clamped = sum(max(value, 0.0) for value in each) / len(each)
        assert loss.item() == pytest.approx(clamped, abs=1e-12)


@BOTH
def test_per_class_needs_a_class_with_enough_pairs(unbiased: bool) -> None:
    estimator = "unbiased" if unbiased else "biased"
    config = DiversityConfig(within="per_class", estimator=estimator)
    least = 4 if unbiased else 2
    sides = (*expert(6, least - 1, seed=1), *expert(6, least - 1, seed=2))
    with pytest.raises(UsageError, match=rf"needs {least} pairs of a class.*within=pooled"):
        DiversityLoss(config)(*sides, seeded())


# ------------------------------------------------------------------ the loss


def test_the_loss_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    DiversityLoss()(*expert(seed=1), *expert(seed=2), seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("within", "estimator"), FORMS)
def test_record_carries_every_value_whichever_is_minimised(estimator: str, within: str) -> None:
    x, labels = expert(seed=1, signal=1)
    y, _ = expert(seed=2, signal=1)
    config = DiversityConfig.model_validate(
        {"estimator": estimator, "within": within, "reshuffle": False}
    )
    _, record = DiversityLoss(config)(x, labels, y, labels, seeded())
    assert record.biased == pytest.approx(float(distance_correlation(x, y)), abs=1e-14)
    assert record.unbiased == pytest.approx(float(distance_correlation(x, y, True)), abs=1e-14)
    assert record.floor == pytest.approx(float(pairing_floor(x, y)), abs=1e-14)
    assert record.n == 20
    if within == "pooled":
        assert record.value == getattr(record, estimator)


def test_biased_loss_is_the_weighted_correlation_with_its_gradient() -> None:
    (x, labels), (y, _) = expert(seed=1), expert(seed=2)
    x.requires_grad_()
    y.requires_grad_()
    config = DiversityConfig(weight=2.5, reshuffle=False)
    loss, _ = DiversityLoss(config)(x, labels, y, labels, seeded())
    expected = 2.5 * distance_correlation(x, y)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True
    ):
        assert ours.norm() > 1e-4
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_pairing_undoes_storage_order() -> None:
    """Shuffled storage on one side, reshuffled pairing: the same rows of each class meet."""
    (x, labels), (y, _) = expert(8, 1, seed=1), expert(8, 1, seed=2)
    order = torch.randperm(8, generator=seeded(3))
    loss, _ = DiversityLoss()(x, labels, y[order], labels[order], seeded())
    assert loss.item() == pytest.approx(float(distance_correlation(x, y)), abs=1e-14)


def test_gradient_reaches_the_chosen_rows_only_and_either_side_may_be_detached() -> None:
    x, labels = expert(2, 5, seed=1)
    y, _ = expert(2, 3, seed=2)
    x.requires_grad_()
    loss, record = DiversityLoss()(x, labels, y, torch.arange(2).repeat_interleave(3), seeded())
    (gradient,) = torch.autograd.grad(loss, x)
    assert record.n == 6
    assert int((gradient.norm(dim=1) > 0).sum()) == 6


def anti_arranged() -> tuple[Tensor, Tensor, Tensor]:
    """A pair whose unbiased value is negative: uncorrelated, but far from independent."""
    x = torch.tensor([[0.0], [1], [2], [3], [4]], dtype=torch.float64)
    y = torch.tensor([[4.3], [1], [0], [1.2], [4]], dtype=torch.float64, requires_grad=True)
    return x, y, torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize("clamp", [True, False])
def test_the_signed_value_is_never_minimised(clamp: bool) -> None:
    x, y, labels = anti_arranged()
    config = DiversityConfig(estimator="unbiased", clamp=clamp, reshuffle=False)
    loss, record = DiversityLoss(config)(x, labels, y, labels, seeded())
    assert record.unbiased == record.value < -0.2
    assert loss.item() == pytest.approx(0 if clamp else record.value**2, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, y)
    assert (gradient.norm() == 0) == clamp
    if not clamp:  # a step down moves the value up, towards 0
        moved = (y - 0.05 * gradient).detach()
        assert record.value + 1e-4 < float(distance_correlation(x, moved, True)) < 0


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("clamp", [True, False])
def test_the_block_value_can_be_negative_with_either_estimator(estimator: str, clamp: bool) -> None:
    config = DiversityConfig.model_validate(
        {"estimator": estimator, "within": "block", "clamp": clamp, "reshuffle": False}
    )
    (x, labels), negative = expert(3, 4, seed=1), 0
    for seed in range(2, 12):
        y = expert(3, 4, seed=seed)[0].requires_grad_()
        loss, record = DiversityLoss(config)(x, labels, y, labels, seeded())
        expected = max(record.value, 0.0) if clamp else record.value**2
        assert loss.item() == pytest.approx(expected, abs=1e-14)
        negative += record.value < 0
    assert 0 < negative < 10


@pytest.mark.parametrize(("within", "estimator"), FORMS)
def test_descent_lowers_the_minimised_value(estimator: str, within: str) -> None:
    config = DiversityConfig.model_validate(
        {"estimator": estimator, "within": within, "reshuffle": False}
    )
    x, labels = expert(5, 6, seed=1, signal=1)
    y = (x + 0.5 * expert(5, 6, seed=2)[0]).requires_grad_()
    values = []
    for _ in range(20):
        loss, record = DiversityLoss(config)(x, labels, y, labels, seeded())
        values.append(record.value)
        (gradient,) = torch.autograd.grad(loss, y)
        y = (y - 15 * gradient).detach().requires_grad_()
    assert values[-1] < 0.8 * values[0]


def test_row_normalisation_gives_the_reference_value_and_survives_zero_rows() -> None:
    x = torch.tensor(
        [[1, 2, 0], [0, 1, 3], [2, 2, 1], [4, 0, 1], [1, 3, 2], [0, 0, 5]], dtype=torch.float64
    )
    y = torch.tensor([[0, 1], [2, 1], [1, 3], [5, 2], [0, 4], [3, 3]], dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.int64)
    config = DiversityConfig(normalize=True, reshuffle=False)
    _, record = DiversityLoss(config)(x, labels, y, labels, seeded())
    assert record.biased == pytest.approx(0.641634518983, abs=6e-13)
    dead = torch.zeros(6, 3, requires_grad=True)
    loss, _ = DiversityLoss(config)(dead, labels, y.float(), labels, seeded())
    assert loss.item() == 0
    assert torch.autograd.grad(loss, dead)[0].abs().max() == 0


def test_max_rows_caps_the_pairs() -> None:
    config = DiversityConfig(max_rows=24)
    _, record = DiversityLoss(config)(*expert(4, 20, seed=1), *expert(4, 20, seed=2), seeded())
    assert record.n == 24


def test_below_four_pairs_unbiased_is_not_defined() -> None:
    two = (*expert(3, 1, seed=1), *expert(3, 1, seed=2))
    _, record = DiversityLoss()(*two, seeded())
    assert record.unbiased is None
    assert record.n == 3
    with pytest.raises(UsageError, match=r"3 row.* at least 4"):
        DiversityLoss(DiversityConfig(estimator="unbiased"))(*two, seeded())


def test_float32_and_half_features_give_a_float32_loss() -> None:
    (x, labels), (y, _) = expert(seed=1), expert(seed=2)
    for dtype in (torch.float32, torch.bfloat16):
        loss, _ = DiversityLoss()(x.to(dtype), labels, y.to(dtype), labels, seeded())
        assert loss.dtype == torch.float32


def test_bad_features_and_labels_are_refused() -> None:
    x, labels = expert(seed=1)
    loss = DiversityLoss()
    with pytest.raises(UsageError, match="one integer class per row"):
        loss(x, labels[:-1], x, labels, seeded())
    with pytest.raises(UsageError, match="one integer class per row"):
        loss(x, labels.double(), x, labels, seeded())
    with pytest.raises(UsageError, match="no class in common"):
        loss(x, labels, x, labels + 10, seeded())
    with pytest.raises(NonFiniteError):
        loss(x, labels, x * float("inf"), labels, seeded())


@pytest.mark.parametrize(
    "setting",
    [
        *({"estimator": "v"}, {"within": "class"}, {"weight": -1}, {"ratio": math.nan}),
        *({"typo": 1}, {"weight": math.inf}, {"within": "partial"}),
    ],
)
def test_config_refuses_what_it_does_not_know(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DiversityConfig.model_validate(setting)


def test_config_is_frozen() -> None:
    config = DiversityConfig()
    with pytest.raises(ValidationError):
        config.weight = 2.0  # type: ignore[misc]
    assert (config.estimator, config.within, config.weight) == ("biased", "pooled", 1.0)


# ------------------------------------------------------------------ the weight


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1), st.floats(1e-3, 10))
def test_weight_makes_the_step_a_share_of_the_base_step(
    gradient: float, base: float, ratio: float, lr: float
) -> None:
    factor = weight_for_ratio(gradient, base, ratio=ratio, lr=lr, limit=math.inf)
    assert lr * factor * gradient == pytest.approx(ratio * base, rel=1e-9)


@pytest.mark.parametrize(
    ("gradient", "base"),
    [(0, 1), (1, 0), (0, 0), (math.inf, 1), (1, math.inf), (math.nan, 1), (1, math.nan)],
)
def test_weight_is_zero_where_a_step_makes_no_sense(gradient: float, base: float) -> None:
    assert weight_for_ratio(gradient, base) == 0


def test_weight_does_not_blow_up_rounding() -> None:
    assert weight_for_ratio(1e-17, 1.0) == 1e6
    assert weight_for_ratio(5e-324, 1e300, limit=10) == 10
    assert weight_for_ratio(1.0, 1.0, lr=0) == 0
    with pytest.raises(UsageError, match="negative"):
        weight_for_ratio(1.0, 1.0, ratio=-0.1)
