"""The gradient of a trajectory-matching loss through N student steps, in constant memory.

A student starts at an expert network's parameters theta_0 and takes N steps of plain gradient
descent on synthetic images, theta_{i+1} = theta_i - beta g_i. The loss is how far it ends from the
expert's later parameters, |theta_N - target|^2 / |theta_0 - target|^2.

Unrolled, its gradient needs the graphs of all N steps at once. Here the steps are taken without
graph, keeping the N parameter vectors and the augmentations' draws; then, backwards, the graph of
one step at a time is built and the adjoint lam_i = dL/dtheta_i passed through it:

    lam_N = 2 (theta_N - target) / |theta_0 - target|^2
    dL/dimages += -beta d<lam_{i+1}, g_i>/dimages       dL/dbeta += -<lam_{i+1}, g_i>
    lam_i = lam_{i+1} - beta d<lam_{i+1}, g_i>/dtheta_i

This is the exact gradient (MTT notes, section 9), for a third more arithmetic. TESLA's
approximation keeps lam_N throughout (`freeze`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moedd.arithmetic import Arithmetic
from moedd.augment import Draw, apply_draw


@dataclass(frozen=True)
class StudentStep:
    """What one student step sees: `rows` (b,) int64, each image at most once, augmented by `draw`
    (None: as they are)."""

    rows: Tensor
    draw: Draw | None = None


@dataclass(frozen=True)
class Match:
    """A matching loss and its gradient.

    `loss` (); `images` like the images, `step_size` (): its derivatives; `growth`: |lam_0| over
    |lam_N|, how much the adjoint grew on its way (large: the gradient is rounding noise).
    """

    loss: Tensor
    images: Tensor
    step_size: Tensor
    growth: Tensor


def match_trajectory(
    arithmetic: Arithmetic,
    images: Tensor,
    labels: Tensor,
    steps: Sequence[StudentStep],
    start: Tensor,
    target: Tensor,
    step_size: float,
    freeze: bool = False,
) -> Match:
    """The matching loss of `len(steps)` student steps, and its gradient.

    Args:
        images: (n, C, H, W) float32 (float64 in tests) in the space the networks were trained in.
        labels: (n,) int64.
        start, target: (P,) parameters of the expert network, `start` being the student's first.
        step_size: beta.
        freeze: TESLA's approximation, equal to the exact gradient for one step.
    """
    visited = []
    theta = start
    for step in steps:
        visited.append(theta)
        seen = _augmented(images[step.rows], step.draw)
        theta = theta - step_size * arithmetic.student_gradient(theta, seen, labels[step.rows])
    distance = (start - target).square().sum()
    loss = (theta - target).square().sum() / distance
    last = adjoint = 2 * (theta - target) / distance
    by_images = torch.zeros_like(images)
    by_step_size = torch.zeros_like(loss)
    for step, theta in zip(reversed(steps), reversed(visited), strict=True):
        leaf = images[step.rows].requires_grad_()
        seen = _augmented(leaf, step.draw)
        by_theta, by_seen, product = arithmetic.student_adjoint(
            theta, seen.detach(), labels[step.rows], adjoint
        )
        (by_leaf,) = torch.autograd.grad(seen, leaf, by_seen)
        by_images[step.rows] -= step_size * by_leaf
        by_step_size -= product
        if not freeze:
            adjoint = adjoint - step_size * by_theta
    return Match(loss, by_images, by_step_size, adjoint.norm() / last.norm())


def _augmented(images: Tensor, draw: Draw | None) -> Tensor:
    return images if draw is None else apply_draw(images, draw)
