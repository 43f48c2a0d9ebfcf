"""Trajectories: plain SGD on real data, made once, found again, lengthened, resumed when killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import WIDTH, digits, make_pool, random_data
from torch.func import functional_call

from moedd.arithmetic import flatten, unflatten
from moedd.augment import DSA_FAMILIES
from moedd.checkpoint import load_checkpoint, save_checkpoint
from moedd.networks import Network, build_network
from moedd.parts import PartData, whole
from moedd.streams import Streams
from moedd.train import Trainer, shuffled_batches
from moedd.trajectories import (
    Trajectories,
    TrajectoryConfig,
    epoch_steps,
    load_trajectories,
    trajectory_key,
    trajectory_path,
    trajectory_recipe,
)
from moedd_loaders.errors import DataError, MoeddError, NonFiniteError, UsageError

PART = whole(digits(2, 24))
NETWORK = make_pool(PART, 1).network
CONFIG = TrajectoryConfig(batch=16, lr=0.05)


def load(
    folder: Path, count: int = 2, epochs: int = 3, *, part: PartData = PART, **settings: Any
) -> Trajectories:
    config = CONFIG.model_copy(update=settings)
    return load_trajectories(part, NETWORK, config, count, epochs, folder)


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


def payload(made: Trajectories) -> list[bytes]:
    return [trajectory_path(made.folder, n).read_bytes() for n in range(made.count)]


def test_snapshots_are_the_start_and_every_epoch_of_plain_sgd(tmp_path: Path) -> None:
    """Against SGD written out: no momentum, no decay, the mean loss of every batch, ragged tail."""
    made = load(tmp_path, augment="none", batch=20)
    assert epoch_steps(PART, CONFIG.model_copy(update={"batch": 20})) == 3  # 48 images
    for number in range(2):
        streams = Streams(0).scope("trajectory", number)
        network = build_network(
            NETWORK.name, channels=1, classes=2, size=(8, 8), width=WIDTH,
            generator=streams.generator("init"),
        )  # fmt: skip
        theta = flatten(dict(network.named_parameters())).requires_grad_()
        found = made.snapshots(number, 0, 1, 2, 3)
        assert torch.equal(found[0], theta)
        batches = shuffled_batches(48, 20, streams)
        for epoch in range(1, 4):
            for _ in range(3):
                rows = next(batches)
                logits = functional_call(
                    network, unflatten(network, theta), (PART.normalized(rows),)
                )
                loss = F.cross_entropy(logits, PART.labels[rows])
                (gradient,) = torch.autograd.grad(loss, theta)
                theta = (theta - 0.05 * gradient).detach().requires_grad_()
            torch.testing.assert_close(found[epoch], theta.detach(), rtol=1e-4, atol=1e-5)


def test_snapshots_and_trajectories_differ_and_learn(tmp_path: Path) -> None:
    """On a CPU a snapshot that is not copied would be the final parameters, all of them."""
    made = load(tmp_path)
    rows = [row for n in range(2) for row in made.snapshots(n, 0, 1, 2, 3)]
    assert len({row.numpy().tobytes() for row in rows}) == 8
    assert all(row.shape == (made.parameters,) and row.dtype == torch.float32 for row in rows)
    _, meta = load_checkpoint(trajectory_path(made.folder, 0))
    assert meta["epoch_steps"] == 3
    assert len(meta["losses"]) == 3
    assert meta["losses"][2] < meta["losses"][0]


def test_the_recipe_is_plain_sgd_with_dsa() -> None:
    recipe = trajectory_recipe(TrajectoryConfig())
    assert (recipe.batch, recipe.lr, recipe.momentum, recipe.weight_decay) == (256, 0.01, 0.0, 0.0)
    assert (recipe.augment, recipe.families) == ("dsa", DSA_FAMILIES)
    assert (recipe.decay, recipe.cutmix) == ((), 0.0)
    plain = trajectory_recipe(TrajectoryConfig(augment="none"))
    assert (plain.augment, plain.families) == ("none", ())


def test_files_hold_one_float32_row_per_epoch_and_little_else(tmp_path: Path) -> None:
    made = load(tmp_path)
    path = trajectory_path(made.folder, 1)
    tensors, _ = load_checkpoint(path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "snapshots": (4, made.parameters)
    }
    assert path.stat().st_size < 4 * 4 * made.parameters + 1000


# -- made once -------------------------------------------------------------------------------
def test_a_second_load_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch)
    made = load(tmp_path)
    assert len(steps) == 2 * 3 * 3
    again = load(tmp_path)
    fewer = load(tmp_path, count=1, epochs=1)
    assert len(steps) == 18
    assert payload(made) == payload(again)
    assert fewer.epochs == 1
    assert [path.name for path in tmp_path.iterdir()] == [made.key]


def test_more_of_them_and_more_epochs_are_added_to_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = load(tmp_path / "straight", count=3, epochs=4)
    steps = count_steps(monkeypatch)
    load(tmp_path / "grown", count=2, epochs=1)
    assert len(steps) == 2 * 3
    grown = load(tmp_path / "grown", count=3, epochs=4)
    assert len(steps) == 3 * 4 * 3
    assert steps[6:15] == list(range(3, 12))  # the first goes on after its third step
    assert payload(grown) == payload(straight)


def test_a_killed_call_goes_on_with_the_trajectory_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = load(tmp_path / "straight")

    def kill(step: int) -> None:
        if step == 13:  # in the middle of the second
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        count_steps(patch, kill)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "killed")
    place = tmp_path / "killed" / straight.key
    assert [p.name for p in place.glob("*.safetensors")] == ["trajectory-000.safetensors"]
    steps = count_steps(monkeypatch)
    resumed = load(tmp_path / "killed")
    assert len(steps) == 9
    assert payload(resumed) == payload(straight)


def test_the_global_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    one = load(tmp_path / "a", count=1)
    torch.manual_seed(77)
    other = load(tmp_path / "b", count=1)
    torch.set_rng_state(before)
    assert payload(one) == payload(other)


@pytest.mark.parametrize("damage", ["short", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    made = load(tmp_path)
    path = trajectory_path(made.folder, 1)
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        save_checkpoint(path, {"snapshots": torch.zeros(9, 5)}, {"losses": []})
    with pytest.raises(MoeddError, match=r"trajectory-001\.safetensors .*delete it"):
        load(tmp_path)


def test_a_file_that_vanishes_while_it_is_used_is_named(tmp_path: Path) -> None:
    made = load(tmp_path, count=1, epochs=1)
    trajectory_path(made.folder, 0).unlink()
    with pytest.raises(MoeddError, match=r"trajectory-000\.safetensors"):
        made.snapshots(0, 0)


# -- the key ---------------------------------------------------------------------------------
def key(part: PartData = PART, name: str = "convnet2", width: int = WIDTH, **settings: Any) -> str:
    network = build_network(
        name, channels=1, classes=len(part.classes), size=part.shape[1:], width=width
    )
    return trajectory_key(part, network, CONFIG.model_copy(update=settings))


def test_the_key_is_that_of_the_folder(tmp_path: Path) -> None:
    made = load(tmp_path, count=1, epochs=1)
    assert made.key == key() == made.folder.name


def test_the_key_changes_with_data_network_recipe_and_precision() -> None:
    changes: dict[str, Any] = {
        "batch": 8,
        "lr": 0.02,
        "augment": "none",
        "epoch_steps": 7,
        "zca": True,
        "seed": 1,
    }
    assert changes.keys() == TrajectoryConfig.model_fields.keys()
    keys = [key(), *(key(**{name: value}) for name, value in changes.items())]
    keys += [key(name="convnet1"), key(width=WIDTH + 1)]
    keys += [key(whole(digits(2, 23))), key(whole(digits(3, 24))), key(whole(random_data()))]
    keys += [
        key(replace(PART, **change))
        for change in ({"mean": (0.1,)}, {"std": (0.1,)}, {"flip": not PART.flip})
    ]
    keys.append(trajectory_key(PART, NETWORK, CONFIG, "bfloat16"))
    assert len(set(keys)) == len(keys)


def test_the_number_of_steps_said_or_followed_from_the_data_is_one_key() -> None:
    assert key(epoch_steps=3) == key()


# -- what is refused -------------------------------------------------------------------------
def network(name: str) -> Network:
    return build_network(name, channels=1, classes=2, size=(8, 8), width=WIDTH)


def test_batch_norm_is_refused_with_the_network_to_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"convnet2_bn has batch norm.*with convnet2"):
        load_trajectories(PART, network("convnet2_bn"), CONFIG, 1, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_without_images_is_refused(tmp_path: Path) -> None:
    empty = replace(PART, images=PART.images[:0], labels=PART.labels[:0], of=2, index=1)
    with pytest.raises(DataError, match=r"part 1 of 2 of digits holds no images"):
        load(tmp_path, part=empty)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_says_where_and_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"trajectory 0 is nan in epoch 1 .*trajectory_lr"):
        load(tmp_path, lr=1e30)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_whitened_trajectories_keep_their_matrix(tmp_path: Path) -> None:
    made = load(tmp_path, count=1, epochs=1, zca=True)
    assert made.whitening is not None
    again = load(tmp_path, count=1, epochs=1, zca=True)
    assert again.whitening is not None
    assert torch.equal(made.whitening.matrix, again.whitening.matrix)
    assert load(tmp_path, count=1, epochs=1).whitening is None
