"""What is timed when forms of the profile are compared."""

import time

import torch

from benchmarks.forms import forms, measure, piece
from moedd.profile import Profile


def test_every_form_is_another_one() -> None:
    found = list(forms("cpu", "idc"))
    assert len(found) == len(set(found)) == 4 + 8
    assert {profile.classes_at_once for profile in found} == {1, 10}
    assert {profile.classes_at_once for profile in forms("cpu", "train_convnet3")} == {1}


def test_the_first_call_counts_apart_and_the_median_is_of_the_later_ones() -> None:
    calls: list[float] = []

    def step() -> None:
        calls.append(0.0)
        time.sleep(0.1 if len(calls) == 1 else 0.01)

    first, later = measure(step, rounds=3, seconds=10)
    assert len(calls) == 5
    assert first > 0.09
    assert 9 < later < 90


def test_a_piece_of_work_is_a_step_of_the_expert_or_the_trainer() -> None:
    loss = piece("train_convnet3", Profile())()
    assert isinstance(loss, torch.Tensor)
    assert float(loss) > 0
