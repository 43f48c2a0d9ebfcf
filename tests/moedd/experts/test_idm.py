"""IDM against a slow float64 version of its reference, image by image and optimiser by torch."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_expert, make_pool, random_data
from torch import Tensor

from moedd.augment import Draw, apply_draw
from moedd.experts.base import Expert
from moedd.experts.idm import IDMConfig, PlainIDMConfig
from moedd.networks import Network
from moedd.parts import whole
from moedd.pool import Pool

Drawn = list[tuple[tuple[str, ...], Draw]]


def network64(pool: Pool, number: int = 0) -> Network:
    """A stored network as a module in float64."""
    network = deepcopy(pool.network).double()
    parameters = pool.stored[number].parameters
    network.load_state_dict({name: p.double() for name, p in parameters.items()})
    return network


def tiles_of(image: Tensor, factor: int) -> list[Tensor]:
    """Cells of one stored image (C, H, W) from top to bottom, then left to right, enlarged."""
    if factor == 1:
        return [image]
    _, height, width = image.shape
    image = F.pad(image, (0, -width % factor, 0, -height % factor))
    h, w = image.shape[1] // factor, image.shape[2] // factor
    tiles = []
    for column in range(factor):
        for row in range(factor):
            cell = image[:, row * h : (row + 1) * h, column * w : (column + 1) * w]
            size = (height, width)
            tiles.append(
                F.interpolate(cell[None], size=size, mode="bilinear", align_corners=False)[0]
            )
    return tiles


def slow_steps(
    expert: Expert, start: Tensor, served: list[Tensor], drawn: Drawn, steps: int, weight: float
) -> tuple[Tensor, list[dict[str, float]]]:
    """`steps` IDM steps from `start` on what the expert was served: images and losses."""
    part, config = expert.part, expert.config
    assert isinstance(config, IDMConfig)
    network = network64(expert.pool)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (part.mean, part.std))
    leaf = start.double().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=config.lr, momentum=config.momentum)
    served, draws = list(served), [draw for _, draw in drawn]
    losses = []

    def forward(image: Tensor, draw: Draw | None) -> tuple[Tensor, Tensor]:
        batch = image[None] if draw is None else apply_draw(image[None], draw)
        embedding = network.body(batch).reshape(-1)
        classifier = network.classifier
        return embedding, classifier.weight @ embedding + classifier.bias

    for _ in range(steps):
        match_sum = ce_sum = 0.0
        for c in range(len(part.classes)):
            draw = draws.pop(0) if config.augment else None
            rows = served.pop(0)
            real_sum: Any = 0
            for row in rows.tolist():
                image = (part.images[row].double() / 255 - mean) / std
                real_sum = real_sum + forward(image, draw)[0].detach()
            count, made_sum, ce = 0, torch.zeros(()), torch.zeros(())
            for i in range(c * config.ipc, (c + 1) * config.ipc):
                for tile in tiles_of(leaf[i], config.expansion):
                    embedding, logits = forward(tile, draw)
                    made_sum = made_sum + embedding
                    ce = ce - torch.log(logits.exp()[c] / logits.exp().sum())
                    count += 1
            match = ((real_sum / len(rows) - made_sum / count) ** 2).sum()
            ce = ce / count
            optimizer.zero_grad()
            (match + weight * ce).backward()
            optimizer.step()
            match_sum, ce_sum = match_sum + match.item(), ce_sum + weight * ce.item()
        classes = len(part.classes)
        losses.append({"match": match_sum / classes, "ce": ce_sum / classes})
    return leaf.detach(), losses


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 8, 8), {}),
        ((3, 8, 8), {"augment": False, "ce_weight": 0.1}),
        ((3, 9, 11), {"lr": 0.05}),
        ((1, 8, 9), {"expansion": 1, "ce_scale": "constant", "momentum": 0.9}),
        ((1, 12, 10), {"expansion": 3, "ce_weight": 0.0}),
    ],
)
def test_steps_equal_a_slow_float64_version(
    shape: tuple[int, int, int], settings: dict[str, Any], served: list[Tensor], drawn: Drawn
) -> None:
    real = random_data((7, 12, 9), shape, flip=True)
    expert = make_expert("idm", real, pool=make_pool(real, 1), batch_real=8, **settings)
    served.clear()
    start = expert.images.clone()
    found = [expert.step() for _ in range(2)]
    # The network's accuracy is 20 percent and counts as 20, not as 0.2.
    scale = 20.0 if expert.config.ce_scale == "accuracy" else 1.0
    weight = expert.config.ce_weight * scale
    images, losses = slow_steps(expert, start, served, drawn, 2, weight)
    moved = images - start.double()
    ours = expert.images.double() - start
    torch.testing.assert_close(ours / moved.std(), moved / moved.std(), rtol=2e-3, atol=2e-3)
    for step, slow in zip(found, losses, strict=True):
        assert step == pytest.approx(slow, rel=1e-4, abs=1e-9)


def test_real_batches_are_draws_without_replacement_from_the_class(served: list[Tensor]) -> None:
    expert = make_expert("idm", random_data((9, 30)), batch_real=12)
    served.clear()
    expert.step()
    expert.step()
    for number, rows in enumerate(served):
        c = number % 2
        assert len(rows) == min(12, (9, 30)[c])  # a small class is taken whole
        assert len(set(rows.tolist())) == len(rows)
        assert expert.part.labels[rows].unique().tolist() == [c]
    assert sorted(served[1].tolist()) != sorted(served[3].tolist())


def test_augmentation_is_siamese_and_mirrors_only_where_that_keeps_the_class(drawn: Drawn) -> None:
    for flip in (False, True):
        make_expert("idm", random_data(flip=flip)).step()
        families, draw = drawn.pop()
        assert draw.shared
        assert len(draw.ops) == 1
        assert ("flip" in families) is flip
        assert {"color", "crop", "cutout", "scale", "rotate"} == set(families) - {"flip"}
    drawn.clear()
    make_expert("idm", augment=False).step()
    assert not drawn


def test_every_stored_network_is_drawn_and_weighs_by_its_own_accuracy() -> None:
    expert = make_expert("idm", digits(2, 8), augment=False, lr=1e-9, batch_real=8, steps=40)
    plain = make_expert(
        "idm", digits(2, 8), augment=False, lr=1e-9, batch_real=8, steps=40, ce_scale="constant"
    )
    ratios = {round(expert.step()["ce"] / plain.step()["ce"]) for _ in range(25)}
    assert ratios == {20, 30, 40}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
def test_initial_cells_are_fresh_draws_averaged_two_by_two_down_the_columns(
    shape: tuple[int, int, int], served: list[Tensor]
) -> None:
    real = random_data((10, 10), shape)
    expert = make_expert("idm", real, ipc=3)
    h, w = shape[1] // 2, shape[2] // 2
    assert len(served) == 8
    for c in range(2):
        stored = expert.images[expert.rows(c)]
        for k, rows in enumerate(served[4 * c : 4 * c + 4]):
            assert len(set(rows.tolist())) == 3
            assert expert.part.labels[rows].unique().tolist() == [c]
            column, row = divmod(k, 2)
            cell = stored[:, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
            torch.testing.assert_close(cell, F.avg_pool2d(expert.part.normalized(rows), 2))
    assert len({tuple(rows.tolist()) for rows in served[:8]}) == 8
    # Decoding shows the cells in the same order: top left, bottom left, top right, bottom right.
    decoded = expert.decoded()[0][:3]
    corner = expert.images[:3, :, :h, :w]
    expected = F.interpolate(corner, shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoded, expected)
    second = F.interpolate(expert.images[:3, :, h:, :w], shape[1:], mode="bilinear")
    torch.testing.assert_close(expert.decoded()[0][6:9], second)


def test_plain_idm_starts_from_whole_images_and_stores_no_tiles(served: list[Tensor]) -> None:
    expert = make_expert("idm_plain", random_data((6, 6)), ipc=3)
    for c, rows in enumerate(list(served)):
        assert torch.equal(expert.images[expert.rows(c)], expert.part.normalized(rows))
    assert expert.decode_rule.kind == "none"
    rule = make_expert("idm").decode_rule
    assert (rule.kind, rule.factor, rule.order) == ("tiles", 2, "column-major")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11)])
def test_the_gradient_reaches_every_stored_pixel(shape: tuple[int, int, int]) -> None:
    expert = make_expert("idm", random_data((8, 8), shape), augment=False)
    before = expert.images.clone()
    expert.step()
    assert (expert.images != before).all()


@pytest.mark.parametrize(("weight", "most"), [(0.0, 0.5), (0.5, 0.8)])
def test_a_few_dozen_steps_bring_the_loss_down_on_real_digits(weight: float, most: float) -> None:
    real = digits(2, 32)
    pool = make_pool(real, 1)
    expert = make_expert("idm", real, pool=pool, augment=False, ce_weight=weight)
    losses = [sum(expert.step().values()) for _ in range(30)]
    assert losses[-1] < most * losses[0]


# data -> ipc 1, 5, 10, 20, 50 -> (real images of a class, weight of the cross-entropy)
ALL, BATCH = 5000, 256
ROWS = {
    "cifar10": [(ALL, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.1)],
    "cifar100": [(ALL, 0.5), (BATCH, 0.1), (BATCH, 0.1), (BATCH, 0.1), (BATCH, 0.1)],
    "mnist": [(ALL, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.1)],
    "svhn": [(ALL, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.1)],
    "my-own": [(ALL, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.5), (BATCH, 0.1)],
}


@pytest.mark.parametrize("data", ROWS)
def test_presets_are_the_published_rows(data: str) -> None:
    for ipc, (batch, weight) in zip((1, 5, 10, 20, 50), ROWS[data], strict=True):
        assert IDMConfig.preset(data, ipc, (3, 32, 32)).model_dump() == {
            "ipc": ipc,
            "steps": 20_000,
            "lr": 0.2,
            "momentum": 0.5,
            "batch_real": batch,
            "expansion": 2,
            "ce_weight": weight,
            "ce_scale": "accuracy",
            "augment": True,
        }


@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_plain_idm_has_one_preset(ipc: int) -> None:
    preset = PlainIDMConfig.preset("cifar100", ipc, (3, 32, 32))
    assert (preset.ipc, preset.steps, preset.factor) == (ipc, 20_000, 1)
    assert (preset.ce_scale, preset.ce_weight, preset.batch_real) == ("constant", 0.5, 256)
    assert (preset.lr, preset.momentum) == (0.2, 0.5)


def test_the_image_step_size_does_not_depend_on_ipc() -> None:
    part = whole(random_data((6, 6)))
    assert make_expert("idm", part, ipc=1).image_lr == make_expert("idm", part, ipc=5).image_lr
    assert make_expert("idm", part, ipc=1).image_lr == 0.2
