"""The named evaluation recipes are those of the references."""

import pytest
import torch
from enginefactories import digits, make_pool
from torch.optim.lr_scheduler import MultiStepLR

from moedd.parts import whole
from moedd.protocols import PROTOCOLS, protocol_recipe
from moedd.streams import Streams
from moedd.train import Recipe, Trainer
from moedd_loaders.errors import UsageError


def rates(recipe: Recipe) -> list[float]:
    """Learning rate of every pass of the recipe."""
    trainer = Trainer(make_pool(whole(digits(2, 4)), 1).network, recipe, Streams(0), flip=False)
    found = []
    for epoch in range(recipe.passes):
        (group,) = trainer.optimizer.param_groups
        found.append(group["lr"])
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


def test_a_thousand_epochs_are_the_protocols_own() -> None:
    for protocol in PROTOCOLS:
        assert protocol_recipe(protocol, 1000) == protocol_recipe(protocol)


def test_what_is_no_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown protocol 'comon'.*common"):
        protocol_recipe("comon")
    with pytest.raises(UsageError, match="0 epochs"):
        protocol_recipe("common", 0)
