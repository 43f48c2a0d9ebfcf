"""Operations: those of the engine, before there is an engine; and arithmetic made equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from enginefactories import digits, make_expert, make_parts, make_pool
from tablefactories import cell, cifar_facts, digits_facts, evaluation, set_cell

from moedd.experts import method_names
from moedd.papertables.cells import FullCell, RandomCell, set_config
from moedd.papertables.cost import (
    architecture,
    equal_fraction,
    network_operations,
    preparations,
    set_cost,
    step_operations,
    training_images,
)
from moedd_loaders.errors import UsageError

CONVNET3 = 101.5e6  # operations of a forward pass at 32x32, networks notes, section 2


@pytest.mark.parametrize("method", [m for m in method_names() if m not in ("mtt", "rded")])
def test_steps_cost_what_the_experts_say(method: str) -> None:
    real = digits(2, 24)
    expert = make_expert(method, make_parts(real, 1)[0], pool=make_pool(real))
    network = expert.pool.network
    assert step_operations(method, expert.config, network, 2) == expert.step_operations()


def idc(**given: Any) -> Any:
    return set_cell(**{"ipc": 5, "settings": (), "fraction": 0.002, **given})


def test_a_step_of_idc_is_what_its_parts_are() -> None:
    """10 classes of 64 real (a gradient: 3 passes) and 5 synthetic images (and its own: 9)."""
    cost = set_cost(idc(), cifar_facts())
    assert cost.steps == (400, 400)
    each = 10 * CONVNET3 * (3 * 64 + 9 * 5)
    assert cost.matching == pytest.approx([400 * each] * 2, rel=1e-3)
    # Every tenth tick features of 100 images and as much back.
    assert cost.diversity == pytest.approx(40 * 2 * CONVNET3 * 100, rel=1e-3)
    assert cost.operations == sum(cost.matching) + cost.diversity
    assert set_cost(idc(row=("diversity.every=0",)), cifar_facts()).diversity == 0
    assert set_cost(idc(experts=1), cifar_facts()).diversity == 0


def test_mosaics_cost_what_they_decode_to() -> None:
    """IDC's factor 2 makes 20 training images of 5: 3 * 64 + 9 * 20."""
    cost = set_cost(idc(methods="idc", row=("diversity.every=0",)), cifar_facts())
    assert cost.operations == pytest.approx(800 * 10 * CONVNET3 * (192 + 180), rel=1e-3)


def test_mtt_counts_its_own_images_and_steps() -> None:
    cost = set_cost(idc(methods="mtt", fraction=0.02, row=("diversity.every=0",)), cifar_facts())
    assert cost.steps == (100, 100)
    # 50 images, 40 student steps, twelve passes each.
    assert cost.operations == pytest.approx(200 * 12 * CONVNET3 * 40 * 50, rel=1e-3)


def test_rded_optimises_nothing_and_trains_an_observer() -> None:
    cost = set_cost(idc(methods="rded", ipc=20, experts=1), cifar_facts())
    assert cost.operations == 0
    assert cost.observers == pytest.approx(3 * CONVNET3 * 3000 * 64, rel=1e-3)


@pytest.mark.parametrize("methods", ["idc_i", "idc", "idm_plain", "idm", "mtt"])
def test_one_expert_at_the_arithmetic_of_two(methods: str) -> None:
    facts, multi = cifar_facts(), idc(methods=methods, fraction=0.1)
    single = replace(multi, ipc=10, experts=1)
    fraction = equal_fraction(single, multi, facts)
    assert fraction > 0.1  # two experts cost more per step than one
    fitted = set_cost(replace(single, fraction=fraction), facts)
    one_step = fitted.operations / fitted.steps[0]
    assert abs(fitted.operations - set_cost(multi, facts).operations) <= one_step


def test_nothing_is_as_much_as_rded() -> None:
    rded = idc(methods="rded", experts=1)
    with pytest.raises(UsageError, match="optimises nothing"):
        equal_fraction(rded, idc(), cifar_facts())


def test_what_is_shared_is_counted_once_and_apart() -> None:
    facts = cifar_facts()
    (pool,) = preparations(idc(), facts)
    assert pool.operations == pytest.approx(3 * 3 * CONVNET3 * 1500 * 64, rel=1e-3)
    assert pool == preparations(idc(seed=1, fraction=0.5), facts)[0]
    assert "pool of 3 convnet3 on cifar10" in pool.title
    trajectories = preparations(idc(methods="mtt", ipc=10, experts=1), facts)
    assert [work.epochs for work in trajectories] == [16]
    assert trajectories[0].operations == pytest.approx(3 * CONVNET3 * 20 * 16 * 50_000, rel=1e-3)
    assert "20 trajectories" in trajectories[0].title
    # Two experts of MTT share them, and need the pool for the diversity step.
    assert len({*preparations(idc(methods="mtt", ipc=10), facts)}) == 2
    assert preparations(idc(methods="random", experts=1), facts) == []


def test_networks_cost_training_and_testing() -> None:
    """DC counts epochs 0..E: 301 passes over 100 images, three forward passes each."""
    facts = cifar_facts()
    how = evaluation(epochs=300, width=128)
    one = cell(idc(), data="cifar10", network="convnet3", evaluation=how)
    assert training_images(one, facts) == 100
    wanted = CONVNET3 * (3 * 301 * 100 + 10_000)
    assert network_operations(one, facts) == pytest.approx(wanted, rel=1e-3)
    mosaics = replace(one, on=RandomCell(10, 2, 0))
    assert training_images(mosaics, facts) == 400
    assert training_images(replace(one, on=idc(methods="idc+rded")), facts) == 250
    assert training_images(replace(one, on=FullCell()), facts) == 50_000
    best = replace(one, evaluation=evaluation(protocol="idc", epochs=300, width=128, best=True))
    wanted = CONVNET3 * (3 * 300 * 100 + 4 * 10_000)
    assert network_operations(best, facts) == pytest.approx(wanted, rel=1e-3)


def test_networks_to_count_on_are_those_of_the_run() -> None:
    config = set_config(set_cell(), digits_facts())
    made = architecture(config.network, (1, 8, 8), 10, config.width)
    assert made.architecture == ("convnet2", 8, 1, 10, (8, 8))


def test_networks_to_count_on_are_built_once() -> None:
    """A plan has hundreds of cells, and ResNet18 takes a third of a second to build."""
    assert architecture("convnet2", (1, 8, 8), 10, 8) is architecture("convnet2", (1, 8, 8), 10, 8)
