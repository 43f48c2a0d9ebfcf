"""The published form of IDC: a network that is trained while images are matched under it."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from enginefactories import digits, make_expert, random_data
from torch import Tensor

from moedd.experts import idc
from moedd.experts.idc import IDC
from moedd.experts.live import LiveNetwork
from moedd.profile import Profile

LIVE: dict[str, Any] = {"networks": "live", "inner_loop": 2, "train_images": 100, "batch_real": 8}


def make(data: Any = None, **settings: Any) -> IDC:
    expert = make_expert("idc", data or digits(2, 30), **{**LIVE, **settings})
    assert isinstance(expert, IDC)
    return expert


def copy(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in parameters.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_network_is_fresh_in_every_outer_iteration_and_trained_after_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert = make()
    used: list[dict[str, Tensor]] = []
    plain = LiveNetwork.parameters

    def recording(self: LiveNetwork, outer: int) -> dict[str, Tensor]:
        used.append(copy(plain(self, outer)))
        return plain(self, outer)

    monkeypatch.setattr(LiveNetwork, "parameters", recording)
    for _ in range(4):
        expert.step()
    assert not any(same(a, b) for a, b in pairwise(used))
    fresh = [
        LiveNetwork(expert.pool, expert.part, 100, expert.streams, Profile()) for _ in range(2)
    ]
    assert same(used[0], plain(fresh[0], 0))
    assert same(used[2], plain(fresh[1], 1))
    assert not same(used[0], used[2])
    for stored in expert.pool.stored:
        assert not same(used[0], stored.parameters)


def test_training_covers_the_asked_number_of_images_in_whole_batches() -> None:
    expert = make(train_images=100)
    expert.step()
    assert expert.live.trainer is not None
    assert expert.live.trainer.steps == 2  # 2 batches of 64 hold at least 100 images
    assert expert.live.trainer.recipe.batch == 64
    assert expert.live.trainer.recipe.lr == 0.01
    assert expert.live.trainer.recipe.cutmix == 0.5
    assert expert.live.trainer.families == ("color", "crop")
    expert = make(train_images=2000)
    assert expert.live.per_step == 32
    assert make(train_images=500).live.per_step == 8


def test_the_order_of_the_real_data_is_never_restarted(served: list[Tensor]) -> None:
    real = random_data((50, 46))
    expert = make(real, train_images=128)
    rows: list[Tensor] = []
    for _ in range(3):  # two outer iterations
        served.clear()
        expert.step()
        rows += served[2:]  # after one matching batch per class
    assert [len(r) for r in rows] == [64, 32] * 3  # 96 images, ragged tail kept
    for epoch in range(3):
        seen = torch.cat(rows[2 * epoch : 2 * epoch + 2])
        assert sorted(seen.tolist()) == list(range(96))
    assert not torch.equal(rows[0], rows[2])


def test_stored_networks_build_no_live_one() -> None:
    expert = make(networks="stored")
    expert.step()
    assert expert.live.trainer is None
    assert not [name for name in expert.state_dict() if name.startswith("live")]


def test_without_training_images_the_network_stays_as_it_began() -> None:
    expert = make(train_images=0)
    before = copy(expert.live.parameters(0))
    expert.step()
    assert same(expert.live.parameters(0), before)


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_restored_network_goes_on_to_identical_bytes(at: int) -> None:
    """At 0 nothing is built yet; at 3 a new outer iteration is due."""
    straight, resumed = make(inner_loop=3), make(inner_loop=3)
    for _ in range(at):
        straight.step()
    if at == 4:  # what is loaded replaces a network that is there already
        resumed.step()
    state = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    assert ("live.outer" in state) is (at > 0)
    resumed.load_state_dict(state)
    for _ in range(2):
        assert straight.step() == resumed.step()
        assert torch.equal(straight.images, resumed.images)
    theirs = resumed.state_dict()
    assert [n for n, t in straight.state_dict().items() if not torch.equal(t, theirs[n])] == []
    assert [name for name in theirs if name.startswith("live.m.")]


def test_a_state_without_a_network_forgets_the_one_that_is_there() -> None:
    expert = make()
    start = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    first = expert.step()
    expert.load_state_dict(start)
    assert expert.live.trainer is None
    assert expert.step() == first


def test_images_under_a_live_network_move_and_stay_finite() -> None:
    expert = make(lr_img=0.5)
    before = expert.images.clone()
    for _ in range(3):
        expert.step()
    assert not torch.equal(expert.images, before)
    assert expert.images.isfinite().all()
    assert isinstance(expert, idc.IDC)
