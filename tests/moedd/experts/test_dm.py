"""DM against a slow float64 version: a network, a class mean, torch's optimiser."""

from copy import deepcopy

import pytest
import torch
from enginefactories import digits, make_expert, random_data, step_until_it_fails
from torch import Tensor

from moedd.augment import Draw, apply_draw
from moedd.experts.base import Expert
from moedd.experts.dm import DMConfig
from moedd.networks import Network
from moedd_loaders.errors import NonFiniteError

Drawn = list[tuple[tuple[str, ...], Draw]]


def slow_steps(
    expert: Expert, start: Tensor, networks: list[Network], drawn: Drawn, steps: int
) -> tuple[Tensor, list[float]]:
    """`steps` DM steps on whole classes: images and losses."""
    part, config = expert.part, expert.config
    assert isinstance(config, DMConfig)
    leaf = start.double().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=config.lr, momentum=config.momentum)
    draws, losses = [draw for _, draw in drawn], []
    for step in range(steps):
        network = deepcopy(networks[step]).double()
        total = torch.zeros((), dtype=torch.float64)
        for c, rows in enumerate(part.rows):
            real, made = part.normalized(rows).double(), leaf[expert.rows(c)]
            if config.augment:
                draw = draws.pop(0)
                real, made = apply_draw(real, draw), apply_draw(made, draw)
            gap = network.embed(real).detach().mean(0) - network.embed(made).mean(0)
            total = total + (gap * gap).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item() / len(part.rows))
    return leaf.detach(), losses


@pytest.mark.parametrize("augment", [True, False])
def test_steps_are_those_of_the_slow_version(
    augment: bool, networks: list[Network], drawn: Drawn
) -> None:
    real = random_data((6, 5, 4), (3, 8, 8))
    expert = make_expert("dm", real, ipc=2, augment=augment, lr=0.5)
    start = expert.images.clone()
    losses = [expert.step()["match"] for _ in range(3)]
    images, slow = slow_steps(expert, start, networks, drawn, 3)
    assert losses == pytest.approx(slow, rel=1e-4)
    moved = float((images - start.double()).norm())
    assert float((expert.images - images).norm()) < 1e-4 * moved
    assert len(networks) == 3
    assert not torch.equal(networks[0].body[0].weight, networks[1].body[0].weight)


def test_real_batches_are_drawn_without_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = make_expert("dm", random_data((9, 9)), ipc=1, batch_real=4)
    seen: list[Tensor] = []
    plain = type(expert.part).normalized
    monkeypatch.setattr(
        type(expert.part), "normalized", lambda part, rows: seen.append(rows) or plain(part, rows)
    )
    expert.step()
    expert.step()
    assert [len(set(rows.tolist())) for rows in seen] == [4] * 4
    assert set(seen[0].tolist()) != set(seen[2].tolist())


def test_its_loss_falls_on_digits_and_every_pixel_moves() -> None:
    expert = make_expert("dm", digits(3), ipc=2, lr=1.0)
    start = expert.images.clone()
    losses = [expert.step()["match"] for _ in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert bool((expert.images != start).flatten(1).any(0).all())
    assert bool((expert.images != start).flatten(1).float().mean(1).gt(0.99).all())


def test_presets() -> None:
    for ipc, lr in ((1, 1.0), (5, 1.0), (10, 1.0), (20, 1.0), (50, 1.0), (100, 10.0)):
        preset = DMConfig.preset("cifar10", ipc, (3, 32, 32))
        assert (preset.lr, preset.steps, preset.batch_real) == (lr, 20_000, 256)


def test_it_goes_on_where_it_stopped() -> None:
    whole, stopped, fresh = (make_expert("dm", random_data((6, 5)), ipc=2) for _ in range(3))
    for expert, steps in ((whole, 4), (stopped, 2)):
        for _ in range(steps):
            expert.step()
    fresh.load_state_dict({name: t.clone() for name, t in stopped.state_dict().items()})
    for _ in range(2):
        fresh.step()
    assert torch.equal(fresh.images, whole.images)


def test_a_step_that_leaves_the_finite_numbers_is_taken_back() -> None:
    expert = make_expert("dm", random_data((6, 5)), ipc=2, lr=1e38)
    seen = [expert.images.clone()]
    with pytest.raises(NonFiniteError, match=r"image step of expert 0 \(dm\)"):
        step_until_it_fails(expert, seen)
    assert torch.equal(expert.images, seen[-1])
