"""The named evaluation recipes are those of the references."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_pool
from factories import make_rows, make_set, make_source
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from moedd.augment import apply_draw, draw_family
from moedd.parts import whole
from moedd.protocols import PROTOCOLS, fitted, protocol_recipe, set_recipe
from moedd.streams import Streams
from moedd.train import Recipe, Trainer
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import Manifest


def rates(recipe: Recipe) -> list[float]:
    """Learning rate of every pass of the recipe."""
    teacher = None if recipe.temperature is None else torch.zeros_like
    network = make_pool(whole(digits(2, 4)), 1).network
    trainer = Trainer(network, recipe, Streams(0), flip=False, teacher=teacher)
    found = []
    for epoch in range(recipe.passes):
        (rate,) = {group["lr"] for group in trainer.optimizer.param_groups}
        found.append(rate)
        trainer.after_epoch(epoch)
    return found


def test_common_is_the_recipe_of_dc_dsa_dm_mtt_and_idm() -> None:
    recipe = protocol_recipe("common")
    assert recipe.name == "common"
    assert (recipe.passes, recipe.batch) == (1001, 256)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 5e-4)
    assert recipe.decay == ((501, 0.1),)
    assert recipe.reset
    assert (recipe.augment, recipe.cutmix) == ("dsa", 0.0)
    assert set(recipe.families) == {"color", "crop", "cutout", "flip", "scale", "rotate"}


@pytest.mark.parametrize("epochs", [2, 3, 30, 300])
def test_common_counts_epochs_0_to_e_and_decays_after_half_of_them_and_one(epochs: int) -> None:
    recipe = protocol_recipe("common", epochs)
    assert recipe.name == f"common-{epochs}"
    last_at_full_rate = epochs // 2 + 1
    expected = [0.01 if epoch <= last_at_full_rate else 0.001 for epoch in range(epochs + 1)]
    assert rates(recipe) == pytest.approx(expected)


def test_idc_is_the_recipe_of_idc() -> None:
    recipe = protocol_recipe("idc")
    assert recipe.name == "idc"
    assert (recipe.passes, recipe.batch) == (1000, 64)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 5e-4)
    assert not recipe.reset
    assert (recipe.augment, recipe.cutmix) == ("idc", 0.5)
    assert set(recipe.families) == {"color", "crop", "flip", "scale", "rotate"}


@pytest.mark.parametrize("epochs", [1, 2, 6, 100, 300, 1000])
def test_idc_decays_as_torchs_scheduler_at_two_thirds_and_five_sixths(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = rates(protocol_recipe("idc", epochs))
    if epochs > 1:  # with one epoch torch's milestones lie before its start
        assert found == pytest.approx(expected)
    assert len(found) == epochs


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_published_number_of_epochs_has_no_mark(protocol: str) -> None:
    own = {"rded": 300}.get(protocol, 1000)
    assert protocol_recipe(protocol, own) == protocol_recipe(protocol)
    assert protocol_recipe(protocol).name == protocol
    assert protocol_recipe(protocol, 7).name == f"{protocol}-7"


@pytest.mark.parametrize("protocol", ["idm", "mtt"])
def test_idm_and_mtt_share_the_recipe_of_dc(protocol: str) -> None:
    assert replace(protocol_recipe(protocol), name="common") == protocol_recipe("common")


@pytest.mark.parametrize("family", ["scale", "rotate"])
def test_mtts_way_of_sampling_is_ours_on_square_images(family: str) -> None:
    """MTT's copy of DSA samples with align_corners True in both steps."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    draw = draw_family(torch.Generator().manual_seed(1), 4, (3, 16, 16), family, shared=False)
    ((_, parameters),) = draw.ops
    zero = torch.zeros(4)
    if family == "scale":
        theta = torch.stack([parameters[0], zero, zero, zero, parameters[1], zero], 1)
    else:
        sin, cos = parameters[0].sin(), parameters[0].cos()
        theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1)
    grid = F.affine_grid(theta.view(4, 2, 3).double(), [4, 3, 16, 16], align_corners=True)
    wanted = F.grid_sample(images, grid, align_corners=True)
    torch.testing.assert_close(apply_draw(images, draw), wanted, atol=1e-6, rtol=0)


def test_idm_has_smaller_batches_on_large_images(tmp_path: Path) -> None:
    small = make_set(tmp_path / "small", shape=(3, 8, 8))
    large = make_set(tmp_path / "large", shape=(3, 128, 128), ipc=1, classes=2)
    assert set_recipe(small, "idm").batch == 256
    assert set_recipe(large, "idm").batch == 128
    assert set_recipe(large, "common").batch == 256


def test_rded_is_the_recipe_of_rded() -> None:
    recipe = protocol_recipe("rded")
    assert (recipe.passes, recipe.optimizer, recipe.weight_decay) == (300, "adamw", 0.01)
    assert (recipe.cutmix, recipe.temperature) == (1.0, 20.0)
    assert (recipe.augment, recipe.families) == ("rded", ("flip",))
    assert recipe.points == (250, 260, 270, 280, 290, 300)


@pytest.mark.parametrize("epochs", [1, 2, 17, 300])
def test_rdeds_rate_is_torchs_scheduler_and_never_reaches_zero(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = LambdaLR(optimizer, lambda e: 0.5 * (1 + math.cos(math.pi * e / (2 * epochs))))
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = rates(protocol_recipe("rded", epochs))
    assert found == pytest.approx(expected)
    assert min(found) > 5e-4


@pytest.mark.parametrize(
    ("network", "images", "classes", "lr", "batch"),
    [
        ("convnet3", 100, 10, 1e-3, 50),
        ("convnet3_bn", 500, 10, 1e-3, 100),
        ("convnet3", 10, 10, 1e-3, 10),
        ("convnet3", 50, 10, 1e-3, 25),
        ("convnet3", 200, 10, 1e-3, 50),
        ("resnet18", 100, 10, 1e-3, 50),
        ("vgg11", 100, 10, 5e-4, 50),
        ("alexnet", 100, 10, 1e-4, 50),
        ("vgg11", 1000, 100, 5e-4, 100),
        ("convnet3", 1000, 100, 2e-3, 25),
        ("convnet3", 3, 3, 1e-3, 3),
    ],
)
def test_rdeds_rate_and_batch_are_those_of_network_and_budget(
    network: str, images: int, classes: int, lr: float, batch: int
) -> None:
    given = fitted(protocol_recipe("rded"), network, images=images, classes=classes, fuse="none")
    assert (given.lr, given.batch) == (lr, batch)


@pytest.mark.parametrize(
    ("fuse", "cutmix", "temperature"),
    [("none", 1.0, 20.0), ("cutmix", 0.0, 20.0), ("mixup", 0.0, 4.0), ("vanilla", 0.0, 4.0)],
)
def test_fusion_takes_the_place_of_rdeds_cutmix(
    fuse: str, cutmix: float, temperature: float
) -> None:
    given = fitted(protocol_recipe("rded"), "vgg11", images=100, classes=10, fuse=fuse)
    assert (given.cutmix, given.temperature) == (cutmix, temperature)


def test_only_rded_depends_on_the_network() -> None:
    for protocol in ("common", "idc", "idm", "mtt"):
        recipe = protocol_recipe(protocol)
        assert fitted(recipe, "alexnet", images=5, classes=5, fuse="mixup") is recipe


@pytest.mark.parametrize(("mosaics", "factor"), [((1, 1), 1), ((2, 2), 2)])
def test_rded_shuffles_the_mosaics_of_its_set(
    mosaics: tuple[int, int], factor: int, tmp_path: Path
) -> None:
    assert set_recipe(set_of_mosaics(tmp_path, mosaics), "rded").factor == factor


def test_rded_refuses_a_set_of_which_half_is_mosaics(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"some have mosaics and some have none.*common"):
        set_recipe(set_of_mosaics(tmp_path, (1, 2)), "rded")


def set_of_mosaics(folder: Path, mosaics: tuple[int, ...]) -> Manifest:
    source = make_source(3)
    experts = [make_rows(source, [1] * 3, method="rded", config={"mosaic": m}) for m in mosaics]
    return make_set(folder / "set", experts=experts)


def test_the_best_of_several_tests_is_marked_and_only_where_there_are_several() -> None:
    assert protocol_recipe("idc", 100, best=True).name == "idc-100-best"
    assert protocol_recipe("idc", 100).points == (25, 50, 75, 100)
    assert protocol_recipe("rded", best=True).name == "rded-best"
    for protocol in ("common", "idm", "mtt"):
        with pytest.raises(UsageError, match=f"protocol {protocol} tests once"):
            protocol_recipe(protocol, best=True)


def test_what_is_no_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown protocol 'comon'.*common"):
        protocol_recipe("comon")
    with pytest.raises(UsageError, match="0 epochs"):
        protocol_recipe("common", 0)
