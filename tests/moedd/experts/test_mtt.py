"""MTT against a slow float64 version of its reference, its guards, its presets, its spaces."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_expert, make_parts, make_pool, random_data
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from trajectoryfactories import SMALL, ground, make_mtt, prepare

from moedd.arithmetic import unflatten
from moedd.augment import apply_draw
from moedd.checkpoint import load_checkpoint, save_checkpoint
from moedd.experts.mtt import MTT, MTTConfig
from moedd.networks import build_network
from moedd.parts import normalize, whole
from moedd.trajectories import trajectory_path
from moedd_loaders.errors import DataError, MoeddError, NonFiniteError, UsageError


def slow_steps(expert: MTT, steps: int) -> tuple[Tensor, float, list[float]]:
    """`steps` MTT steps in float64: all graphs at once, torch's optimisers. Images, log of the step
    size, losses."""
    config, network = expert.config, expert.pool.network
    leaf = expert.images.double().clone().requires_grad_()
    log_step = torch.tensor(math.log(config.step_size), dtype=torch.float64, requires_grad=True)
    lr_log = config.lr_lr / config.step_size**2
    images = torch.optim.SGD([leaf], lr=config.lr_img, momentum=config.momentum)
    size = torch.optim.SGD([log_step], lr=lr_log, momentum=config.momentum)
    losses = []
    for done in range(steps):
        expert.done = done
        streams = expert.streams.scope("step", done)
        number, epoch = expert._segment(streams)
        start, target = (
            row.double()
            for row in expert.prepared.snapshots(number, epoch, epoch + config.expert_epochs)
        )
        theta = start.clone().requires_grad_()
        for step in expert._student_steps(streams):
            x = leaf[step.rows]
            x = x if step.draw is None else apply_draw(x, step.draw)
            logits = functional_call(network, unflatten(network, theta), (x,))
            loss = F.cross_entropy(logits, expert.labels[step.rows])
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - log_step.exp() * gradient
        grand = (theta - target).pow(2).sum() / (start - target).pow(2).sum()
        for optimizer in (images, size):
            optimizer.zero_grad()
        grand.backward()
        for optimizer in (images, size):
            optimizer.step()
        losses.append(float(grand.detach()))
    expert.done = 0
    return leaf.detach(), float(log_step.detach()), losses


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 8, 8), {}),
        ((3, 9, 11), {"batch_syn": 4, "momentum": 0.9}),
        ((1, 8, 8), {"augment": False, "expert_epochs": 2, "syn_steps": 2}),
        ((1, 8, 8), {"zca": True}),
    ],
)
def test_steps_equal_a_slow_float64_version(
    shape: tuple[int, int, int], settings: dict[str, Any], tmp_path: Path
) -> None:
    # Without the limit that the reference does not have.
    given = {"most_change": 1e9, **settings}
    expert = make_mtt(tmp_path, random_data((9, 9, 9), shape, flip=True), **given)
    expert.images, expert.velocity = expert.images.double(), expert.velocity.double()
    start = expert.images.clone()
    images, log_step, losses = slow_steps(expert, 3)
    found = [expert.step() for _ in range(3)]
    moved, ours = images - start, expert.images - start
    torch.testing.assert_close(ours / moved.std(), moved / moved.std(), rtol=1e-7, atol=1e-7)
    assert [row["match"] for row in found] == pytest.approx(losses, rel=1e-9)
    assert expert.log_step == pytest.approx(log_step, abs=1e-9)
    assert expert.log_step != math.log(expert.config.step_size)
    assert found[0]["step_size"] == pytest.approx(expert.config.step_size)


@pytest.mark.parametrize("rate", [0.0, 1e-3])  # by the images alone, and with the step size
def test_a_few_dozen_steps_bring_the_loss_down_on_real_digits(rate: float, tmp_path: Path) -> None:
    expert = make_mtt(
        tmp_path, digits(4, 32), steps=30, lr_img=30.0, lr_lr=rate, most_loss=1.5, step_size=0.15,
        expert_epochs=2, max_start_epoch=3,
    )  # fmt: skip

    def losses() -> float:
        """Mean loss over the same segments, rows and draws, which no step of the expert has."""
        streams = [expert.streams.scope("held out", n) for n in range(4)]
        return sum(float(expert._match(own).loss) for own in streams) / 4

    before = losses()
    for _ in range(24):
        expert.step()
    assert expert.left_out == 0
    assert losses() < 0.8 * before


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11)])
def test_the_gradient_reaches_every_stored_pixel(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    expert = make_mtt(tmp_path, random_data((8, 8), shape), augment=False, lr_img=1e4)
    before = expert.images.clone()
    expert.step()
    assert (expert.images != before).all()


# -- draws -----------------------------------------------------------------------------------
def test_images_start_as_random_real_ones_of_their_class(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, random_data((9, 9)), ipc=3)
    for c in range(2):
        real = expert.part.normalized(expert.part.rows[c]).flatten(1)
        found = expert.images[expert.rows(c)].flatten(1)
        same = (found[:, None] == real[None]).all(-1)
        assert same.any(1).all()
        assert same.sum() == 3  # three different ones


def test_chunks_take_every_image_once_and_the_short_one_first(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, random_data((9, 9)), ipc=5, batch_syn=4, syn_steps=5)
    steps = expert._student_steps(expert.streams.scope("step", 0))
    assert [len(step.rows) for step in steps] == [2, 4, 4, 2, 4]
    first = torch.cat([step.rows for step in steps[:3]]).tolist()
    assert sorted(first) == list(range(10))
    assert torch.cat([step.rows for step in steps[3:]]).tolist() != first[:6]
    assert all(step.draw is not None and not step.draw.shared for step in steps)
    families = {step.draw.ops[0][0] for step in steps if step.draw is not None}
    assert "flip" not in families
    other = expert._student_steps(expert.streams.scope("step", 1))
    assert not all(torch.equal(a.rows, b.rows) for a, b in zip(steps, other, strict=True))


def test_all_images_take_part_where_the_batch_is_larger(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, ipc=2, batch_syn=100, augment=False)
    for step in expert._student_steps(expert.streams):
        assert sorted(step.rows.tolist()) == [0, 1, 2, 3]
        assert step.draw is None


def test_every_trajectory_is_used_once_a_round_and_every_start_comes(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, trajectories=3, max_start_epoch=3)
    found = []
    for done in range(60):
        expert.done = done
        found.append(expert._segment(expert.streams.scope("step", done)))
    for round_ in range(20):
        assert sorted(number for number, _ in found[3 * round_ : 3 * round_ + 3]) == [0, 1, 2]
    assert len({tuple(found[3 * r + i][0] for i in range(3)) for r in range(20)}) > 1
    assert {epoch for _, epoch in found} == {0, 1, 2}
    # The last start and its target are the last snapshots that were made.
    assert expert.prepared.epochs == expert.config.epochs == 2 + expert.config.expert_epochs


# -- the learned step size -------------------------------------------------------------------
def test_the_step_size_stays_positive_and_changes_by_little_at_a_time(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, lr_lr=1e9)
    sizes = [expert.step_size]
    for _ in range(5):
        expert.step()
        sizes.append(expert.step_size)
    ratios = [math.log(b / a) for a, b in pairwise(sizes)]
    assert all(abs(ratio) == pytest.approx(0.1) for ratio in ratios)
    assert min(sizes) > 0


def test_without_a_rate_the_step_size_is_fixed(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, lr_lr=0.0)
    expert.step()
    assert expert.step_size == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize("size", [0.0, -0.01])
def test_a_step_size_that_is_not_positive_is_refused(size: float) -> None:
    with pytest.raises(ValidationError, match="step_size"):
        MTTConfig(ipc=1, steps=1, step_size=size)


# -- state -----------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [1, 3])
def test_a_restored_state_goes_on_to_identical_bytes(at: int, tmp_path: Path) -> None:
    straight, resumed = make_mtt(tmp_path), make_mtt(tmp_path)
    straight.left_out, straight.left_out_in_row = 5, 2
    for _ in range(at):
        straight.step()
    resumed.load_state_dict({name: t.clone() for name, t in straight.state_dict().items()})
    assert resumed.last_step_norm == straight.last_step_norm
    assert (resumed.left_out, resumed.left_out_in_row) == (5, 0)
    for _ in range(3):
        assert straight.step() == resumed.step()
    ours, theirs = straight.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_steps_depend_on_their_seed_alone_and_leave_the_global_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    one, same, other = (make_mtt(tmp_path, seed=seed) for seed in (1, 1, 2))
    for number, expert in enumerate((one, same, other)):
        torch.manual_seed(number)
        expert.step()
    torch.set_rng_state(before)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_the_norm_of_a_step_is_how_far_the_images_went(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path)
    before = expert.images.clone()
    expert.step()
    assert expert.last_step_norm == pytest.approx(float((expert.images - before).norm()))
    assert expert.last_step_norm > 0


# -- failures --------------------------------------------------------------------------------
def test_a_loss_that_is_not_finite_names_step_expert_and_term(tmp_path: Path) -> None:
    real = digits(2, 24)
    expert = make_mtt(tmp_path, real, part=make_parts(real)[1])
    expert.step()
    for number in range(2):
        path = trajectory_path(expert.prepared.folder, number)
        tensors, meta = load_checkpoint(path)
        save_checkpoint(path, {"snapshots": tensors["snapshots"] * math.nan}, meta)
    state = {name: t.clone() for name, t in expert.state_dict().items()}
    with pytest.raises(NonFiniteError) as caught:
        expert.step()
    for said in ("matching loss of expert 1 (mtt) is nan", "step 2 of 20", "--overwrite"):
        assert said in str(caught.value)
    assert caught.value.exit_code == 1
    assert all(torch.equal(state[name], t) for name, t in expert.state_dict().items())


def test_a_trajectory_that_does_not_move_is_not_finite_either(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path)
    for number in range(2):
        path = trajectory_path(expert.prepared.folder, number)
        tensors, meta = load_checkpoint(path)
        still = tensors["snapshots"][:1].expand_as(tensors["snapshots"])
        save_checkpoint(path, {"snapshots": still}, meta)
    with pytest.raises(NonFiniteError, match="matching loss of expert 0"):
        expert.step()


@pytest.mark.parametrize("limit", ["most_loss", "most_growth"])
def test_diverging_steps_are_left_out_and_end_the_run_when_they_pile_up(
    limit: str, tmp_path: Path
) -> None:
    expert = make_mtt(tmp_path, step_size=0.5, patience=3, **{limit: 1 + 1e-9})
    # Steps that long leave the neighbourhood where the expert's epochs are.
    state = {name: t.clone() for name, t in expert.state_dict().items()}
    rows = [expert.step() for _ in range(2)]
    assert [row["left_out"] for row in rows] == [1, 2]
    assert expert.last_step_norm == 0
    for name in ("images", "velocity"):
        assert torch.equal(state[name], expert.state_dict()[name])
    assert expert.step_size == pytest.approx(0.5)
    with pytest.raises(MoeddError) as caught:
        expert.step()
    message = str(caught.value)
    for said in ("expert 0 (mtt) diverges", "last 3 steps up to step 3 of 20", "lower mtt.lr_lr"):
        assert said in message
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, UsageError)


def test_a_good_step_forgives_those_that_were_left_out(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path)
    expert.left_out = expert.left_out_in_row = 3
    assert expert.step()["left_out"] == 3
    assert expert.left_out_in_row == 0


def test_a_class_with_too_few_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class 'class 1' has 2 images .* starts from 3"):
        make_mtt(tmp_path, random_data((9, 2)), ipc=3)


def test_without_trajectories_it_says_where_to_get_them() -> None:
    with pytest.raises(UsageError, match=r"MTT\.prepare"):
        make_expert("mtt")


# -- trajectories of a run -------------------------------------------------------------------
def test_experts_share_trajectories_on_all_data_or_have_their_own(tmp_path: Path) -> None:
    real = digits(2, 24)
    parts = make_parts(real)
    shared = [prepare(tmp_path, real, part) for part in parts]
    own = [prepare(tmp_path, real, part, train_on="part") for part in parts]
    keys = [made.key for made in (*shared, *own)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    # Half of the data, and yet as many steps between snapshots: six batches of eight.
    for made in (*shared, *own):
        assert load_checkpoint(trajectory_path(made.folder, 0))[1]["epoch_steps"] == 6


def test_parts_cannot_be_whitened_each_in_its_own_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"zca=true and mtt\.train_on=part"):
        prepare(tmp_path, digits(2, 24), train_on="part", zca=True)


def test_only_the_epochs_that_can_be_reached_are_made(tmp_path: Path) -> None:
    made = prepare(tmp_path, digits(2, 24), max_start_epoch=4, expert_epochs=2)
    assert made.epochs == 5
    tensors, _ = load_checkpoint(trajectory_path(made.folder, 0))
    assert len(tensors["snapshots"]) == 6


def test_batch_norm_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    real = digits(2, 24)
    network = build_network("convnet2_bn", channels=1, classes=2, size=(8, 8), width=8)
    pool = replace(make_pool(real, 1), network=network)
    with pytest.raises(UsageError, match="batch norm"):
        MTT.prepare(whole(real), MTTConfig(ipc=1, steps=1, **SMALL), pool, ground(tmp_path, real))
    assert not list(tmp_path.rglob("*.safetensors"))


# -- whitened space --------------------------------------------------------------------------
def test_whitened_images_come_back_to_unit_and_normalised_space(tmp_path: Path) -> None:
    real = random_data((40, 40), (3, 8, 8))
    expert, plain = make_mtt(tmp_path, real, zca=True), make_mtt(tmp_path, real)
    assert not torch.allclose(expert.images, plain.images)
    torch.testing.assert_close(expert.unit_images(), plain.unit_images(), rtol=1e-4, atol=1e-4)
    images, _ = expert.decoded()
    torch.testing.assert_close(
        images, normalize(expert.unit_images(), real.mean, real.std), rtol=1e-4, atol=1e-4
    )
    leaf = expert.images.clone().requires_grad_()
    expert.training_images(leaf).square().sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad != 0).all()
    before = expert.images.clone()
    expert.step()
    assert not torch.equal(before, expert.images)


def test_the_matrix_is_named_by_its_content(tmp_path: Path) -> None:
    expert = make_mtt(tmp_path, zca=True)
    ((path, data),) = expert.files.items()
    space = expert.trained_in
    assert (space.space, space.matrix, space.mean, space.std) == ("zca", path, None, None)
    assert path.startswith("tensors/zca-")
    assert len(data) > 64 * 64 * 4
    assert make_mtt(tmp_path / "again", zca=True).files == {path: data}
    other = make_mtt(tmp_path, digits(2, 20), zca=True).files
    assert path not in other
    plain = make_mtt(tmp_path)
    assert (plain.files, plain.trained_in.space) == ({}, "normalized")
