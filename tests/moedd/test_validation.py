"""The validation part: a tenth of every class, always the same one, seen by nobody else."""

from __future__ import annotations

import torch
from enginefactories import digits, random_data

from moedd.validation import RULE, with_validation_part


def test_one_in_ten_of_every_class_is_held_out() -> None:
    real = random_data([100, 55, 10, 4])
    held = with_validation_part(real)
    counts = torch.bincount(held.test.labels, minlength=4).tolist()
    assert counts == [10, 6, 1, 1]
    assert held.class_counts() == [90, 49, 9, 3]
    assert held.notes[-1] == RULE
    assert held.fingerprint != real.fingerprint


def test_training_is_cut_in_two_and_testing_is_not_looked_at() -> None:
    real = digits(2, 40)
    held = with_validation_part(real)
    both = torch.cat([held.train.images, held.test.images]).flatten(1)
    assert torch.equal(both.unique(dim=0), real.train.images.flatten(1).unique(dim=0))
    assert len(both) == len(real.train)
    for image, label in zip(held.test.images, held.test.labels, strict=True):
        places = (real.train.images == image).flatten(1).all(1).nonzero().flatten()
        assert label in real.train.labels[places]


def test_it_is_always_the_same() -> None:
    one, other = (with_validation_part(random_data([30, 30])) for _ in range(2))
    assert torch.equal(one.test.images, other.test.images)
    assert one.fingerprint == other.fingerprint
    # Of position and class alone: other pixels, the same rows.
    changed = with_validation_part(random_data([30, 30], seed=0, mean=(0.1,)))
    assert torch.equal(one.test.images, changed.test.images)
