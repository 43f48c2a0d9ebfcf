"""What is asked of a run before it starts, and of its images before they are kept.

A loss that is NaN or infinite stops a run by itself (`Expert.finite`). Networks with instance norm
do not care how large an image is, so images can also run off and every loss stay finite: that is
looked for before each checkpoint, which therefore always holds images that a run can go on from.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch

from moedd.config import RunConfig
from moedd.diversity import DiversityLoss
from moedd.experts import Expert
from moedd.streams import Streams
from moedd_loaders.errors import DivergedError, MoeddError

MOST_RMS = 100.0
"""Root mean square of stored pixels in unit space, where black is 0 and white 1."""


def check_diversity(config: RunConfig, classes: int) -> None:
    """Refuse a diversity step that this run's counts of images do not allow, before any work.

    The loss itself says so, on made-up features with the labels that the experts will have.

    Raises UsageError: too few images for the estimator, or in a class.
    """
    if len(config.methods) < 2 or config.diversity.every == 0:
        return
    counts = sorted({expert.ipc * expert.factor**2 for expert in config.experts})
    for pair in combinations_with_replacement(counts, 2):
        generator = Streams(0).generator("check")
        sides = []
        for count in pair:
            labels = torch.arange(classes).repeat_interleave(count)
            sides += [torch.randn(len(labels), 2, generator=generator), labels]
        DiversityLoss(config.diversity)(sides[0], sides[1], sides[2], sides[3], generator)


def require_images(experts: Sequence[Expert]) -> None:
    """Raise DivergedError, naming the expert, where stored pixels left every sensible range."""
    for expert in experts:
        rms = float(expert.unit_images().square().mean().sqrt())
        # The other way round, so that NaN does not pass.
        if not rms <= MOST_RMS:
            raise DivergedError(
                f"the images of expert {expert.part.index} ({expert.method}) diverge: after its "
                f"step {expert.done} of {expert.steps} their pixels are {rms:.3g} in root mean "
                f"square, where 0 is black and 1 white, expected at most {MOST_RMS:g}: "
                f"{expert.remedy}"
            )


def require_movement(experts: Sequence[Expert]) -> None:
    """Raise DivergedError where an expert left out every step of a finished run."""
    for expert in experts:
        if expert.done and expert.left_out == expert.done:
            raise DivergedError(
                f"all {expert.done} steps of expert {expert.part.index} ({expert.method}) were "
                f"left out, because they went astray, so its images are those it started from: "
                f"{expert.remedy}"
            )


def with_snapshot(error: MoeddError, where: str) -> MoeddError:
    """The error, of the same class, with what can be gone on from."""
    return type(error)(f"{error}; the last good snapshot is {where}")
