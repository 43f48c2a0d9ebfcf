"""The constant-memory gradient against plain unrolling: a module, autograd, all graphs at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import WIDTH, digits, make_pool, random_data
from torch import Tensor
from torch.func import functional_call

from moedd.arithmetic import Arithmetic, arithmetic, flatten
from moedd.augment import DSA_FAMILIES, apply_draw, draw_dsa
from moedd.experts.adjoint import Match, StudentStep, match_trajectory
from moedd.networks import Network, build_network
from moedd.parts import whole
from moedd.profile import Profile
from moedd.realdata import RealData
from moedd.streams import Streams


class Case:
    """Real images as synthetic ones, a start, a target some true SGD steps away, student steps."""

    def __init__(
        self, real: RealData, n_steps: int, batch: int | None = None, augment: bool = True,
        beta: float = 0.05, dtype: torch.dtype = torch.float64, each: int = 3,
    ) -> None:  # fmt: skip
        part = whole(real)
        channels, height, side = part.shape
        self.network = build_network(
            make_pool(part, 1).network.name, channels=channels, classes=len(part.classes),
            size=(height, side), width=WIDTH, generator=Streams(3).generator("start"),
        )  # fmt: skip
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.functions: Arithmetic = arithmetic(self.network, Profile())
        rows = torch.cat([r[:each] for r in part.rows])
        self.images = part.normalized(rows).to(dtype)
        self.labels = part.labels[rows]
        self.start = flatten(dict(self.network.named_parameters())).to(dtype)
        self.target = self.start.clone()
        others = torch.cat([r[each:] for r in part.rows])
        for _ in range(20):
            seen = part.normalized(others).to(dtype)
            gradient = self.functions.student_gradient(self.target, seen, part.labels[others])
            self.target = self.target - 0.05 * gradient
        self.steps, self.beta = self._steps(n_steps, batch or len(rows), augment), beta
        self.part = part

    def _steps(self, n_steps: int, batch: int, augment: bool) -> list[StudentStep]:
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        steps = []
        for i in range(n_steps):
            generator = Streams(0).generator("step", i)
            rows = torch.randperm(len(self.images), generator=generator)[:batch]
            draw = draw_dsa(generator, batch, shape, DSA_FAMILIES, shared=False)
            steps.append(StudentStep(rows, draw if augment else None))
        return steps

    def adjoint(self, freeze: bool = False) -> Match:
        return match_trajectory(
            self.functions, self.images, self.labels, self.steps, self.start, self.target,
            self.beta, freeze,
        )  # fmt: skip

    def unrolled(self) -> tuple[Tensor, Tensor, Tensor]:
        return unrolled(
            self.network, self.images, self.labels, self.steps, self.start, self.target, self.beta
        )


def unrolled(
    network: Network, images: Tensor, labels: Tensor, steps: list[StudentStep], start: Tensor,
    target: Tensor, beta: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss and its derivatives by images and step size, as the reference computes them."""
    leaf = images.clone().requires_grad_()
    size = torch.tensor(beta, dtype=images.dtype, requires_grad=True)
    theta = start.clone().requires_grad_()
    first = theta
    for step in steps:
        x = leaf[step.rows]
        x = x if step.draw is None else apply_draw(x, step.draw)
        parameters, at = {}, 0
        for name, p in network.named_parameters():
            parameters[name] = theta[at : at + p.numel()].reshape(p.shape)
            at += p.numel()
        loss = F.cross_entropy(functional_call(network, parameters, (x,)), labels[step.rows])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - size * gradient
    loss = F.mse_loss(theta, target, reduction="sum")
    loss = loss / F.mse_loss(first.detach(), target, reduction="sum")
    by_images, by_size = torch.autograd.grad(loss, (leaf, size))
    return loss.detach(), by_images, by_size


def distance(ours: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours.double() - exact.double()).abs().max() / exact.double().abs().max())


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 8, 8), {"n_steps": 1}),
        ((1, 8, 8), {"n_steps": 12}),
        ((3, 9, 11), {"n_steps": 6, "batch": 4}),
        ((1, 8, 8), {"n_steps": 5, "augment": False, "beta": 0.3}),
    ],
)
def test_it_is_the_unrolled_gradient_to_rounding_in_float64(
    shape: tuple[int, int, int], settings: dict[str, Any]
) -> None:
    case = Case(random_data((9, 9, 9), shape), **settings)
    found, (loss, by_images, by_size) = case.adjoint(), case.unrolled()
    assert float(found.loss) == pytest.approx(float(loss), rel=1e-12)
    assert distance(found.images, by_images) < 1e-12
    assert distance(found.step_size, by_size) < 1e-12
    assert by_images.abs().max() > 0


@pytest.mark.parametrize("n_steps", [1, 2])
def test_in_float32_one_and_two_steps_agree_to_1e_5(n_steps: int) -> None:
    case = Case(digits(2, 24), n_steps, dtype=torch.float32)
    found, (loss, by_images, by_size) = case.adjoint(), case.unrolled()
    assert float(found.loss) == pytest.approx(float(loss), rel=1e-5)
    assert distance(found.images, by_images) < 1e-5
    assert distance(found.step_size, by_size) < 1e-5


def test_in_float32_ten_steps_point_the_same_way() -> None:
    case = Case(digits(2, 24), 10, dtype=torch.float32)
    found, (_, by_images, by_size) = case.adjoint(), case.unrolled()
    cosine = F.cosine_similarity(found.images.flatten(), by_images.flatten(), dim=0)
    assert float(cosine) > 0.999
    assert float(found.step_size) == pytest.approx(float(by_size), rel=1e-2)


def test_a_student_that_does_not_move_has_loss_one() -> None:
    found = Case(random_data((9, 9)), 4, beta=0.0).adjoint()
    assert float(found.loss) == 1.0
    assert not found.images.any()
    assert float(found.growth) == 1.0
    assert float(found.step_size) != 0


def test_frozen_it_is_exact_for_one_step_and_not_for_more() -> None:
    one, more = Case(random_data((9, 9)), 1), Case(random_data((9, 9)), 8, beta=0.3)
    assert distance(one.adjoint(freeze=True).images, one.unrolled()[1]) < 1e-12
    frozen = more.adjoint(freeze=True)
    assert distance(frozen.images, more.unrolled()[1]) > 1e-3
    assert float(frozen.growth) == 1.0
    # TESLA's formula: every gradient against the same direction.
    theta, total = more.start, torch.zeros_like(more.start)
    for step in more.steps:
        assert step.draw is not None
        seen = apply_draw(more.images[step.rows], step.draw)
        gradient = more.functions.student_gradient(theta, seen, more.labels[step.rows])
        theta, total = theta - more.beta * gradient, total + gradient
    d = (more.start - more.target).square().sum()
    tesla = -2 / d * (theta - more.target) @ total
    assert float(frozen.step_size) == pytest.approx(float(tesla), rel=1e-10)


def test_images_that_no_step_saw_have_no_gradient() -> None:
    case = Case(random_data((9, 9)), 2, batch=2, augment=False)
    seen = torch.zeros(len(case.images), dtype=torch.bool)
    for step in case.steps:
        seen[step.rows] = True
    assert not seen.all()
    found = case.adjoint().images.flatten(1).abs().sum(1)
    assert (found[seen] > 0).all()
    assert not found[~seen].any()


def test_scale_and_rotation_are_the_references_whatever_the_corners() -> None:
    """MTT samples with align_corners True in both steps: for square images the same function."""
    x = random_data((9, 9), (3, 8, 8)).train.images[:4].double() / 255
    for family in ("scale", "rotate"):
        draw = draw_dsa(torch.Generator().manual_seed(1), 4, (3, 8, 8), [family], shared=False)
        ((_, values),) = draw.ops
        zero = torch.zeros_like(values[0])
        if family == "scale":
            rows = ((values[0], zero, zero), (zero, values[1], zero))
        else:
            sin, cos = values[0].sin(), values[0].cos()
            rows = ((cos, -sin, zero), (sin, cos, zero))
        theta = torch.stack([torch.stack(row, -1) for row in rows], 1).double()
        grid = F.affine_grid(theta, list(x.shape), align_corners=True)
        expected = F.grid_sample(x, grid, align_corners=True)
        torch.testing.assert_close(apply_draw(x, draw), expected, rtol=1e-6, atol=1e-6)


def peak_bytes(call: Any) -> int:
    """Most bytes allocated on the CPU at once during `call()`, above those before it."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        call()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert changes
    now = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        most = max(most, now)
    return most


def test_memory_stays_flat_as_the_steps_grow_from_10_to_60() -> None:
    real = random_data((40, 40))
    few, many = (Case(real, n, dtype=torch.float32, each=15) for n in (10, 60))
    few.adjoint()  # first call: caches
    ours = [peak_bytes(case.adjoint) for case in (few, many)]
    plain = peak_bytes(few.unrolled)
    vectors = 50 * few.start.nbytes
    # All that is added: one parameter vector per student step, and the draws.
    assert ours[1] - ours[0] < 1.1 * vectors + 100_000
    assert ours[1] < 0.5 * plain
