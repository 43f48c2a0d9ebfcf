"""IDC against a slow float64 version of its reference: a gradient per class, torch's optimiser."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_expert, make_pool, random_data
from torch import Tensor

from moedd.arithmetic import gradient_distance
from moedd.augment import Draw, apply_draw, apply_each
from moedd.experts import idc, moving
from moedd.experts.base import Expert
from moedd.experts.idc import IDCConfig, IDCIConfig
from moedd.parts import normalize, whole
from moedd.pool import Pool
from moedd.streams import Streams

Drawn = list[tuple[tuple[str, ...], Draw]]


def tiles_of(stored: Tensor, factor: int, mean: Tensor) -> Tensor:
    """Training images of (n, C, H, W) in unit space: cells along the rows, padded with the mean."""
    n, channels, height, width = stored.shape
    h, w = -(-height // factor), -(-width // factor)
    padded = mean.expand(n, channels, h * factor, w * factor).clone()
    padded[:, :, :height, :width] = stored
    cells = padded.unfold(2, h, h).unfold(3, w, w)  # (n, C, row, column, h, w)
    cells = cells.permute(2, 3, 0, 1, 4, 5).reshape(-1, channels, h, w)
    if factor == 1:
        return cells
    return F.interpolate(cells, (height, width), mode="bilinear", align_corners=False)


def slow_steps(
    expert: Expert, start: Tensor, served: list[Tensor], drawn: Drawn, steps: int
) -> tuple[Tensor, list[float]]:
    """`steps` IDC steps from `start` on what the expert was served: images and losses."""
    part, config = expert.part, expert.config
    assert isinstance(config, IDCConfig)
    network = deepcopy(expert.pool.network).double()
    stored = expert.pool.stored[0].parameters
    network.load_state_dict({name: p.double() for name, p in stored.items()})
    convolutions = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (part.mean, part.std)
    )
    side = start.shape[2] / config.base_side
    lr = config.lr_img * config.ipc / 10 * side * side
    leaf = start.double().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=lr, momentum=config.momentum)
    served, draws = list(served), [draw for _, draw in drawn]
    losses = []

    def gradients(images: Tensor, c: int, keep: bool) -> tuple[Tensor, ...]:
        logits = network((images - mean) / std)
        ce = -F.log_softmax(logits, 1)[:, c].mean()
        return torch.autograd.grad(ce, convolutions, create_graph=keep)

    for _ in range(steps):
        total = 0.0
        for c in range(len(part.classes)):
            real = part.images[served.pop(0)].double() / 255
            made = tiles_of(leaf[c * config.ipc : (c + 1) * config.ipc], config.factor, mean)
            # The reference normalises, concatenates real and synthetic, and augments them at once.
            both = apply_draw((torch.cat([real, made]) - mean) / std, draws.pop(0)) * std + mean
            target = gradients(both[: len(real)].detach(), c, keep=False)
            loss: Any = 0
            for g, h in zip(target, gradients(both[len(real) :], c, keep=True), strict=True):
                d = g - h
                loss = loss + (d.pow(2).sum() if config.metric == "mse" else d.abs().sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(part.classes))
    return leaf.detach(), losses


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 8, 8), {}),
        ((3, 9, 11), {"momentum": 0.9}),
        ((3, 8, 8), {"metric": "l1", "lr_img": 5e-3, "match_cutout": False}),
        ((1, 12, 8), {"multiformation": 1}),
        ((1, 10, 11), {"multiformation": 3}),
    ],
)
def test_steps_equal_a_slow_float64_version(
    shape: tuple[int, int, int], settings: dict[str, Any], served: list[Tensor], drawn: Drawn
) -> None:
    real = random_data((7, 12, 9), shape)
    expert = make_expert("idc", real, pool=make_pool(real, 1), batch_real=8, **settings)
    served.clear()
    start = expert.images.clone()
    found = [expert.step()["match"] for _ in range(2)]
    images, losses = slow_steps(expert, start, served, drawn, 2)
    moved = images - start.double()
    ours = expert.images.double() - start
    torch.testing.assert_close(ours / moved.std(), moved / moved.std(), rtol=5e-3, atol=5e-3)
    assert found == pytest.approx(losses, rel=1e-4)


def test_distances_are_sums_over_all_elements() -> None:
    x = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    y = {"a": torch.tensor([[0.0, 4.0]]), "b": torch.tensor([-1.0])}
    assert float(gradient_distance(x, y, "mse")) == 1 + 4 + 16
    assert float(gradient_distance(x, y, "l1")) == 1 + 2 + 4


def test_the_augmentation_is_shared_and_cutout_can_be_left_out(drawn: Drawn) -> None:
    make_expert("idc", digits(2, 8)).step()
    names, draw = drawn[-1]
    assert names == ("color", "crop", "cutout")
    assert [op for op, _ in draw.ops] == ["color", "crop", "cutout"]
    assert draw.shared
    make_expert("idc", digits(2, 8), match_cutout=False).step()
    assert drawn[-1][0] == ("color", "crop")


def test_real_batches_go_through_the_class_and_drop_the_ragged_tail(served: list[Tensor]) -> None:
    expert = make_expert("idc", random_data((7, 4)), batch_real=3, lr_img=1e-6)
    served.clear()
    for _ in range(4):
        expert.step()
    first = [set(rows.tolist()) for rows in served[0::2]]
    assert [len(rows) for rows in first] == [3, 3, 3, 3]
    assert not first[0] & first[1]
    assert not first[2] & first[3]
    assert first[0] | first[1] != first[2] | first[3] or first[:2] != first[2:]
    for number, rows in enumerate(served):
        assert expert.part.labels[rows].unique().tolist() == [number % 2]


def test_a_class_smaller_than_the_batch_is_taken_whole(served: list[Tensor]) -> None:
    expert = make_expert("idc", random_data((5, 9)), batch_real=64)
    served.clear()
    expert.step()
    assert [sorted(rows.tolist()) for rows in served] == [list(range(5)), list(range(5, 14))]


def test_at_most_so_many_training_images_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(x: Tensor, draws: Sequence[Draw]) -> Tensor:
        sizes.append(x.shape[1])
        return apply_each(x, draws)

    monkeypatch.setattr(moving, "apply_each", counting)
    expert = make_expert("idc", random_data((6, 6)), ipc=2, batch_syn_max=5, batch_real=4)
    expert.step()
    assert sizes == [4, 5, 4, 5]
    assert isinstance(expert, idc.IDC)
    kept = expert._kept([Streams(s) for s in range(9)])
    assert kept is not None
    assert all(len(set(k.tolist())) == 5 and int(k.max()) < 8 for k in kept)
    assert len({tuple(sorted(k.tolist())) for k in kept}) > 1
    plenty = make_expert("idc", random_data((6, 6)), ipc=2, batch_syn_max=8)
    assert isinstance(plenty, idc.IDC)
    assert plenty._kept([Streams(0)]) is None


def test_every_stored_network_is_drawn() -> None:
    real = random_data((4, 4))
    pool = make_pool(real)
    still: dict[str, Any] = {"lr_img": 1e-9, "batch_real": 4, "match_cutout": False}
    singles = [Pool(pool.network, (network,), "one") for network in pool.stored]
    expert, *alone = (make_expert("idc", real, pool=p, **still) for p in (pool, *singles))
    drawn = set()
    for _ in range(8):
        values = [other.step()["match"] for other in alone]
        drawn.add(values.index(pytest.approx(expert.step()["match"], rel=1e-4)))
    assert drawn == {0, 1, 2}


def test_images_are_clamped_once_per_outer_iteration_only() -> None:
    expert = make_expert("idc", digits(2, 8), inner_loop=3, lr_img=1e-12)
    expert.step()
    expert.images[0, 0, 0, 0], expert.images[1, 0, 0, 0] = 1.5, -0.5
    for _ in range(2):
        expert.step()
        assert float(expert.images.max()) == 1.5
        assert float(expert.images.min()) == -0.5
    expert.step()
    assert float(expert.images.max()) <= 1 + 1e-6
    assert float(expert.images.min()) >= -1e-9  # clamped before the step


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
def test_initial_cells_are_every_second_pixel_along_the_rows(shape: tuple[int, int, int]) -> None:
    real = random_data((14, 12), shape)
    expert = make_expert("idc", real, ipc=3)
    h, w = shape[1] // 2, shape[2] // 2
    for c in range(2):
        of_class = expert.part.images[expert.part.labels == c].float() / 255
        stored = expert.images[expert.rows(c)]
        for k in range(4):
            row, column = divmod(k, 2)
            cell = stored[:, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
            assert torch.equal(cell, of_class[3 * k : 3 * k + 3, :, ::2, ::2])
    rule = expert.decode_rule
    assert (rule.kind, rule.factor, rule.order) == ("tiles", 2, "row-major")
    # Decoding shows them in the same order: the second is top right.
    second = F.interpolate(expert.images[:3, :, :h, w:], shape[1:], mode="bilinear")
    shown = expert.training_images(expert.images[:3])[3:6]
    torch.testing.assert_close(shown, normalize(second, real.mean, real.std))


def test_idc_i_starts_from_whole_images_and_stores_no_tiles() -> None:
    expert = make_expert("idc_i", random_data((6, 6)), ipc=3)
    part = expert.part
    assert torch.equal(expert.images[:3], part.images[part.rows[0][:3]].float() / 255)
    assert torch.equal(expert.images[3:], part.images[part.rows[1][:3]].float() / 255)
    assert expert.decode_rule.kind == "none"


def test_small_classes_are_gone_through_again() -> None:
    expert = make_expert("idc", random_data((3, 3)), ipc=2)
    corners = expert.images[0, :, :4, :4], expert.images[1, :, :4, 4:]
    assert torch.equal(*corners)  # the images 0 and 3 of a class that has 3


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11)])
@pytest.mark.parametrize("method", ["idc", "idc_i"])
def test_the_gradient_reaches_every_stored_pixel(method: str, shape: tuple[int, int, int]) -> None:
    expert = make_expert(method, random_data((8, 8), shape), match_cutout=False, lr_img=0.1)
    before = expert.images.clone()
    moved = torch.zeros_like(before, dtype=torch.bool)
    for _ in range(6):  # a crop moves rows or columns out of the image
        expert.step()
        moved |= expert.images != before
    assert moved.all()


@pytest.mark.parametrize("method", ["idc", "idc_i"])
def test_a_few_dozen_steps_bring_the_loss_down_on_real_digits(method: str) -> None:
    real = digits(2, 32)
    pool = make_pool(real, 1)
    # The same draws and batches for an expert that stands still: only the images differ.
    expert, still = (
        make_expert(method, real, pool=pool, base_side=8, lr_img=lr) for lr in (0.5, 1e-12)
    )
    losses = [(expert.step()["match"], still.step()["match"]) for _ in range(20)]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=0.2)
    assert sum(moved for moved, _ in losses[-6:]) < 0.75 * sum(kept for _, kept in losses[-6:])


CIFAR = {"metric": "mse", "lr_img": 5e-3, "base_side": 32, "train_images": 2000}
GREY = {"metric": "l1", "lr_img": 1e-4, "train_images": 500}
ROWS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "cifar10": ((3, 32, 32), CIFAR),
    "cifar100": ((3, 32, 32), CIFAR),
    "svhn": ((3, 32, 32), {**CIFAR, "train_images": 500}),
    "mnist": ((1, 28, 28), {**GREY, "base_side": 28}),
    "fashion_mnist": ((1, 28, 28), {**GREY, "base_side": 32}),
    "my-own": ((3, 64, 48), {**CIFAR, "base_side": 64}),
}


@pytest.mark.parametrize("data", ROWS)
@pytest.mark.parametrize("ipc", [1, 5, 10, 20, 50])
def test_presets_are_the_published_rows(data: str, ipc: int) -> None:
    shape, row = ROWS[data]
    common = {
        "ipc": ipc,
        "steps": 200_000,
        "momentum": 0.5,
        "batch_real": 64,
        "batch_syn_max": 128,
        "inner_loop": 100,
        "networks": "stored",
        **row,
    }
    two = {**common, "multiformation": 2, "match_cutout": data != "mnist"}
    one = {**common, "multiformation": 1, "match_cutout": True}
    assert IDCConfig.preset(data, ipc, shape).model_dump() == two
    assert IDCIConfig.preset(data, ipc, shape).model_dump() == one


# ipc 1, 5, 10, 20, 50
EFFECTIVE = {
    "cifar10": (5e-4, 2.5e-3, 5e-3, 1e-2, 2.5e-2),
    "svhn": (5e-4, 2.5e-3, 5e-3, 1e-2, 2.5e-2),
    "mnist": (1e-5, 5e-5, 1e-4, 2e-4, 5e-4),
    "fashion_mnist": (7.66e-6, 3.83e-5, 7.66e-5, 1.53e-4, 3.83e-4),
    "my-own": (5e-4, 2.5e-3, 5e-3, 1e-2, 2.5e-2),
}


@pytest.mark.parametrize("data", EFFECTIVE)
def test_effective_step_sizes_are_the_published_ones(data: str) -> None:
    shape = ROWS[data][0]
    part = whole(random_data((2, 2), shape))
    pool = make_pool(part, 1)
    for ipc, lr in zip((1, 5, 10, 20, 50), EFFECTIVE[data], strict=True):
        preset = IDCConfig.preset(data, ipc, shape).model_dump()
        assert make_expert("idc", part, pool=pool, **preset).image_lr == pytest.approx(lr, rel=2e-3)


def test_the_side_enters_the_step_size_squared() -> None:
    part = whole(random_data((2, 2), (3, 16, 16)))
    expert = make_expert("idc", part, ipc=10, base_side=32)
    assert expert.image_lr == pytest.approx(5e-3 / 4)
