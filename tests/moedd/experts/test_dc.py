"""DC and DSA against a slow float64 version: every weight matrix, torch's optimisers."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_expert, random_data, step_until_it_fails
from torch import Tensor

from moedd.arithmetic import gradient_distance
from moedd.augment import Draw, apply_draw
from moedd.experts.base import Expert
from moedd.experts.dc import DCConfig, DSAConfig, loops
from moedd.networks import Network
from moedd_loaders.errors import NonFiniteError

Drawn = list[tuple[tuple[str, ...], Draw]]


def distance(network: Network, real: Tensor, made: Tensor, c: int) -> Tensor:
    """DC's distance, one output channel after another."""
    weights = [p for p in network.parameters() if p.ndim >= 2]

    def gradients(x: Tensor, keep: bool) -> tuple[Tensor, ...]:
        logits = network(x)
        loss = -F.log_softmax(logits, 1)[:, c].mean()
        return torch.autograd.grad(loss, weights, create_graph=keep)

    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(gradients(real, False), gradients(made, True), strict=True):
        for out in range(len(a)):
            x, y = a[out].flatten(), b[out].flatten()
            total = total + 1 - (x @ y) / (x.norm() * y.norm() + 1e-6)
    return total


def slow_steps(
    expert: Expert, start: Tensor, networks: list[Network], drawn: Drawn, steps: int
) -> tuple[Tensor, list[float]]:
    """`steps` image steps on whole classes, networks trained in one batch per epoch."""
    part, config = expert.part, expert.config
    assert isinstance(config, DCConfig)
    leaf = start.double().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=config.lr, momentum=config.momentum)
    draws, losses = [draw for _, draw in drawn], []
    network = networks[0]
    for step in range(steps):
        life, position = divmod(step, config.outer)
        if position == 0:
            network = deepcopy(networks[life]).double()
            trainer = torch.optim.SGD(network.parameters(), lr=config.lr_net)
        total = torch.zeros((), dtype=torch.float64)
        for c, rows in enumerate(part.rows):
            real, made = part.normalized(rows).double(), leaf[expert.rows(c)]
            if config.augment:
                draw = draws.pop(0)
                real, made = apply_draw(real, draw), apply_draw(made, draw)
            total = total + distance(network, real, made, c)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item() / len(part.rows))
        if position < config.outer - 1:
            for _ in range(config.inner):
                trainer.zero_grad()
                F.cross_entropy(network(leaf.detach()), expert.labels).backward()
                trainer.step()
    return leaf.detach(), losses


@pytest.mark.parametrize("init", ["noise", "real"])
def test_dc_steps_are_those_of_the_slow_version(
    init: str, networks: list[Network], drawn: Drawn
) -> None:
    real = random_data((6, 5, 4), (3, 8, 8))
    expert = make_expert("dc", real, ipc=2, outer=3, inner=2, init=init)
    start = expert.images.clone()
    losses = [expert.step()["match"] for _ in range(5)]
    images, slow = slow_steps(expert, start, networks, drawn, 5)
    assert losses == pytest.approx(slow, rel=1e-3)
    moved = float((images - start.double()).norm())
    assert float((expert.images - images).norm()) < 2e-3 * moved
    assert len(networks) == 2


def test_dsa_augments_both_sides_alike(networks: list[Network], drawn: Drawn) -> None:
    # No training in between: its augmentation draws per image, which the slow version lacks.
    expert = make_expert("dsa", random_data((6, 5), (3, 8, 8)), ipc=2, outer=1, inner=0)
    start = expert.images.clone()
    losses = [expert.step()["match"] for _ in range(4)]
    images, slow = slow_steps(expert, start, networks, drawn, 4)
    assert losses == pytest.approx(slow, rel=1e-3)
    assert float((expert.images - images).norm()) < 2e-3 * float((images - start).norm())
    assert len(drawn) == 8


def test_training_in_between_sees_the_images_augmented() -> None:
    plain, augmented = (
        make_expert("dsa", random_data((6, 5)), ipc=2, outer=2, inner=1, augment=augment)
        for augment in (False, True)
    )
    for expert in (plain, augmented):
        expert.step()
    a, b = (e.trainer.recipe for e in (plain, augmented))  # type: ignore[attr-defined]
    assert (a.augment, b.augment) == ("none", "dsa")
    assert (b.momentum, b.weight_decay, b.lr) == (0.0, 0.0, 0.01)


def test_distance_of_equal_and_of_opposite_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = {"w": torch.randn(4, 3, 2, 2, generator=generator), "l": torch.randn(5, 6)}
    same = {name: 3 * t for name, t in x.items()}
    assert float(gradient_distance(x, same, "cos")) == pytest.approx(0, abs=1e-4)
    opposite = {name: -t for name, t in x.items()}
    assert float(gradient_distance(x, opposite, "cos")) == pytest.approx(2 * 9, rel=1e-4)
    none = {name: torch.zeros_like(t) for name, t in x.items()}
    assert float(gradient_distance(x, none, "cos")) == pytest.approx(9)


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_its_loss_falls_on_digits_and_every_pixel_moves(method: str) -> None:
    # The same networks and batches, with and without moving: what is left is what moving does.
    same = {"outer": 1, "inner": 0, "augment": False}
    expert = make_expert(method, digits(3), ipc=2, lr=1.0, **same)
    still = make_expert(method, digits(3), ipc=2, lr=1e-9, **same)
    start = expert.images.clone()
    pairs = [(expert.step()["match"], still.step()["match"]) for _ in range(40)]
    moved, unmoved = (sum(side) for side in zip(*pairs[-15:], strict=True))
    assert moved < 0.95 * unmoved
    assert bool((expert.images != start).flatten(1).float().mean(1).gt(0.99).all())


@pytest.mark.parametrize(
    ("ipc", "expected"),
    [(1, (1, 1)), (5, (5, 50)), (10, (10, 50)), (15, (10, 50)), (20, (20, 25)), (50, (50, 10)),
     (70, (50, 10))],
)  # fmt: skip
def test_loop_lengths(ipc: int, expected: tuple[int, int]) -> None:
    assert loops(ipc) == expected
    preset = DSAConfig.preset("cifar10", ipc, (3, 32, 32))
    assert (preset.outer, preset.inner) == expected
    assert preset.steps == 1000 * expected[0]
    assert preset.augment
    assert not DCConfig.preset("cifar10", ipc, (3, 32, 32)).augment


@pytest.mark.parametrize("stop", [2, 3])
def test_it_goes_on_where_it_stopped(stop: int) -> None:
    whole, stopped, fresh = (
        make_expert("dsa", random_data((6, 5)), ipc=2, outer=3, inner=2) for _ in range(3)
    )
    for expert, steps in ((whole, 5), (stopped, stop)):
        for _ in range(steps):
            expert.step()
    fresh.load_state_dict({name: t.clone() for name, t in stopped.state_dict().items()})
    for _ in range(5 - stop):
        fresh.step()
    assert torch.equal(fresh.images, whole.images)


def test_a_step_that_leaves_the_finite_numbers_is_taken_back() -> None:
    expert = make_expert("dc", random_data((6, 5)), ipc=2, lr=1e38, outer=1)
    seen = [expert.images.clone()]
    with pytest.raises(NonFiniteError, match=r"of expert 0 \(dc\)"):
        step_until_it_fails(expert, seen)
    assert torch.equal(expert.images, seen[-1])
