"""What scaling is measured by, and what the projection counts."""

import pytest
import torch

from benchmarks.jobs import Setting, make_expert, noise_data
from benchmarks.scaling import LINKS, Projection, step_operations, table
from benchmarks.scalingrank import measure
from moedd.profile import Profile
from moedd.ranks import ALONE, SENT


def test_the_projections_operations_are_those_of_the_expert() -> None:
    expert = make_expert("idc", Setting("engine"), Profile(), noise_data(), "stored")
    assert step_operations("convnet3", 10, 32, 10) == expert.step_operations()


def test_the_projection_by_hand() -> None:
    """1,000 classes of 10 images of 3x64x64 float32; four tiles each, 128 x 4 x 4 features."""
    plan = Projection()
    assert plan.image_bytes() == 10_000 * 3 * 64 * 64 * 4
    assert plan.feature_bytes() == 40_000 * 2048 * 4
    # Eight GPUs that do the measured step in one second.
    share = plan.operations() / step_operations("convnet3", 10, 32, 10) / 8
    assert plan.seconds(1.0) == pytest.approx(share)
    rows = plan.rows(1.0)
    assert [row["link"] for row in rows] == list(LINKS)
    for row, rate in zip(rows, LINKS.values(), strict=True):
        moving = (plan.image_bytes() + plan.feature_bytes()) / 10 / rate + 0.002
        assert row["moving"] == pytest.approx(moving)
        assert row["times faster"] == pytest.approx(8 / (1 + moving / share))
    assert table(rows).count("\n") == len(LINKS) + 1


def test_a_unit_counts_its_bytes_and_not_those_of_the_first_one() -> None:
    calls: list[torch.Tensor] = []

    def unit() -> None:
        calls.append(torch.zeros(1))
        SENT["features"] += 100 if len(calls) > 1 else 7

    found = measure(unit, 4, ALONE)
    SENT.clear()
    assert len(calls) == 5
    assert found["sent"] == {"features": 100}
    assert found["seconds"] >= 0
