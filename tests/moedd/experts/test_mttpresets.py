"""MTT's settings by data and ipc: the published rows, and the rules where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from moedd.experts.mtt import MTTConfig
from moedd.experts.mttpresets import preset_row

# (N, M, T+, b, lr_img, lr_lr, beta0) for ipc 1, 5, 10, 20, 50
ROWS: dict[str, tuple[tuple[int, int, int], list[tuple[Any, ...]]]] = {
    "cifar10": (
        (3, 32, 32),
        [
            (50, 2, 5, None, 1000, 1e-7, 0.01),
            (40, 2, 10, None, 1000, 1e-6, 0.01),
            (30, 2, 15, None, 1000, 1e-5, 0.01),
            (30, 2, 20, None, 1000, 1e-5, 0.01),
            (30, 2, 40, None, 1000, 1e-5, 0.001),
        ],
    ),
    "cifar100": (
        (3, 32, 32),
        [
            (20, 3, 20, None, 1000, 1e-5, 0.01),
            (20, 2, 20, None, 1000, 1e-5, 0.01),
            (20, 2, 20, None, 1000, 1e-5, 0.01),
            (20, 2, 30, 500, 1000, 1e-5, 0.01),
            (80, 2, 40, 125, 1000, 1e-5, 0.01),
        ],
    ),
    "tiny": (
        (3, 64, 64),
        [
            (10, 2, 10, 200, 1e4, 1e-4, 0.01),
            (10, 2, 10, 200, 1e4, 1e-4, 0.01),
            (20, 2, 40, 200, 1e4, 1e-4, 0.01),
            (20, 2, 40, 200, 1e4, 1e-4, 0.01),
            (20, 2, 40, 300, 1e4, 1e-4, 0.01),
        ],
    ),
    "imagenette": (
        (3, 128, 128),
        [
            (20, 2, 10, None, 1000, 1e-6, 0.01),
            (20, 2, 10, None, 1000, 1e-6, 0.01),
            (20, 2, 10, 20, 1000, 1e-6, 0.01),
            (20, 2, 10, 20, 1000, 1e-6, 0.01),
            (20, 2, 10, 20, 1000, 1e-6, 0.01),
        ],
    ),
}
ROWS["svhn"] = ((3, 32, 32), ROWS["cifar10"][1])
ROWS["mnist"] = ((1, 28, 28), ROWS["cifar10"][1])


@pytest.mark.parametrize("data", ROWS)
def test_presets_are_the_published_rows(data: str) -> None:
    shape, rows = ROWS[data]
    for ipc, row in zip((1, 5, 10, 20, 50), rows, strict=True):
        made = MTTConfig.preset(data, ipc, shape)
        found = (
            made.syn_steps, made.expert_epochs, made.max_start_epoch, made.batch_syn, made.lr_img,
            made.lr_lr, made.step_size,
        )  # fmt: skip
        assert found == row, (data, ipc)
        assert (made.steps, made.momentum, made.augment, made.zca) == (5000, 0.5, True, False)
        assert (made.trajectory_batch, made.trajectory_lr) == (256, 0.01)
        assert made.epochs == row[2] - 1 + row[1]


def test_an_ipc_without_a_row_takes_the_one_below() -> None:
    shape = (3, 32, 32)
    for ipc, row in ((2, 1), (9, 5), (15, 10), (30, 20), (100, 50)):
        assert preset_row("cifar10", ipc, shape) == preset_row("cifar10", row, shape)


def test_digits_have_a_preset_of_their_own() -> None:
    made = MTTConfig.preset("digits", 5, (1, 8, 8))
    assert made.trajectory_lr == 0.05
    assert made == MTTConfig.preset("digits", 1, (1, 8, 8)).model_copy(update={"ipc": 5})
