"""The heavy functions of the engine: gradients of matching losses and training losses.

Each is a pure function of parameters and images, so that it can be compiled as one graph, run in
the profile's precision, and be given all classes of a step at once. Augmentation and decoding stay
outside (they are linear in the images and cheap): these functions give the gradient with respect to
*augmented training images*, and the caller's graph carries it on to the stored ones.

Images are float32 (classes, n, C, H, W) in normalised space, labels int64 (classes, n); losses and
gradients come back in float32 (float64 for float64 images, which the tests use).
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.utils.flop_counter import FlopCounterMode

from moedd.networks import Network, build_network
from moedd.profile import Profile, compiled_function
from moedd_loaders.errors import MoeddWarning

Parameters = Mapping[str, Tensor]

_COMPILED = ("convnet", "resnet18")


class Arithmetic:
    """The functions of one network under one profile; see `arithmetic`, which shares them."""

    def __init__(self, network: Network, profile: Profile) -> None:
        assert profile.compiled is not None, "settle the profile with for_work first"
        self.network, self.profile = network, profile
        self._lowered = products_of(network)
        # One class, and several at once; compiled when first called, like all of these. Together
        # (on CUDA) they are faster as they are than compiled (docs/performance.md).
        over = (None, 0, 0, 0, 0)
        plain = replace(profile, compiled=False)
        self._idc = {
            metric: (
                maybe_compiled(self._gradient_match(metric), profile),
                maybe_compiled(vmap(self._gradient_match(metric, True), in_dims=over), plain),
            )
            for metric in ("mse", "l1", "cos")
        }
        self._target = maybe_compiled(self._mean_features, profile)
        self._idm = maybe_compiled(self._feature_match, profile)
        # Training and testing: compiling pays where normalisation, ReLU and pooling weigh as much
        # as convolutions; VGG11 and AlexNet are 5 to 15 % slower compiled, and on CUDA nothing is
        # gained (docs/performance.md).
        pays = profile.device == "cpu" and network.name.startswith(_COMPILED)
        first_order = profile if pays else plain
        self._loss = maybe_compiled(self._training_loss, first_order)
        self._logits = maybe_compiled(self._plain_logits, first_order)
        # Without normalisation, bfloat16 convolutions run a sixth faster on channels-last images.
        normalised = any("norm" in type(layer).__name__.lower() for layer in network.modules())
        self._layout = profile.memory_format(normalised)
        self._student = maybe_compiled(self._student_gradient, profile)
        self._adjoint = maybe_compiled(self._student_adjoint, profile)

    # -- what callers use ------------------------------------------------------------------
    def gradient_match(
        self, parameters: Parameters, real: Tensor, images: Tensor, classes: Tensor, metric: str
    ) -> tuple[Tensor, Tensor]:
        """IDC, DC, DSA: (gradient like `images`, losses (classes,)) of the distance between the
        gradients that real and synthetic images of one class give the network's weights: IDC's
        "mse" and "l1" over the convolutions, DC's "cos" over all weight matrices."""
        one, many = self._idc[metric]
        if len(images) == 1:
            gradient, loss = one(parameters, real[0], images[0], *_labels(real, images, classes, 0))
            return gradient[None], loss[None]
        labels = [_labels(real, images, classes, c) for c in range(len(images))]
        both = [torch.stack(side) for side in zip(*labels, strict=True)]
        return many(parameters, real, images, *both)

    def feature_match(
        self, parameters: Parameters, real: Tensor, images: Tensor, classes: Tensor, weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """IDM: (gradient like `images`, matching losses, cross-entropies), losses (classes,).

        The gradient is that of the squared distance between the mean features plus `weight` times
        the cross-entropy (IDM notes, sections 5 and 6). The network is frozen, one forward pass
        serves both terms."""
        target = self._target_of(parameters, real)
        labels = classes[:, None].expand(-1, images.shape[1])
        scale = images.new_full((), weight)
        return self._idm(parameters, target, images, labels, scale)

    def _target_of(self, parameters: Parameters, real: Tensor) -> Tensor:
        """Mean features (classes, d) of real images, large ones some at a time."""
        count = real.shape[1]
        most = max(1, self.profile.images_at_once(self.network.size) // len(real))
        with torch.no_grad():
            if count <= most + 6:  # batches of 256 images of 32x32 are one
                return self._target(parameters, real)
            means = [self._target(parameters, some) * some.shape[1] for some in real.split(most, 1)]
            return torch.stack(means).sum(0) / count

    def student_gradient(self, flat: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """MTT: gradient (P,) of the mean cross-entropy of images (n, C, H, W) and labels (n,) with
        respect to all parameters as one vector `flat` (P,), in the order of `flatten`."""
        return self._student(flat, images, labels)

    def student_adjoint(
        self, flat: Tensor, images: Tensor, labels: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """MTT: the product of `direction` (P,) with the student's gradient, differentiated: by the
        parameters (P,) (a Hessian-vector product), by the images, and its value (MTT notes, section
        9)."""
        return self._adjoint(flat, images, labels, direction)

    def training_loss(
        self, state: Parameters, images: Tensor, targets: Tensor, whole: bool = True
    ) -> Tensor:
        """Mean cross-entropy of (n, C, H, W) images and (n, classes) target probabilities, with a
        graph to `state` (parameters and buffers by name). `whole`: a batch of the usual size; the
        ragged ends of an epoch are not worth a compilation of their own."""
        return (self._loss if whole else self._loss.plain)(state, images, targets)

    def logits(self, state: Parameters, images: Tensor, whole: bool = True) -> Tensor:
        """Logits (n, classes) without a graph. `whole`: see `training_loss`."""
        with torch.no_grad():
            return (self._logits if whole else self._logits.plain)(state, images)

    def features(self, parameters: Parameters, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) and logits (n, classes), with a graph to the images."""
        features, logits = self._call(parameters, images, features=True)
        return _precise(features), _precise(logits)

    # -- the functions themselves ----------------------------------------------------------
    def _call(
        self, state: Parameters, images: Tensor, mapped: bool = False, **options: bool
    ) -> Any:
        # float64 inputs (tests against the exact result) are left as they are.
        if self.profile.dtype == torch.float32 or images.dtype == torch.float64:
            return functional_call(self.network, dict(state), (images,), options)
        dtype = self.profile.dtype
        low = {n: t.to(dtype) if n in self._lowered else t for n, t in state.items()}
        # What vmap hands on has a dimension that it does not show: no format fits it.
        x = images.to(dtype) if mapped else images.to(dtype, memory_format=self._layout)
        return functional_call(self.network, low, (x,), options)

    def _gradient_match(
        self, metric: str, mapped: bool = False
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        linear = metric == "cos"

        def weights_gradient(parameters: Parameters, images: Tensor, labels: Tensor) -> Parameters:
            names = {n for n, p in parameters.items() if p.ndim == 4 or (linear and p.ndim == 2)}
            matched = {n: p for n, p in parameters.items() if n in names}
            fixed = {n: p for n, p in parameters.items() if n not in names}

            def loss(weights: dict[str, Tensor]) -> Tensor:
                logits = self._call({**fixed, **weights}, images, mapped)
                return F.cross_entropy(_precise(logits), labels)

            return grad(loss)(matched)

        def match(
            parameters: Parameters, real: Tensor, images: Tensor, y_real: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            target = weights_gradient(parameters, real, y_real)

            def distance(images: Tensor) -> Tensor:
                given = weights_gradient(parameters, images, y)
                return gradient_distance(target, given, metric)

            return grad_and_value(distance)(images)

        return match

    def _mean_features(self, parameters: Parameters, real: Tensor) -> Tensor:
        features, _ = self._call(parameters, real.flatten(0, 1), features=True)
        return _precise(features).unflatten(0, real.shape[:2]).mean(1)

    def _feature_match(
        self, parameters: Parameters, target: Tensor, images: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def loss(images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = self._call(parameters, images.flatten(0, 1), features=True)
            means = _precise(features).unflatten(0, images.shape[:2]).mean(1)
            match = (target - means).square().sum(1)
            rows = F.cross_entropy(_precise(logits), labels.flatten(), reduction="none")
            entropy = rows.unflatten(0, images.shape[:2]).mean(1)
            return (match + weight * entropy).sum(), (match, entropy)

        gradient, (_, (match, entropy)) = grad_and_value(loss, has_aux=True)(images)
        return gradient, match, entropy

    def _student_loss(self, flat: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        logits = self._call(unflatten(self.network, flat), images)
        return F.cross_entropy(_precise(logits), labels)

    def _student_gradient(self, flat: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return grad(self._student_loss)(flat, images, labels)

    def _student_adjoint(
        self, flat: Tensor, images: Tensor, labels: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def product(flat: Tensor, images: Tensor) -> Tensor:
            return (grad(self._student_loss)(flat, images, labels) * direction).sum()

        (by_flat, by_images), value = grad_and_value(product, argnums=(0, 1))(flat, images)
        return by_flat, by_images, value

    def _training_loss(self, state: Parameters, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_precise(self._call(state, images)), targets)

    def _plain_logits(self, state: Parameters, images: Tensor) -> Tensor:
        return _precise(self._call(state, images))


def flatten(parameters: Parameters) -> Tensor:
    """All parameters as one vector (P,), in the order of the mapping (`named_parameters`)."""
    return torch.cat([p.detach().flatten() for p in parameters.values()])


def unflatten(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """The parameters of `network` by name, as views of the vector `flat` (P,)."""
    shapes = {name: p.shape for name, p in network.named_parameters()}
    pieces = flat.split([shape.numel() for shape in shapes.values()])
    return {
        name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def gradient_distance(x: Parameters, y: Parameters, metric: str) -> Tensor:
    """Distance between two sets of gradients.

    "mse", "l1": summed over all elements (IDC notes, section 7); "cos": one minus the cosine of
    every output channel's gradient, summed (DC notes, section 2).
    """
    return torch.stack([_DISTANCES[metric](x[name], y[name]) for name in x]).sum()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    # The square root has no derivative at 0: channels without a gradient are held just above it.
    sizes = [t.square().sum(1).clamp_min(1e-24).sqrt() for t in (a, b)]
    return (1 - (a * b).sum(1) / (sizes[0] * sizes[1] + 1e-6)).sum()


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda a, b: (a - b).square().sum(),
    "l1": lambda a, b: (a - b).abs().sum(),
    "cos": _cosines,
}


def products_of(network: nn.Module) -> frozenset[str]:
    """Names of the parameters that go into convolutions and products, their biases included."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
        for name, _ in layer.named_parameters(recurse=False)
    )


def _precise(x: Tensor) -> Tensor:
    """Sums are never taken in half precision."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _labels(real: Tensor, images: Tensor, classes: Tensor, c: int) -> tuple[Tensor, Tensor]:
    return classes[c].expand(real.shape[1]), classes[c].expand(images.shape[1])


@lru_cache(maxsize=16)
def arithmetic(network: Network, profile: Profile) -> Arithmetic:
    """The functions of `network` under `profile`, compiled once for all who ask."""
    return Arithmetic(network, profile)


def template(network: Network, training: bool) -> Network:
    """The network of this architecture that all of its kind are computed through: its own
    parameters nobody uses, so what is compiled for it serves every one of them."""
    return _template(*network.architecture, training)


@lru_cache(maxsize=16)
def _template(
    name: str, width: int, channels: int, classes: int, size: tuple[int, int], training: bool
) -> Network:
    network = build_network(name, channels=channels, classes=classes, size=size, width=width)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.train(training)


def state_of(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared with the network."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def forward_operations(network: Network) -> float:
    """Floating-point operations of one image's forward pass, two per multiply-add: convolutions
    and products, as torch's counter has them."""
    return _forward_operations(template(network, training=False))


@lru_cache(maxsize=64)
def _forward_operations(made: Network) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made(torch.zeros(1, made.channels, *made.size))
    return float(counter.get_total_flops())


class maybe_compiled:
    """`function`, compiled where the profile says so; if that fails, plain, with one warning."""

    def __init__(self, function: Callable[..., Any], profile: Profile) -> None:
        self.plain = function
        self.compiled = compiled_function(function) if profile.compiled else None

    def __call__(self, *inputs: Any) -> Any:
        if self.compiled is None:
            return self.plain(*inputs)
        try:
            return self.compiled(*inputs)
        except Exception as error:
            if not _is_compiler_error(error):
                raise
            name = getattr(self.plain, "__name__", "a function")
            warnings.warn(
                f"compiling {name} failed ({type(error).__name__}); moedd goes on "
                "uncompiled, which is slower and gives the same results",
                MoeddWarning,
                stacklevel=2,
            )
            self.compiled = None
            return self.plain(*inputs)


def _is_compiler_error(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
