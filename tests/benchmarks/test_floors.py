"""The floors of the benchmark: bytes by hand, rates that are rates."""

import pytest
import torch

from benchmarks.floors import bytes_of_forward, convolution_rate
from benchmarks.jobs import Setting, operations


def test_bytes_of_a_forward_pass_by_hand() -> None:
    outputs = sum(2 * 128 * side**2 + 128 * (side // 2) ** 2 for side in (32, 16, 8)) + 10
    assert bytes_of_forward("convnet3", 4) == 2 * 4 * outputs


def test_a_convolution_has_a_rate() -> None:
    # Doubling the arithmetic cannot halve its rate by much: it is a rate, not a time.
    first, second = convolution_rate(torch.float32), convolution_rate(torch.float32)
    assert 0.2 < first / second < 5
    assert first > 1e9


# IDC notes, section 12; IDM notes, section 13 (lean form) plus its share of 4,500 pool steps.
@pytest.mark.parametrize(
    ("name", "gflop"),
    [
        ("idc_inner_step", 1158.6),
        ("idm_iteration", 341 + 0.225 * 64 * 0.2985),
        ("train_convnet3", 64 * 0.2985),
    ],
)
def test_operations_are_the_references(name: str, gflop: float) -> None:
    assert operations(name, Setting("engine")) / 1e9 == pytest.approx(gflop, rel=0.04)
