"""What is timed: one unit of work per name, as plain code and as the engine does it.

Shapes are CIFAR-10's (noise instead of pictures: the arithmetic does not care), ConvNet-3 of width
128, decode factor 2. A job is a list of parts `(how many, function)`; timed whole, or, in a quick
run, one of each part, scaled up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.workers import Timed
from moedd.arithmetic import forward_operations
from moedd.augment import Draw, draw_dsa, draw_idc
from moedd.diversify import diversity_step
from moedd.diversity import DiversityConfig
from moedd.experts import Expert, expert_class
from moedd.networks import build_network
from moedd.parts import PartData, split_parts, whole
from moedd.pool import Pool, PoolConfig, StoredNetwork, network_recipe, real_batch
from moedd.profile import Profile, choose_profile, keep_large_buffers
from moedd.realdata import RealData, RealSplit
from moedd.streams import Streams
from moedd.train import Trainer, accuracy

CLASSES, SHAPE, WIDTH = 10, (3, 32, 32), 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
PER_CLASS = 600
TRAINED = ("convnet3", "vgg11", "resnet18", "alexnet")
NAMES = ("idc_inner_step", "idm_iteration", *(f"train_{n}" for n in TRAINED), "diversity_step")
EXTRA = ("test_convnet3",)  # accuracy on 10,000 images; not among the default rows
TRAIN_BATCH = 64
TESTED = 10_000
QUICK_BATCH = 16  # of the large networks in a quick run
SCHEDULE = 20_000  # IDM's steps, over which its pool is spread

Parts = list[tuple[float, Callable[[], object]]]


@dataclass(frozen=True)
class Setting:
    """One way of running: `side` "baseline" (glibc's default allocator), "tuned" (the same code
    under our allocator setting) or "engine" under `profile`."""

    side: str
    profile: str = "float32"
    device: str = "cpu"
    quick: bool = False
    ipc: int = 10


def make_job(name: str, setting: Setting) -> Timed:
    """The named job, set up in this process and warmed up once."""
    if setting.side == "engine":
        profile = choose_profile(setting.profile, setting.device)
        parts = _engine(name, setting, profile.for_work(1e18))
    else:
        if setting.side == "tuned":
            keep_large_buffers()
        parts = _baseline(name, setting)
    run = partial(_run, parts, setting.quick, setting.device)
    if setting.device == "cuda":
        run = partial(_with_tf32, run, _TF32[setting.profile if setting.side == "engine" else ""])
    run()
    return run


# (products, convolutions) in TF32: torch's default for the plain code, the profiles' own choices.
_TF32 = {"": (False, True), "float32": (False, False), "fast": (True, True)}


def _with_tf32(run: Timed, allowed: tuple[bool, bool]) -> float:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    return run()


def _run(parts: Parts, quick: bool, device: str) -> float:
    total = 0.0
    for count, function in parts:
        times = 1 if quick else max(1, round(count))
        began = time.perf_counter()
        for _ in range(times):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
        total += (time.perf_counter() - began) * count / times
    return 1e3 * total


def operations(name: str, setting: Setting) -> float:
    """Floating-point operations that the engine needs for the named job."""
    if name.startswith("train_"):
        network = network_of(name.removeprefix("train_"))
        return 3 * forward_operations(network) * TRAIN_BATCH
    if name == "test_convnet3":
        return forward_operations(network_of("convnet3")) * TESTED
    if name == "diversity_step":
        return 2 * forward_operations(network_of("convnet3")) * 2 * CLASSES * 5 * 4
    method = "idc" if name == "idc_inner_step" else "idm"
    expert = make_expert(method, setting, Profile(), noise_data())
    pool = 0.0
    if method == "idm":
        pool = 3 * forward_operations(expert.pool.network) * TRAIN_BATCH * _pool_steps(SCHEDULE)
    return expert.step_operations() + pool


# -- data and networks ----------------------------------------------------------------------------


def noise_data() -> RealData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    pixels = torch.randint(256, (len(labels), *SHAPE), generator=generator, dtype=torch.uint8)
    split = RealSplit(pixels, labels)
    names = tuple(f"class {c}" for c in range(CLASSES))
    return RealData(
        data="noise", hub_id=None, revision=None, license="unknown", classes=names, train=split,
        test=split, mean=MEAN, std=STD, flip=True, fingerprint="sha256:0", class_order="given",
    )  # fmt: skip


def network_of(name: str):  # type: ignore[no-untyped-def]
    return build_network(name, channels=3, classes=CLASSES, size=SHAPE[1:], width=WIDTH)


def pool_of(profile: Profile) -> Pool:
    network = network_of("convnet3")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.to(profile.device)
    stored = StoredNetwork(dict(network.named_parameters()), 50.0, 100)
    return Pool(network, (stored,), "noise")


def _pool_steps(schedule: int) -> float:
    """Training steps of the stored networks per matching step of a schedule."""
    config = PoolConfig()
    return config.networks * config.steps / schedule


def make_expert(
    method: str, setting: Setting, profile: Profile, real: RealData, networks: str = "live"
) -> Expert:
    """One expert on all of the noise; `networks`: IDC's, live as published or stored."""
    cls = expert_class(method)
    config = cls.config_class.preset("cifar10", setting.ipc, SHAPE)
    if method == "idc":
        config = config.model_copy(update={"networks": networks})
    part = whole(real).to(profile.device)
    return cls(part, config, pool_of(profile), Streams(0).scope("expert", 0), profile)


def pair_of(method: str, profile: Profile, real: RealData) -> list[Expert]:
    """Two experts of 5 images per class on disjoint parts, as in `cifar10-METHOD-5x2`."""
    cls, pool = expert_class(method), pool_of(profile)
    config = cls.config_class.preset("cifar10", 5, SHAPE)
    parts = split_parts(real, 2, "stratified", Streams(0), 5)
    return [
        cls(part.to(profile.device), config, pool, Streams(0).scope("expert", e), profile)
        for e, part in enumerate(parts)
    ]


# -- the engine -----------------------------------------------------------------------------------


def _engine(name: str, setting: Setting, profile: Profile) -> Parts:
    real = noise_data()
    if name.startswith("train_"):
        small = setting.quick and name != "train_convnet3"
        batch = QUICK_BATCH if small else TRAIN_BATCH
        # A quick run has no time for compiling what hardly gains by it.
        profile = replace(profile, compiled=False) if small else profile
        trainer, part = trainer_of(name.removeprefix("train_"), profile, real, batch)
        rows = torch.arange(batch)
        return [(TRAIN_BATCH / batch, lambda: trainer.step(real_batch(part, rows)))]
    if name == "test_convnet3":
        rows = torch.arange(min(1000, len(real.train)))
        test, net = real.train.subset(rows), network_of("convnet3").to(profile.device)
        return [
            (
                TESTED / len(rows),
                lambda: accuracy(net, test.images, test.labels, real.normalized, profile=profile),
            )
        ]
    if name == "diversity_step":
        experts = pair_of("idm", profile, real)
        return [(1, lambda: diversity_step(experts, DiversityConfig(), Streams(0)))]
    if name == "idc_inner_step":
        return _engine_idc(setting, profile, real)
    return _engine_idm(setting, profile, real)


def trainer_of(
    network: str, profile: Profile, real: RealData, batch: int
) -> tuple[Trainer, PartData]:
    recipe = network_recipe(PoolConfig(batch=batch))
    made = Trainer(network_of(network), recipe, Streams(0), True, profile)
    return made, whole(real).to(profile.device)


def _engine_idc(setting: Setting, profile: Profile, real: RealData) -> Parts:
    expert = make_expert("idc", setting, profile, real)
    expert.settle(1e18)
    if not setting.quick:
        return [(1, expert.step)]
    live = expert.live  # type: ignore[attr-defined]
    parameters = live.parameters(0)
    rows = [expert._real_rows(c) for c in range(CLASSES)]  # type: ignore[attr-defined]
    batch = real_batch(expert.part, torch.arange(TRAIN_BATCH))

    def one_class() -> Tensor:
        return expert._move_classes([0], rows, parameters, Streams(0))  # type: ignore[attr-defined]

    return [(CLASSES, one_class), (live.per_step, lambda: live.trainer.step(batch))]


def _engine_idm(setting: Setting, profile: Profile, real: RealData) -> Parts:
    expert = make_expert("idm", setting, profile, real)
    expert.settle(1e18)
    trainer, part = trainer_of("convnet3", profile, real, TRAIN_BATCH)
    rows = torch.arange(TRAIN_BATCH)
    pool: Parts = [(_pool_steps(SCHEDULE), lambda: trainer.step(real_batch(part, rows)))]
    if not setting.quick:
        return [(1, expert.step), *pool]
    parameters = expert.pool.stored[0].parameters

    def one_class() -> object:
        return expert._move_classes([0], parameters, 25.0, Streams(0))  # type: ignore[attr-defined]

    return [(CLASSES, one_class), *pool]


# -- plain code -----------------------------------------------------------------------------------


def _baseline(name: str, setting: Setting) -> Parts:
    """The plain code's parts, each run with the device as torch's default one."""

    def there(function: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with torch.device(setting.device):
                return function()

        return run

    return [(count, there(function)) for count, function in _plain(name, setting)]


def _plain(name: str, setting: Setting) -> Parts:
    real = noise_data()
    split = RealSplit(real.train.images.to(setting.device), real.train.labels.to(setting.device))
    real = replace(real, train=split, test=split)
    with torch.device(setting.device):
        images = reference.normalize(split.images.float() / 255, MEAN, STD)
    generator = torch.Generator().manual_seed(0)
    if name.startswith("train_"):
        small = setting.quick and name != "train_convnet3"
        batch = QUICK_BATCH if small else TRAIN_BATCH
        network = (
            reference.ConvNet() if name == "train_convnet3" else network_of(name.split("_", 1)[1])
        )
        network = network.to(setting.device)
        return [(TRAIN_BATCH / batch, _plain_training(network, images, real, batch, generator))]
    net = reference.ConvNet().to(setting.device)
    if name == "test_convnet3":
        test, labels = images[:1024], real.train.labels[:1024]
        return [(TESTED / len(test), lambda: reference.score(net, test, labels))]
    if name == "diversity_step":
        sides = [images[:50].clone(), images[50:100].clone()]
        return [(1, lambda: reference.diversity_step(net, *sides, lr=1e-3))]
    stored = images[: CLASSES * setting.ipc].clone()
    if name == "idc_inner_step":
        train = _plain_training(net, images, real, TRAIN_BATCH, generator)
        return [(CLASSES, _plain_idc(net, stored, real, setting.ipc, generator)), (32, train)]
    queue = [(n, _sgd(n)) for n in (reference.ConvNet().to(setting.device),)]
    rows = torch.arange(50_000, device=setting.device) % len(
        images
    )  # CIFAR-10's number, of the images there are

    def queue_step() -> None:
        reference.train_queue(queue, images, real.train.labels, rows, steps=1)

    return [(CLASSES, _plain_idm(net, stored, images, setting.ipc, generator)), (20, queue_step)]


def _sent(draw: Draw, images: Tensor) -> reference.Ops:
    """The draw's parameters where the images are."""
    return [(f, tuple(value.to(images.device) for value in values)) for f, values in draw.ops]


def _sgd(net: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def _plain_training(
    net: torch.nn.Module, images: Tensor, real: RealData, batch: int, generator: torch.Generator
) -> Callable[[], None]:
    optimizer, rows = _sgd(net), torch.arange(batch, device=images.device)

    def step() -> None:
        with torch.device("cpu"):
            draw = draw_idc(generator, batch, SHAPE, ("color", "crop"), shared=False)
            boxed = bool(torch.rand((), generator=generator) < 0.5)
        x, y = reference.augment(images[rows], _sent(draw, images)), real.train.labels[rows]
        if boxed:
            reference.cutmix_step(net, optimizer, x.contiguous(), y, float(torch.rand(())))
        else:
            reference.network_step(net, optimizer, x, y)

    return step


def _plain_idc(
    net: torch.nn.Module, stored: Tensor, real: RealData, ipc: int, generator: torch.Generator
) -> Callable[[], float]:
    leaf = stored.requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=5e-3, momentum=0.5)
    unit = real.train.images[:64].float() / 255

    def step() -> float:
        with torch.device("cpu"):
            draw = draw_idc(generator, 1, SHAPE, ("color", "crop", "cutout"), shared=True)
        return reference.idc_class_step(
            net, leaf, optimizer, slice(0, ipc), unit, 0, _sent(draw, unit), MEAN, STD
        )

    return step


def _plain_idm(
    net: reference.ConvNet, stored: Tensor, images: Tensor, ipc: int, generator: torch.Generator
) -> Callable[[], float]:
    leaf = stored.requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.2, momentum=0.5)
    batch = images[:256]

    def step() -> float:
        with torch.device("cpu"):
            draw = draw_dsa(generator, 1, SHAPE, FAMILIES, shared=True)
        return reference.idm_class_step(
            net, leaf, optimizer, slice(0, ipc), batch, 0, _sent(draw, batch), 25.0
        )

    return step
