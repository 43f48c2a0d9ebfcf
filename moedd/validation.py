"""The validation part: training images that are held out of distillation, to choose defaults on.

One in ten of the training images of each class, chosen by a fixed hash of class and position:
5,000 of CIFAR-10's. Choices are made on it, so that the test split is read for reports alone.
"""

import hashlib
from dataclasses import replace

import torch

from moedd.realdata import RealData, fingerprint

SHARE = 10
RULE = f"scored on the validation part: one in {SHARE} training images of each class"


def with_validation_part(real: RealData) -> RealData:
    """The same data with the validation part as test split, and without it in training."""
    kept: list[int] = []
    held: list[int] = []
    for label, rows in enumerate(real.train.class_rows(len(real.classes))):
        ranked = sorted(range(len(rows)), key=lambda k: _rank(label, k))
        chosen = set(ranked[: max(1, round(len(rows) / SHARE))])
        for position, row in enumerate(rows.tolist()):
            (held if position in chosen else kept).append(row)
    train, test = real.subset(torch.tensor(sorted(kept))), real.subset(torch.tensor(sorted(held)))
    real.require_per_class(2, "the validation part and what is left")
    return replace(
        real,
        train=train,
        test=test,
        fingerprint=fingerprint(real.classes, train, test),
        notes=[*real.notes, RULE],
    )


def _rank(label: int, position: int) -> bytes:
    return hashlib.sha256(f"moedd validation {label} {position}".encode()).digest()
