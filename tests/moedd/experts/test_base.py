"""What all experts share: registration, pixel spaces, errors."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest
import torch
from enginefactories import digits, make_expert, random_data
from pydantic import ValidationError

from moedd.experts import base, expert_class, method_names, register_expert
from moedd.experts.base import Expert, ExpertConfig, config_fields
from moedd.experts.idm import IDM
from moedd.parts import whole
from moedd_loaders.decode import decode
from moedd_loaders.errors import NonFiniteError, UsageError

METHODS = ("idm", "idm_plain", "idc", "idc_i")
AT_ONCE = ("rded", "random", "herding", "kcenter")
"""Methods without steps; what they make is tested in their own files."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Expert]]:
    """A registry of the test's own, without other packages' methods."""
    copy = dict(base._REGISTRY)
    monkeypatch.setattr(base, "_REGISTRY", copy)
    monkeypatch.setattr(base, "entry_points", lambda group: [])
    return copy


# -- registration ----------------------------------------------------------------------------
def test_the_methods_of_moedd_are_registered_under_their_names() -> None:
    assert {*METHODS, *AT_ONCE} <= set(method_names())
    for name in (*METHODS, *AT_ONCE):
        assert expert_class(name).method == name


@pytest.mark.usefixtures("registry")
def test_an_unknown_method_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'idk'") as caught:
        expert_class("idk")
    for name in METHODS:
        assert name in str(caught.value)
    assert "did you mean" in str(caught.value)


def test_two_experts_of_one_name_are_refused(registry: dict[str, type[Expert]]) -> None:
    class Other(Expert):
        pass

    with pytest.raises(UsageError, match="two experts are called 'idm'"):
        register_expert("idm")(Other)
    assert registry["idm"] is IDM
    assert register_expert("idm")(IDM) is IDM  # importing a module twice is no conflict


def test_other_packages_register_through_their_entry_point(
    registry: dict[str, type[Expert]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Outsider(IDM):
        pass

    module = ModuleType("outsider_package")
    module.Outsider = Outsider  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outsider_package", module)
    point = EntryPoint("outsider", "outsider_package:Outsider", "moedd.experts")
    asked: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [point]

    monkeypatch.setattr(base, "entry_points", entry_points)
    assert "outsider" in method_names()
    assert "outsider" not in registry  # nothing is imported before it is asked for
    assert expert_class("outsider") is Outsider
    assert Outsider.method == "outsider"
    assert IDM.method == "idm"
    assert set(asked) == {"moedd.experts"}


def test_settings_are_checked_and_described() -> None:
    with pytest.raises(ValidationError, match="no_such_setting"):
        IDM.config_class(ipc=1, steps=1, no_such_setting=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="ipc"):
        IDM.config_class(ipc=0, steps=1)
    for name in (*METHODS, *AT_ONCE):
        described = config_fields(expert_class(name).config_class)
        assert {"ipc", "steps"} <= set(described)
        assert all(described.values()), name


def test_a_config_without_a_preset_says_so() -> None:
    with pytest.raises(NotImplementedError):
        ExpertConfig.preset("digits", 1, (1, 8, 8))


# -- images, spaces, labels ------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_images_are_class_major_and_labelled_so(method: str) -> None:
    expert = make_expert(method, digits(3, 8), ipc=2)
    assert expert.images.shape == (6, 1, 8, 8)
    assert expert.images.dtype == torch.float32
    assert expert.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [expert.labels[expert.rows(c)].unique().tolist() for c in range(3)] == [[0], [1], [2]]
    images, labels = expert.decoded()
    assert images.shape == (6 * expert.config.factor**2, 1, 8, 8)
    assert labels.tolist() == expert.labels.tolist() * expert.config.factor**2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 9, 11)])
def test_training_images_are_the_stored_unit_images_decoded_and_normalised(
    method: str, shape: tuple[int, int, int]
) -> None:
    real = random_data((8, 8), shape)
    expert = make_expert(method, real)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (real.mean, real.std))
    # Padding with the mean in unit space is padding with 0 in normalised space.
    expected = (decode(expert.unit_images(), expert.decode_rule, real.mean) - mean) / std
    torch.testing.assert_close(expert.decoded()[0], expected, rtol=1e-5, atol=1e-5)


def test_unit_images_are_not_clipped_and_not_shared() -> None:
    for method in ("idm", "idc"):
        expert = make_expert(method)
        expert.images[0, 0, 0, 0] = 50.0
        unit = expert.unit_images()
        assert unit[0, 0, 0, 0] > 1.5
        unit.zero_()
        assert expert.images[0, 0, 0, 0] == 50.0


def test_the_pixel_space_is_recorded_with_its_constants() -> None:
    real = random_data((8, 8), (3, 8, 8))
    space = make_expert("idm", real).trained_in
    assert (space.space, space.mean, space.std) == ("normalized", list(real.mean), list(real.std))
    space = make_expert("idc", real).trained_in
    assert (space.space, space.mean, space.std) == ("unit", None, None)
    assert make_expert("idm", real).step_size is None


# -- every step ------------------------------------------------------------------------------
LIVE = {"networks": "live", "inner_loop": 2, "train_images": 64}
FORMS: list[tuple[str, dict[str, Any]]] = [*((m, {}) for m in METHODS), ("idc", LIVE)]


@pytest.mark.parametrize(("method", "settings"), FORMS)
def test_steps_depend_on_their_seed_alone_and_leave_the_global_state(
    method: str, settings: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    one, same, other = (make_expert(method, seed=s, **settings) for s in (1, 1, 2))
    for expert in (one, same, other):
        expert.step()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    one.step()
    torch.manual_seed(7)
    same.step()
    torch.set_rng_state(before)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize(("method", "settings"), FORMS)
@pytest.mark.parametrize("at", [1, 2])
def test_a_restored_state_goes_on_to_identical_bytes(
    method: str, settings: dict[str, Any], at: int
) -> None:
    data = digits(2, 20)
    straight = make_expert(method, data, **settings)
    for _ in range(at):
        straight.step()
    state = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    resumed = make_expert(method, data, **settings)
    resumed.load_state_dict(state)
    assert resumed.last_step_norm == straight.last_step_norm
    for _ in range(2):
        assert straight.step() == resumed.step()
    assert straight.done == resumed.done == at + 2
    ours, theirs = straight.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_norm_of_a_step_is_how_far_the_images_went(method: str) -> None:
    expert = make_expert(method)
    before = expert.images.clone()
    expert.step()
    assert expert.last_step_norm == float((expert.images - before).norm()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_names_step_expert_and_term(method: str) -> None:
    part = whole(digits(2, 12))
    object.__setattr__(part, "index", 1)
    expert = make_expert(method, part, steps=20)
    expert.step()
    for network in expert.pool.stored:
        for parameter in network.parameters.values():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFiniteError) as caught:
        expert.step()
    message = str(caught.value)
    for said in ("matching loss", f"expert 1 ({method})", "nan", "step 2 of 20", "--overwrite"):
        assert said in message, said
    assert caught.value.exit_code == 1
    assert expert.images.isfinite().all()


def test_the_cross_entropy_term_is_named_when_it_alone_is_not_finite() -> None:
    expert = make_expert("idm_plain")
    for network in expert.pool.stored:
        network.parameters["classifier.bias"].fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="cross-entropy term"):
        expert.step()


def test_finite_passes_numbers_on_and_refuses_infinities() -> None:
    expert = make_expert("idm")
    assert expert.finite(-2.5, "loss") == -2.5
    for value in (float("inf"), float("-inf"), float("nan")):
        with pytest.raises(NonFiniteError, match="loss of expert 0"):
            expert.finite(value, "loss")
