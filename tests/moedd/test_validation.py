"""The validation part: a tenth of every class, always the same one, seen by nobody else."""

from __future__ import annotations

from pathlib import Path

import torch
from enginefactories import digits, random_data
from runfactories import cli, tiny_arguments

from moedd.validation import RULE, with_validation_part
from moedd_loaders.manifest import read_manifest
from moedd_loaders.records import read_records


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


def test_a_set_made_without_it_is_scored_on_it(home: Path) -> None:
    made = cli(*tiny_arguments("digits-idm-1x2"), "--validation")
    assert made.code == 0, made.err
    assert RULE in made.err
    given = ["--networks", "convnet1", "--epochs", "1", "--repeats", "1", "--fuse", "none"]
    told = cli("evaluate", "digits-idm-1x2", *given, "--validation")
    assert told.code == 0, told.err
    folder = home / "sets" / "digits-idm-1x2"
    manifest = read_manifest(folder)
    (record,) = read_records(manifest, folder)
    assert record.data_fingerprint == manifest.source.fingerprint
    assert record.test_images == 143  # of 1,438


def test_a_set_that_has_seen_it_is_refused(home: Path) -> None:
    told = cli("evaluate", "digits-idm-5x2", "--validation")
    assert told.code == 2
    assert "digits-idm-5x2 was not made without them" in told.sentence
