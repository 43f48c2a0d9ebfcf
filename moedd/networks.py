"""The networks that distillation matches on and that evaluation trains.

Definitions follow Dataset Condensation's (ConvNet-D, VGG11, ResNet18 with the CIFAR stem, ResNet18
with average pooling, AlexNet), which MTT, DM and IDM share. Three things are made general: every
flattened size is computed, the last pooling of VGG11, ResNet18 and AlexNet is adaptive (equal to
the original at 32x32), and initial parameters come from an explicit generator.

Every network is used either as a module or functionally:

    logits = torch.func.functional_call(net, params, (x,))
    features, logits = torch.func.functional_call(net, params, (x,), {"features": True})

Inside torch.func transforms a batch-norm variant must be in eval mode: its running statistics are
buffers that would be changed in place (gradient matching uses frozen statistics anyway).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moedd_loaders.errors import UsageError, unknown

_DEPTHS = (1, 2, 3, 4, 5, 6)
_VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # 0: 2x2 max pooling
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # ResNet18: planes, stride of the first block

# Smallest side that the layers before the classifier can take, in pixels after the padding of the
# first convolution: no normalisation ever sees a 1x1 map, where it would output its bias.
_SMALLEST = {f"convnet{d}": 2 * 2**d for d in _DEPTHS} | {
    "vgg11": 32,
    "resnet18": 16,
    "resnet18_ap": 16,
    "alexnet": 32,
}
# What one-channel data gain on both sides together: their first convolution pads 2 pixels more on
# each side (28 -> 32). The ResNets have no such padding.
_GREY_GAIN = {name: 0 if name.startswith("resnet") else 4 for name in _SMALLEST}


class InstanceNorm(nn.Module):
    """Group normalisation with one channel per group: affine, eps 1e-5, no running statistics.

    Train and eval mode agree, and images do not see each other. Computed by ``F.group_norm`` and
    not by ``F.instance_norm`` (the same mathematics), whose second derivative, which gradient
    matching needs, is 4 to 10 times slower on a CPU. Keep images in contiguous memory format:
    channels_last slows group normalisation down.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every channel of every image of x (n, C, H, W)."""
        # In half precision parameters stay float32, as statistics do. CUDA's kernel takes one type
        # for everything, and under vmap the result is promoted: hence the two conversions.
        inputs = x.float() if x.is_cuda and x.dtype == torch.bfloat16 else x
        y = F.group_norm(inputs, len(self.weight), self.weight, self.bias, self.eps)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


Norm = Callable[[int], nn.Module]


class Network(nn.Module):
    """An image classifier: ``body`` (convolutions), flatten, one linear ``classifier``.

    Attributes: ``name``, ``channels``, ``classes``, ``size`` (height, width) as built.
    """

    def __init__(
        self, name: str, body: nn.Module, *, channels: int, classes: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.name, self.channels, self.classes, self.size = name, channels, classes, size
        self.body = body
        # Two rows on the meta device: shapes only, no arithmetic.
        probe = body(torch.empty(2, channels, *size, device="meta"))
        self.classifier = nn.Linear(probe.flatten(1).shape[1], classes)

    @property
    def width(self) -> int:
        """Channels of the first convolution: of every block, in a ConvNet."""
        return next(iter(self.parameters())).shape[0]

    @property
    def architecture(self) -> tuple[str, int, int, int, tuple[int, int]]:
        """(name, width, channels, classes, size): what decides everything but the parameters."""
        return self.name, self.width, self.channels, self.classes, self.size

    def embed(self, x: Tensor) -> Tensor:
        """Features before the classifier: x (n, C, H, W) -> (n, d), flattened."""
        return self.body(x).flatten(1)

    def features(self, x: Tensor) -> Tensor:
        """The same as :meth:`embed`."""
        return self.embed(x)

    def forward(self, x: Tensor, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (n, classes) of x (n, C, H, W); with ``features``, (features (n, d), logits).

        Both come from one shared forward pass.
        """
        embedding = self.embed(x)
        logits = self.classifier(embedding)
        return (embedding, logits) if features else logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; with ``pooled``, strides become average pooling."""

    def __init__(self, inputs: int, planes: int, stride: int, norm: Norm, pooled: bool) -> None:
        super().__init__()
        step = 1 if pooled else stride
        pool = nn.AvgPool2d(2) if pooled and stride != 1 else nn.Identity()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, planes, 3, stride=step, padding=1, bias=False),
            norm(planes),
            nn.ReLU(),
            pool,
            nn.Conv2d(planes, planes, 3, padding=1, bias=False),
            norm(planes),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != planes:
            # 1x1 convolution and average pooling commute; pooling first costs a quarter.
            self.shortcut = nn.Sequential(
                pool, nn.Conv2d(inputs, planes, 1, stride=step, bias=False), norm(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


def _convnet(depth: int, channels: int, width: int, norm: Norm) -> nn.Module:
    layers: list[nn.Module] = []
    for d in range(depth):
        padding = 3 if channels == 1 and d == 0 else 1
        inputs = channels if d == 0 else width
        layers += [nn.Conv2d(inputs, width, 3, padding=padding), norm(width), nn.ReLU()]
        layers += [nn.AvgPool2d(2)]
    return nn.Sequential(*layers)


def _vgg11(channels: int, norm: Norm) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = channels
    for planes in _VGG11:
        if planes == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        padding = 3 if channels == 1 and not layers else 1
        layers += [nn.Conv2d(inputs, planes, 3, padding=padding), norm(planes), nn.ReLU()]
        inputs = planes
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


def _resnet18(channels: int, norm: Norm, pooled: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), norm(64)]
    layers.append(nn.ReLU())
    inputs = 64
    for planes, stride in _STAGES:
        layers += [_BasicBlock(inputs, planes, stride, norm, pooled)]
        layers += [_BasicBlock(planes, planes, 1, norm, pooled)]
        inputs = planes
    # The pooled variant has no global pooling: its features keep their 4x4 places.
    return nn.Sequential(*layers, nn.Identity() if pooled else nn.AdaptiveAvgPool2d(1))


def _alexnet(channels: int, norm: Norm | None) -> nn.Module:
    def block(inputs: int, planes: int, kernel: int, padding: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, planes, kernel, padding=padding)
        return [convolution, *([norm(planes)] if norm else []), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 128, 5, 4 if channels == 1 else 2),
        nn.MaxPool2d(2),
        *block(128, 192, 5, 2),
        nn.MaxPool2d(2),
        *block(192, 256, 3, 1),
        *block(256, 192, 3, 1),
        *block(192, 192, 3, 1),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
    )


def network_names() -> list[str]:
    """All names that :func:`build_network` knows; ``_bn`` marks the batch-norm variants."""
    return [*_SMALLEST, *(f"{name}_bn" for name in _SMALLEST)]


def _base(name: str) -> str:
    if name not in network_names():
        raise unknown("network", name, network_names())
    return name.removesuffix("_bn")


def smallest_side(name: str, channels: int = 3) -> int:
    """Smallest height and width in pixels that the network takes.

    VGG11 32, ResNet18 16, AlexNet 32, ConvNet-D 2 * 2^D; 4 less for one-channel data where the
    first convolution pads them (28 -> 32; not in the ResNets). Unknown name: UsageError.
    """
    base = _base(name)
    return max(1, _SMALLEST[base] - (_GREY_GAIN[base] if channels == 1 else 0))


def _deepest_convnet(size: tuple[int, int], channels: int, limit: int, suffix: str) -> str:
    for depth in range(limit, 0, -1):
        name = f"convnet{depth}{suffix}"
        if min(size) >= smallest_side(name, channels):
            return name
    raise UsageError(
        f"images of {size[0]}x{size[1]} pixels are too small for every network: the smallest side "
        f"of convnet1 is {smallest_side('convnet1', channels)}; enlarge the images with --size"
    )


def fitting_network(size: tuple[int, int], channels: int = 3) -> str:
    """The default network for images of ``size`` (height, width): convnet3, or less deep if small.

    Raises UsageError if not even convnet1 fits.
    """
    return _deepest_convnet(size, channels, 3, "")


def check_size(name: str, size: tuple[int, int], channels: int = 3) -> None:
    """Raise UsageError if images of ``size`` (height, width) are too small for the network."""
    needed = smallest_side(name, channels)
    if min(size) >= needed:
        return
    base = _base(name)
    limit = int(base.removeprefix("convnet")) if base.startswith("convnet") else 3
    nearest = _deepest_convnet(size, channels, limit, "_bn" if name.endswith("_bn") else "")
    sides = "vgg11 {}, resnet18 {}, alexnet {}, convnet3 {} (convnetD 2^D x 2{})".format(
        *(smallest_side(n, channels) for n in ("vgg11", "resnet18", "alexnet", "convnet3")),
        " - 4" if channels == 1 else "",
    )
    raise UsageError(
        f"{name} needs images of at least {needed}x{needed} pixels, not {size[0]}x{size[1]} "
        f"(smallest sides: {sides}); use {nearest}, the nearest network that fits, or enlarge "
        f"the images with --size"
    )


def init_parameters(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Initialise every parameter and buffer in place, as the library does by default.

    Convolutions and linear layers: weight and bias ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)) (Kaiming
    uniform with a = sqrt(5)). Norms: weight 1, bias 0, running mean 0, running variance 1.
    ``generator`` must live on the parameters' device (the CPU, in this project).
    Returns the module.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(layer, (InstanceNorm, nn.BatchNorm2d)):
                layer.weight.fill_(1)
                layer.bias.fill_(0)
                if isinstance(layer, nn.BatchNorm2d):
                    layer.reset_running_stats()
    return module


def build_network(
    name: str,
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    width: int = 128,
    generator: torch.Generator | None = None,
) -> Network:
    """A freshly initialised float32 network on the CPU, in training mode.

    Args:
        name: one of :func:`network_names`. Plain names have instance norm (AlexNet none at all),
            ``_bn`` names batch norm.
        channels: 1 or 3. With one channel the first convolution pads 2 pixels more (28 -> 32),
            except in the ResNets.
        classes: number of logits.
        size: (height, width) of the images in pixels; need not be square or even.
        width: channels of every ConvNet block; the other networks have fixed widths.
        generator: CPU generator of the initial parameters; None: a new one with seed 0. The
            global random state is never used.

    Raises:
        UsageError: unknown name, or images smaller than the network's smallest side.
    """
    base, batch_norm = _base(name), name.endswith("_bn")
    check_size(name, size, channels)
    norm: Norm = nn.BatchNorm2d if batch_norm else InstanceNorm
    # Built without storage, so that no layer draws its default parameters from the global state.
    with torch.device("meta"):
        if base.startswith("convnet"):
            body = _convnet(int(base.removeprefix("convnet")), channels, width, norm)
        elif base == "vgg11":
            body = _vgg11(channels, norm)
        elif base == "alexnet":
            body = _alexnet(channels, norm if batch_norm else None)
        else:
            body = _resnet18(channels, norm, pooled=base == "resnet18_ap")
        network = Network(name, body, channels=channels, classes=classes, size=size)
    network.to_empty(device="cpu")
    init_parameters(network, generator or torch.Generator().manual_seed(0))
    return network


def network_for(
    name: str, shape: tuple[int, int, int], classes: int, width: int = 128,
    generator: torch.Generator | None = None,
) -> Network:  # fmt: skip
    """As :func:`build_network`, for images of `shape` (C, H, W)."""
    return build_network(
        name, channels=shape[0], classes=classes, size=shape[1:], width=width, generator=generator
    )


def fresh_network(like: Network, generator: torch.Generator) -> Network:
    """A newly initialised network of the architecture of `like`, as :func:`build_network` makes."""
    return build_network(
        like.name,
        channels=like.channels,
        classes=like.classes,
        size=like.size,
        width=like.width,
        generator=generator,
    )
