"""The heavy functions: against plain code, against themselves in other forms, and their costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_expert, make_pool, random_data
from torch import Tensor

from benchmarks import reference
from moedd.arithmetic import (
    Arithmetic,
    arithmetic,
    forward_operations,
    maybe_compiled,
    products_of,
    state_of,
    template,
)
from moedd.augment import DSA_FAMILIES, Draw, apply_draw, draw_family, draw_idc
from moedd.networks import build_network
from moedd.parts import normalize, whole
from moedd.profile import Layout, Profile
from moedd_loaders.decode import decode
from moedd_loaders.manifest import TilesDecode

MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.21, 0.22)
SHAPE = (3, 16, 16)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def pair(dtype: torch.dtype) -> tuple[reference.ConvNet, Arithmetic, dict[str, Tensor]]:
    """The plain network, the engine's functions, and the parameters that both use."""
    net = build_network("convnet2", channels=3, classes=4, size=(16, 16), width=8)
    plain = reference.ConvNet(width=8, depth=2, side=16, classes=4)
    plain.load_state_dict(net.state_dict())
    parameters = {name: p.detach().to(dtype) for name, p in net.named_parameters()}
    return plain.to(dtype), Arithmetic(net, Profile()), parameters


def images(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(3))
def test_idc_gradient_is_that_of_plain_code(dtype: torch.dtype, seed: int) -> None:
    plain, ours, parameters = pair(dtype)
    real, stored = images(9, dtype, 1), images(3, dtype, 2).requires_grad_()
    names = ("color", "crop", "cutout")
    draw = draw_idc(torch.Generator().manual_seed(seed), 1, SHAPE, names, shared=True)
    loss = reference.idc_class_loss(plain, real, stored, 2, draw.ops, MEAN, STD)
    (expected,) = torch.autograd.grad(loss, stored)

    rule = TilesDecode(factor=2, order="row-major")
    made = apply_draw(normalize(decode(stored, rule, MEAN), MEAN, STD), draw)
    x = apply_draw(normalize(real, MEAN, STD), draw)
    gradient, losses = ours.gradient_match(
        parameters, x[None], made.detach()[None], torch.tensor([2]), "mse"
    )
    (found,) = torch.autograd.grad(made, stored, gradient[0])
    assert relative(found, expected) < TOLERANCE[dtype]
    assert float(losses[0]) == pytest.approx(float(loss.detach()), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", DSA_FAMILIES)
def test_idm_gradient_is_that_of_plain_code(dtype: torch.dtype, family: str) -> None:
    plain, ours, parameters = pair(dtype)
    real, stored = images(9, dtype, 1) - 0.5, (images(3, dtype, 2) - 0.5).requires_grad_()
    draw = draw_family(torch.Generator().manual_seed(1), 1, SHAPE, family, shared=True)
    loss = reference.idm_class_loss(plain, real, stored, 1, draw.ops, weight=7.0)
    (expected,) = torch.autograd.grad(loss, stored)

    made = apply_draw(decode(stored, TilesDecode(factor=2, order="column-major"), 0.0), draw)
    gradient, match, entropy = ours.feature_match(
        parameters, apply_draw(real, draw)[None], made.detach()[None], torch.tensor([1]), 7.0
    )
    (found,) = torch.autograd.grad(made, stored, gradient[0])
    assert relative(found, expected) < TOLERANCE[dtype]
    total = float(match + 7.0 * entropy)
    assert total == pytest.approx(float(loss.detach()), rel=TOLERANCE[dtype])


def recorded(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Draw]:
    draws: list[Draw] = []
    plain = getattr(module, name)

    def recording(*args: Any, **kwargs: Any) -> Draw:
        draws.append(plain(*args, **kwargs))
        return draws[-1]

    monkeypatch.setattr(module, name, recording)
    return draws


@pytest.mark.parametrize("method", ["idc", "idm"])
def test_twenty_steps_are_those_of_plain_code(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moedd.experts import idc, moving

    module, name = (idc, "draw_idc") if method == "idc" else (moving, "draw_dsa")
    real = random_data((9, 9), (3, 16, 16))
    part = whole(real)
    pool = make_pool(part, 1)
    settings = {"lr_img": 0.05, "batch_real": 5} if method == "idc" else {"batch_real": 64}
    expert = make_expert(method, part, ipc=2, pool=pool, **settings)
    width = pool.network.body[0].weight.shape[0]
    depth = sum(isinstance(m, torch.nn.Conv2d) for m in pool.network.modules())
    plain = reference.ConvNet(width=width, depth=depth, side=16, classes=2)
    plain.load_state_dict(pool.stored[0].parameters)
    leaf = expert.images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=expert.image_lr, momentum=0.5)
    draws = recorded(monkeypatch, module, name)
    started = expert.images.clone()
    for step in range(20):
        rows = [expert._real_rows(c) for c in range(2)] if method == "idc" else part.rows  # type: ignore[attr-defined]
        if method == "idc" and step % 100 == 0:
            leaf.data.clamp_(0, 1)
        expert.step()
        for c in range(2):
            ops = draws[2 * step + c].ops
            here = expert.rows(c)
            if method == "idc":
                reference.idc_class_step(
                    plain, leaf, optimizer, here, part.unit(rows[c]), c, ops, real.mean, real.std
                )
            else:
                weight = 0.5 * pool.stored[0].accuracy_percent
                reference.idm_class_step(
                    plain, leaf, optimizer, here, part.normalized(rows[c]), c, ops, weight
                )
    moved = float((leaf.detach() - started).norm())
    assert moved > 0.05
    assert float((expert.images - leaf.detach()).norm()) < 1e-3 * moved


# -- the same in other forms -------------------------------------------------------------------
def engine_step(method: str, profile: Profile, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    real = random_data((12, 12, 12), (3, 16, 16))
    expert = make_expert(method, real, ipc=2, batch_real=6, **settings)
    expert.profile = profile
    losses = expert.step()
    return expert.images, losses


@pytest.mark.parametrize("method", ["idc", "idm"])
def test_classes_together_are_classes_one_by_one(method: str) -> None:
    one, losses = engine_step(method, Profile())
    for at_once in (2, 10):
        many, same = engine_step(method, Profile(classes_at_once=at_once))
        torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-5)
        assert same == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("method", ["idc", "dc", "idm"])
def test_classes_together_in_bfloat16(method: str, layout: Layout) -> None:
    # Under vmap the normalisation's result is promoted; every layer must still get its own type.
    one, losses = engine_step(method, Profile(precision="bfloat16"))
    form = Profile(precision="bfloat16", classes_at_once=10, layout=layout)
    many, same = engine_step(method, form)
    torch.testing.assert_close(many, one, rtol=0.02, atol=0.02)
    assert same == pytest.approx(losses, rel=0.05)


def test_classes_of_different_sizes_go_apart() -> None:
    expert = make_expert("idm", random_data((9, 9, 4, 9)), batch_real=6)
    expert.profile = Profile(classes_at_once=10)
    assert expert.class_groups([6, 6, 4, 6]) == [[0, 1], [2], [3]]
    expert.step()
    expert.profile = Profile(classes_at_once=2)
    assert expert.class_groups([6, 6, 6, 6, 6]) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("method", ["idc", "idm"])
def test_bfloat16_is_close_and_leaves_everything_else_in_float32(method: str) -> None:
    settings = {"lr_img": 0.05} if method == "idc" else {}
    start = make_expert(method, random_data((12, 12, 12), (3, 16, 16)), ipc=2).images
    exact, losses = engine_step(method, Profile(), **settings)
    low, near = engine_step(method, Profile(precision="bfloat16"), **settings)
    assert low.dtype == torch.float32
    a, b = (exact - start).flatten(), (low - start).flatten()
    assert not torch.equal(a, b)
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.98
    assert near == pytest.approx(losses, rel=0.1)


def functions(profile: Profile) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Every function of a tiny network on fixed inputs."""
    net = build_network("convnet1", channels=3, classes=3, size=(8, 8), width=4)
    made = Arithmetic(net, profile)
    generator = torch.Generator().manual_seed(0)
    real, x = (torch.randn(1, n, 3, 8, 8, generator=generator) for n in (5, 4))
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    several = torch.cat([x, x.flip(1)])
    normed = build_network("convnet1_bn", channels=3, classes=3, size=(8, 8), width=4)
    targets = torch.eye(3)[torch.tensor([0, 1, 2, 1])]
    c = torch.tensor([1])

    def loss() -> tuple[Tensor, ...]:
        value = made.training_loss(leaves, x[0], targets)
        return (value.detach(), *torch.autograd.grad(value, list(leaves.values())))

    def batch_norm() -> tuple[Tensor, ...]:
        state = state_of(normed)
        functions = Arithmetic(template(normed, training=True), profile)
        value = functions.training_loss(state, x[0], targets)
        wanted = [t for t in state.values() if t.requires_grad]
        found = torch.autograd.grad(value, wanted)
        return (value.detach(), *found, state["body.1.running_mean"], state["body.1.running_var"])

    return {
        "idc at once": lambda: made.gradient_match(
            parameters, torch.cat([real, real]), several, torch.tensor([1, 2]), "mse"
        ),
        "batch norm": batch_norm,
        "idc": lambda: made.gradient_match(parameters, real, x, c, "mse"),
        "idm": lambda: made.feature_match(parameters, real, x, c, 3.0),
        "loss": loss,
        "logits": lambda: (made.logits(parameters, x[0]),),
    }


@pytest.mark.parametrize("name", ["idc", "idc at once", "idm", "loss", "batch norm", "logits"])
def test_compiled_functions_give_the_same(name: str) -> None:
    plain = functions(Profile(compiled=False))[name]()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compiling .* failed")
        compiled = functions(Profile(compiled=True))[name]()
    # Some gradients are zero but for rounding: a bias before a normalisation.
    for a, b in zip(compiled, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_compiler_that_fails_costs_one_warning() -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def double(x: Tensor) -> Tensor:
        return 2 * x

    made = maybe_compiled(double, Profile(compiled=True))

    def broken(*inputs: Tensor) -> Tensor:
        raise InternalTorchDynamoError("no")

    made.compiled = broken
    with pytest.warns(UserWarning, match="compiling double failed .* uncompiled"):
        assert made(torch.tensor(3.0)) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(torch.tensor(4.0)) == 8


def test_errors_of_the_function_itself_come_through() -> None:
    made = maybe_compiled(lambda x: x, Profile(compiled=True))

    def wrong(*inputs: Tensor) -> Tensor:
        raise ValueError("mine")

    made.compiled = wrong
    with pytest.raises(ValueError, match="mine"):
        made(torch.tensor(1.0))


# -- networks behind the functions ---------------------------------------------------------------
def test_batch_norm_statistics_are_those_of_the_module() -> None:
    a, b = (
        build_network("convnet2_bn", channels=3, classes=4, size=(16, 16), width=8)
        for _ in range(2)
    )
    x, targets = images(6, torch.float32), torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1])]
    functions = arithmetic(template(a, training=True), Profile())
    loss = functions.training_loss(state_of(a), x, targets)
    expected = F.cross_entropy(b(x), targets)
    torch.testing.assert_close(loss, expected)
    assert float(b.body[1].running_mean.abs().sum()) > 0
    for (name, ours), (_, theirs) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_one_template_serves_all_of_a_kind() -> None:
    a, b = (build_network("convnet1", channels=1, classes=2, size=(8, 8), width=w) for w in (4, 4))
    assert template(a, True) is template(b, True)
    assert template(a, True) is not template(a, False)
    assert arithmetic(template(a, True), Profile()) is arithmetic(template(b, True), Profile())


@pytest.mark.parametrize(
    ("name", "compiled"), [("convnet3", True), ("resnet18", True), ("vgg11", False)]
)
def test_training_is_compiled_where_it_pays(name: str, compiled: bool) -> None:
    net = build_network(name, channels=3, classes=2, size=(32, 32), width=8)
    made = Arithmetic(net, Profile(compiled=True))
    assert (made._loss.compiled is not None) == compiled
    assert made._idc["mse"][0].compiled is not None


def test_channels_last_is_for_bfloat16_without_normalisation() -> None:
    for name, layout in (
        ("alexnet", torch.channels_last),
        ("alexnet_bn", torch.contiguous_format),
        ("convnet1", torch.contiguous_format),
    ):
        net = build_network(name, channels=3, classes=2, size=(32, 32), width=8)
        made = Arithmetic(net, Profile(precision="bfloat16", layout="mixed"))
        assert made._layout == layout
        state, x = state_of(net), torch.randn(2, 3, 32, 32)
        exact = Arithmetic(net, Profile()).logits(state, x)
        torch.testing.assert_close(made.logits(state, x), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", ["idc", "dc"])
def test_a_resumed_network_is_trained_in_the_form_of_the_run(method: str) -> None:
    settings = {"networks": "live", "train_images": 4} if method == "idc" else {"outer": 3}
    first, resumed = (
        make_expert(method, random_data((6, 6)), batch_real=4, **settings) for _ in range(2)
    )
    first.step()
    # A run loads the state first and settles the form of the arithmetic then.
    resumed.profile = Profile(compiled=None)
    resumed.load_state_dict(first.state_dict())
    resumed.settle(1e18)
    trainer = resumed.live.trainer if method == "idc" else resumed.trainer  # type: ignore[attr-defined]
    assert resumed.arithmetic.profile.compiled is True
    assert trainer.arithmetic.profile.compiled is True


def test_only_products_are_lowered() -> None:
    net = build_network("convnet1", channels=1, classes=2, size=(8, 8), width=4)
    assert products_of(net) == {
        "body.0.weight",
        "body.0.bias",
        "classifier.weight",
        "classifier.bias",
    }


# Networks and evaluation notes, section 2, MFLOP at 32x32.
@pytest.mark.parametrize(
    ("name", "mflop"),
    [("convnet3", 101.5), ("vgg11", 305.5), ("resnet18", 1110.8), ("alexnet", 490.0)],
)
def test_operations_of_the_networks(name: str, mflop: float) -> None:
    net = build_network(name, channels=3, classes=10, size=(32, 32))
    assert forward_operations(net) / 1e6 == pytest.approx(mflop, rel=1e-3)


def test_operations_of_a_step_are_the_references() -> None:
    from moedd.experts import expert_class

    # IDC notes, section 12 (ipc 10, factor 2: 547.2 GFLOP in matching, measured); IDM notes,
    # section 13 (341 GFLOP in the lean form).
    real = random_data((2,) * 10, (3, 32, 32))
    part = whole(real)
    net = build_network("convnet3", channels=3, classes=10, size=(32, 32))
    pool = replace(make_pool(part), network=net)
    for method, gflop in (("idc", 547.2), ("idm", 341.0)):
        preset = expert_class(method).config_class.preset("cifar10", 10, (3, 32, 32))
        expert = make_expert(method, part, pool=pool, **preset.model_dump())
        assert expert.step_operations() / 1e9 == pytest.approx(gflop, rel=0.03)


def test_digits_stay_uncompiled() -> None:
    expert = make_expert("idm", digits(2, 24))
    expert.profile = Profile(compiled=None)
    expert.settle(expert.step_operations() * 400)
    assert expert.arithmetic.profile.compiled is False
