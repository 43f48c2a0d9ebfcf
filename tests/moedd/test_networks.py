"""Networks: parameter counts, layer definitions against other implementations, sizes, init."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from moedd.networks import (
    InstanceNorm,
    Network,
    build_network,
    check_size,
    fitting_network,
    fresh_network,
    init_parameters,
    network_names,
    smallest_side,
)
from moedd_loaders.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, size: tuple[int, int] = (32, 32), channels: int = 3, **kwargs: int) -> Network:
    arguments = {"classes": 10, **kwargs}
    return build_network(name, channels=channels, size=size, generator=seeded(), **arguments)


def images(size: tuple[int, int] = (32, 32), channels: int = 3, n: int = 2) -> Tensor:
    return torch.randn(n, channels, *size, generator=seeded(7))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---- parameter counts ----


@pytest.mark.parametrize(
    ("name", "side", "classes", "parameters"),
    [
        ("convnet3", 32, 10, 320_010),
        ("convnet3", 32, 100, 504_420),
        ("convnet4", 32, 10, 452_490),
        ("convnet4", 32, 100, 498_660),
        ("convnet3", 64, 10, 381_450),
        ("convnet3", 64, 100, 1_118_820),
        ("convnet4", 64, 10, 467_850),
        ("convnet4", 64, 100, 652_260),
        ("convnet5", 64, 10, 600_330),
        ("convnet5", 64, 100, 646_500),
        ("convnet5", 128, 10, 615_690),
        ("convnet5", 128, 100, 800_100),
        ("convnet3_bn", 32, 10, 320_010),
        ("vgg11", 32, 10, 9_231_114),
        ("vgg11", 64, 10, 9_231_114),
        ("vgg11", 32, 100, 9_277_284),
        ("vgg11_bn", 32, 10, 9_231_114),
        ("resnet18", 32, 10, 11_173_962),
        ("resnet18", 64, 10, 11_173_962),
        ("resnet18", 32, 100, 11_220_132),
        ("resnet18_bn", 32, 10, 11_173_962),
        ("resnet18_ap", 32, 10, 11_250_762),
        ("resnet18_ap", 32, 100, 11_988_132),
        ("resnet18_ap_bn", 32, 10, 11_250_762),
        ("alexnet", 32, 10, 1_872_202),
        ("alexnet", 64, 10, 1_872_202),
        ("alexnet", 32, 100, 2_148_772),
        ("alexnet_bn", 32, 10, 1_874_122),
    ],
)
def test_parameter_counts(name: str, side: int, classes: int, parameters: int) -> None:
    assert count(make(name, (side, side), classes=classes)) == parameters


def test_width_is_the_channels_of_every_convnet_block() -> None:
    shapes = [p.shape for p in make("convnet3", width=16).parameters() if p.dim() == 4]
    assert shapes == [(16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3)]


# ---- definitions against other implementations ----


def test_instance_norm_equals_the_formula_and_the_librarys_group_norm() -> None:
    norm, x = InstanceNorm(5), images((6, 9), channels=5, n=3)
    norm.weight.data = torch.rand(5, generator=seeded(1)) + 0.5
    norm.bias.data = torch.randn(5, generator=seeded(2))
    wide = x.double().flatten(2)
    spread = (wide.var(2, correction=0) + 1e-5).sqrt()[..., None]
    expected = (wide - wide.mean(2, keepdim=True)) / spread
    expected = expected * norm.weight.double()[:, None] + norm.bias.double()[:, None]
    torch.testing.assert_close(norm(x), expected.view(x.shape).float())
    library = nn.GroupNorm(5, 5)
    library.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), library(x))
    torch.testing.assert_close(norm.eval()(x[:1]), norm.train()(x)[:1])


@pytest.mark.parametrize(("channels", "padding"), [(3, 1), (1, 3)])
def test_convnet_layer_by_layer(channels: int, padding: int) -> None:
    network = make("convnet3", (20, 16), channels, width=4)
    x = images((20, 16), channels)
    parameters = iter(network.parameters())
    out = x
    for block in range(3):
        weight, bias, scale, offset = (next(parameters) for _ in range(4))
        out = F.conv2d(out, weight, bias, padding=padding if block == 0 else 1)
        out = F.avg_pool2d(F.relu(F.group_norm(out, 4, scale, offset)), 2)
    torch.testing.assert_close(network.features(x), out.flatten(1))
    torch.testing.assert_close(network(x), F.linear(out.flatten(1), *parameters))


@pytest.mark.parametrize("channels", [1, 3])
def test_alexnet_layer_by_layer_equals_the_original_at_32(channels: int) -> None:
    side = 28 if channels == 1 else 32
    network = make("alexnet", (side, side), channels)
    x = images((side, side), channels)
    parameters = iter(network.parameters())
    out = x
    for padding, pooled in ((4 if channels == 1 else 2, 1), (2, 1), (1, 0), (1, 0), (1, 1)):
        out = F.relu(F.conv2d(out, next(parameters), next(parameters), padding=padding))
        out = F.max_pool2d(out, 2) if pooled else out
    assert out.shape[1:] == (192, 4, 4)
    assert torch.equal(network.features(x), out.flatten(1))


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    pairs = zip(source.parameters(), target.parameters(), strict=True)
    for from_, to in pairs:
        assert from_.shape == to.shape
        to.data = from_.data


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


@pytest.mark.parametrize(("name", "norm"), [("resnet18", group_norm), ("resnet18_bn", None)])
def test_resnet18_equals_torchvisions_with_the_cifar_stem(name: str, norm: object) -> None:
    network = make(name)
    torch_rng = torch.get_rng_state()
    other = torchvision.models.resnet18(num_classes=10, norm_layer=norm)
    other.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    other.maxpool = nn.Identity()
    torch.set_rng_state(torch_rng)
    copy_in_order(network, other)
    x = images()
    torch.testing.assert_close(network(x), other(x), rtol=1e-4, atol=1e-4)


def test_vgg11_equals_torchvisions_features() -> None:
    network = make("vgg11_bn")
    torch_rng = torch.get_rng_state()
    vgg = torchvision.models.vgg
    other = vgg.make_layers(vgg.cfgs["A"], batch_norm=True)
    torch.set_rng_state(torch_rng)
    copy_in_order(network.body, other)
    x = images()
    torch.testing.assert_close(network.features(x), other(x).flatten(1), rtol=1e-4, atol=1e-4)


def test_pooled_resnet_block_replaces_strides_by_average_pooling() -> None:
    block = make("resnet18_ap").body[5]
    x = images((9, 8), channels=64)
    w1, s1, b1, w2, s2, b2, w3, s3, b3 = block.parameters()
    main = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, w1, padding=1), 128, s1, b1)), 2)
    main = F.group_norm(F.conv2d(main, w2, padding=1), 128, s2, b2)
    short = F.group_norm(F.avg_pool2d(F.conv2d(x, w3), 2), 128, s3, b3)
    torch.testing.assert_close(block(x), F.relu(main + short), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "alexnet"])
def test_adaptive_pooling_equals_the_original_at_32(name: str) -> None:
    network = make(name)
    last_map = network.body[:-1](images())
    original = F.avg_pool2d(last_map, 4) if name == "resnet18" else last_map
    torch.testing.assert_close(network.features(images()), original.flatten(1))


# ---- functional use ----


@pytest.mark.parametrize("name", ["convnet3", "alexnet", "resnet18_ap"])
def test_features_and_logits_come_from_one_forward(name: str) -> None:
    network, x = make(name), images()
    parameters = dict(network.named_parameters())
    features, logits = functional_call(network, parameters, (x,), {"features": True})
    assert features.dim() == 2
    assert torch.equal(features, network.features(x))
    assert torch.equal(features, network.embed(x))
    assert torch.equal(logits, functional_call(network, parameters, (x,)))
    assert torch.equal(logits, network.classifier(features))


@pytest.mark.parametrize("name", ["convnet2", "convnet2_bn"])
def test_second_derivatives_agree_with_differences(name: str) -> None:
    """What gradient matching needs: the gradient in x of a function of parameter gradients."""
    network = make(name, (8, 8), classes=3, width=4).double().eval()
    parameters = {k: p.detach() for k, p in network.named_parameters()}
    labels = torch.tensor([0, 2])

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, p, (x,)), labels)

    def matching(x: Tensor) -> Tensor:
        return sum((g.square().sum() for g in grad(loss)(parameters, x).values()), torch.zeros(()))

    x, direction = images((8, 8)).double(), images((8, 8)).double().flip(0)
    slope = (grad(matching)(x) * direction).sum()
    h = 1e-6
    difference = (matching(x + h * direction) - matching(x - h * direction)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


def test_many_networks_at_once_by_vmap() -> None:
    networks = [make("convnet2", (8, 8), width=4) for _ in range(3)]
    for i, network in enumerate(networks):
        init_parameters(network, seeded(i))
    names = [k for k, _ in networks[0].named_parameters()]
    stacked = {k: torch.stack([n.get_parameter(k).detach() for n in networks]) for k in names}
    x = images((8, 8))
    together = vmap(lambda p: functional_call(networks[0], p, (x,)))(stacked)
    torch.testing.assert_close(together, torch.stack([n(x) for n in networks]))


# ---- sizes ----


@given(st.integers(8, 33), st.integers(8, 33), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_any_size_that_fits_works(height: int, width: int, channels: int) -> None:
    name = fitting_network((height, width), channels)
    network = make(name, (height, width), channels, width=4)
    out = network(images((height, width), channels))
    assert out.shape == (2, 10)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", network_names())
@pytest.mark.parametrize("channels", [1, 3])
def test_the_smallest_side_works_and_one_less_does_not(name: str, channels: int) -> None:
    side = smallest_side(name, channels)
    size = (side, side + 1)
    network = make(name, size, channels, width=8)
    with torch.no_grad():
        assert network(images(size, channels)).isfinite().all()
    if side > 1:
        smaller = (side + 1, side - 1)
        with pytest.raises(
            UsageError, match=f"{name} needs .* {side}x{side} .*|too small for every"
        ):
            make(name, smaller, channels)


def test_smallest_sides() -> None:
    assert [smallest_side(f"convnet{d}") for d in range(1, 7)] == [4, 8, 16, 32, 64, 128]
    assert [smallest_side(n) for n in ("vgg11", "resnet18", "alexnet")] == [32, 16, 32]
    # The one-channel padding of DC's definitions turns 28 into 32; its ResNet18 has none.
    assert [smallest_side(n, 1) for n in ("vgg11", "resnet18", "alexnet")] == [28, 16, 28]


def test_one_channel_28_gives_the_maps_of_32() -> None:
    names = ("convnet3", "vgg11", "resnet18", "alexnet")
    widths = {name: make(name, (28, 28), 1).classifier.in_features for name in names}
    assert widths == {"convnet3": 2048, "vgg11": 512, "resnet18": 512, "alexnet": 3072}


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("vgg11", (31, 64), "convnet3"),
        ("alexnet_bn", (16, 16), "convnet3_bn"),
        ("resnet18", (8, 8), "convnet2"),
        ("convnet3", (8, 32), "convnet2"),
        ("convnet5", (40, 40), "convnet4"),
    ],
)
def test_too_small_an_image_names_the_sides_and_what_fits(
    name: str, size: tuple[int, int], nearest: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_size(name, size)
    message = str(caught.value)
    assert f"use {nearest}," in message
    assert f"{size[0]}x{size[1]}" in message
    assert "vgg11 32, resnet18 16, alexnet 32" in message
    assert "\n" not in message
    check_size(nearest, size)


def test_fitting_network_is_convnet3_or_less_deep() -> None:
    sizes = [(224, 224), (16, 16), (15, 99), (8, 8), (7, 8), (4, 4)]
    expected = ["convnet3", "convnet3", "convnet2", "convnet2", "convnet1", "convnet1"]
    assert [fitting_network(size) for size in sizes] == expected
    with pytest.raises(UsageError, match="too small for every network"):
        fitting_network((3, 9))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown network 'resnet19'.*did you mean.*resnet18"):
        make("resnet19")


# ---- initialisation ----


def test_initial_parameters_are_the_librarys_from_the_same_seed() -> None:
    network = build_network(
        "convnet2_bn", channels=3, classes=5, size=(8, 8), width=6, generator=seeded(11)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        library = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        )
        library.append(nn.Linear(24, 5))
    for ours, theirs in zip(network.parameters(), library.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert not any(p.is_meta for p in network.parameters())
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.running_mean, torch.zeros(6))
            assert torch.equal(layer.running_var, torch.ones(6))
            assert layer.num_batches_tracked == 0


def test_initial_parameters_fill_their_bounds() -> None:
    for layer in make("resnet18").modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = layer.weight[0].numel() ** -0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            if layer.bias is not None:
                assert 0.5 * bound < layer.bias.abs().max() <= bound
        elif isinstance(layer, InstanceNorm):
            assert layer.weight.eq(1).all()
            assert layer.bias.eq(0).all()


def test_the_generator_is_the_only_randomness() -> None:
    before = torch.get_rng_state()
    drawn = [
        build_network("convnet1", channels=1, classes=2, size=(8, 8), width=3, generator=g)
        for g in (seeded(1), seeded(1), seeded(2), None, None)
    ]
    assert torch.equal(before, torch.get_rng_state())
    same = [torch.equal(a.classifier.weight, b.classifier.weight) for a, b in pairwise(drawn)]
    assert same == [True, False, False, True]


def test_a_fresh_network_has_the_architecture_and_parameters_of_its_own() -> None:
    like = build_network("convnet2", channels=3, classes=4, size=(9, 12), width=8)
    one, same, other = (
        fresh_network(like, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    shapes = {name: p.shape for name, p in like.named_parameters()}
    assert {name: p.shape for name, p in one.named_parameters()} == shapes
    first = [net.body[0].weight for net in (one, same, other, like)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[3])
    assert all(p.requires_grad for p in one.parameters())
    assert one.architecture == like.architecture == ("convnet2", 8, 3, 4, (9, 12))
