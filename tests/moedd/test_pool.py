"""The pool: trained once, found again, taken up after a kill, keyed by what decides it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from enginefactories import TINY_POOL, WIDTH, digits, make_pool, random_data

from moedd.checkpoint import load_checkpoint
from moedd.networks import build_network
from moedd.parts import PartData, whole
from moedd.pool import (
    Pool,
    PoolConfig,
    load_pool,
    network_recipe,
    pool_key,
)
from moedd.train import Trainer, accuracy
from moedd_loaders.errors import MoeddError

PART = whole(digits(2, 24))
TWO = TINY_POOL.model_copy(update={"networks": 2, "steps": 5})


def load(folder: Path, part: PartData = PART, config: PoolConfig = TWO) -> Pool:
    return load_pool(part, "convnet2", WIDTH, config, folder)


def count_steps(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda n: None
) -> list[int]:
    """A list that grows with every training step; `before` is told its length."""
    steps: list[int] = []
    plain = Trainer.step

    def step(self: Trainer, fetch: Any) -> torch.Tensor:
        before(len(steps))
        steps.append(self.steps)
        return plain(self, fetch)

    monkeypatch.setattr(Trainer, "step", step)
    return steps


def same(a: Pool, b: Pool) -> bool:
    return a.key == b.key and all(
        x.steps == y.steps
        and x.accuracy_percent == y.accuracy_percent
        and all(torch.equal(x.parameters[name], y.parameters[name]) for name in x.parameters)
        for x, y in zip(a.stored, b.stored, strict=True)
    )


def test_networks_are_kept_at_spread_ages_the_last_step_included(tmp_path: Path) -> None:
    pool = load(tmp_path)
    assert [network.steps for network in pool.stored] == [2, 4, 5, 2, 4, 5]
    names = {name for name, _ in pool.network.named_parameters()}
    for network in pool.stored:
        assert network.parameters.keys() == names
    first = [network.parameters["body.0.weight"] for network in pool.stored]
    assert not any(torch.equal(first[0], other) for other in first[1:])
    assert not any(p.requires_grad for p in pool.network.parameters())


def test_a_second_load_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch)
    pool = load(tmp_path)
    assert len(steps) == 10
    again = load(tmp_path)
    assert len(steps) == 10
    assert same(pool, again)
    assert [path.name for path in tmp_path.iterdir()] == [pool.key]


def test_a_killed_pool_goes_on_with_the_networks_that_are_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = load(tmp_path / "straight")

    def kill(step: int) -> None:
        if step == 7:  # in the middle of the second network
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        count_steps(patch, kill)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "killed")
    place = tmp_path / "killed" / straight.key
    assert [p.name for p in sorted(place.glob("*.safetensors"))] == ["network-00.safetensors"]
    steps = count_steps(monkeypatch)
    resumed = load(tmp_path / "killed")
    assert steps == [0, 1, 2, 3, 4]  # only the second, from its start
    assert same(straight, resumed)
    for path in place.glob("*.safetensors"):
        other = tmp_path / "straight" / straight.key / path.name
        assert path.read_bytes() == other.read_bytes()


def test_a_damaged_network_is_named(tmp_path: Path) -> None:
    pool = load(tmp_path)
    path = tmp_path / pool.key / "network-01.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(MoeddError, match=r"network-01\.safetensors"):
        load(tmp_path)


def test_the_pool_does_not_touch_the_global_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    one = load(tmp_path / "a")
    torch.manual_seed(77)
    other = load(tmp_path / "b")
    torch.set_rng_state(before)
    assert same(one, other)


def test_accuracies_are_those_of_the_parameters_on_plain_images_in_percent(tmp_path: Path) -> None:
    config = TINY_POOL.model_copy(update={"steps": 40, "every": 20})
    pool = load(tmp_path, config=config)
    for stored in pool.stored:
        pool.network.load_state_dict(stored.parameters)
        rows = torch.arange(len(PART.labels))
        right = accuracy(pool.network, rows, PART.labels, PART.normalized)
        assert stored.accuracy_percent == pytest.approx(100 * right)
    assert pool.stored[-1].accuracy_percent > 90  # two digits are soon told apart


# -- the key ---------------------------------------------------------------------------------
def key(part: PartData = PART, name: str = "convnet2", width: int = WIDTH, **settings: Any) -> str:
    network = build_network(
        name, channels=1, classes=len(part.classes), size=part.shape[1:], width=width
    )
    return pool_key(part, network, TWO.model_copy(update=settings))


def test_the_key_is_that_of_the_folder(tmp_path: Path) -> None:
    assert load(tmp_path).key == key()


def test_the_key_changes_with_data_network_and_recipe_but_not_with_who_shares_it() -> None:
    changes: dict[str, Any] = {
        "networks": 3,
        "steps": 6,
        "every": 3,
        "batch": 8,
        "lr": 0.02,
        "momentum": 0.5,
        "weight_decay": 0.0,
        "augment": "none",
        "cutmix": 0.0,
        "seed": 1,
    }
    assert changes.keys() | {"train_on"} == PoolConfig.model_fields.keys()
    keys = [key(), *(key(**{name: value}) for name, value in changes.items())]
    keys += [key(name="convnet1"), key(width=WIDTH + 1)]
    keys += [key(whole(digits(2, 23))), key(whole(digits(3, 24))), key(whole(random_data()))]
    assert len(set(keys)) == len(keys)
    assert key(train_on="part") == key()


# -- recipe and draws ------------------------------------------------------------------------
def test_the_default_recipe_is_idcs_for_its_networks() -> None:
    recipe = network_recipe(PoolConfig())
    assert (recipe.batch, recipe.lr, recipe.momentum, recipe.weight_decay) == (64, 0.01, 0.9, 5e-4)
    assert (recipe.augment, recipe.families, recipe.cutmix) == ("idc", ("color", "crop"), 0.5)
    assert recipe.decay == ()
    plain = network_recipe(PoolConfig(augment="none", cutmix=0))
    assert (plain.augment, plain.families, plain.cutmix) == ("none", (), 0)


def test_draws_are_uniform_over_the_stored_networks() -> None:
    pool = make_pool(PART, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = [pool.draw(generator).steps for _ in range(300)]
    counts = [drawn.count(steps) for steps in (0, 100, 200)]
    assert sum(counts) == 300
    assert min(counts) > 70


def test_files_of_a_pool_are_checkpoints_of_parameters_and_ages(tmp_path: Path) -> None:
    pool = load(tmp_path)
    tensors, meta = load_checkpoint(tmp_path / pool.key / "network-00.safetensors")
    assert [age["steps"] for age in meta["ages"]] == [2, 4, 5]
    assert {name.split(".", 1)[0] for name in tensors} == {"0", "1", "2"}


def test_normalisation_is_part_of_the_key() -> None:
    part = whole(digits(2, 4))
    network = make_pool(part).network
    keys = {
        pool_key(replace(part, **change), network, PoolConfig())
        for change in ({}, {"mean": (0.1,)}, {"std": (0.1,)}, {"flip": not part.flip})
    }
    assert len(keys) == 4
