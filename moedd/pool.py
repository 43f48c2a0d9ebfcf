"""The pool: networks trained on real data for a few epochs, kept at ages spread over training.

Source: method step 1 ("pretrain and store several networks on T"). IDM matches features under
them, IDC gradients, and the diversity step takes its features from them. A pool is trained once and
cached under `$MOEDD_HOME/pools/KEY`, where KEY covers the real data, the network and the recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from moedd.arithmetic import forward_operations
from moedd.checkpoint import load_checkpoint, save_checkpoint
from moedd.networks import Network, network_for
from moedd.ondevice import upload
from moedd.parts import PartData, cache_key
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.ranks import world
from moedd.streams import Streams
from moedd.train import Fetch, Recipe, Trainer, accuracy, shuffled_batches
from moedd_loaders.errors import NonFiniteError

_METER_IMAGES = 1024


class PoolConfig(BaseModel):
    """How the pool is trained. The recipe is IDC's for its networks, at ages that IDM uses too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    networks: int = Field(3, ge=1, description="networks trained from scratch")
    steps: int = Field(1500, ge=1, description="training steps of each")
    every: int = Field(150, ge=1, description="a checkpoint every so many steps")
    batch: int = Field(64, ge=1, description="real images per step")
    lr: float = Field(0.01, gt=0, description="SGD step size")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay")
    augment: Literal["color_crop", "none"] = Field(
        "color_crop", description="augmentation of the real images"
    )
    cutmix: float = Field(0.5, ge=0, le=1, description="probability of CutMix per batch")
    train_on: Literal["all", "part"] = Field(
        "all", description="one pool on T for all experts, or one per expert on its part"
    )
    seed: int = Field(0, description="seed of the pool, apart from the run's: pools are shared")


@dataclass(frozen=True, eq=False)
class StoredNetwork:
    """Parameters by name, and how good they are: accuracy in percent on plain real images."""

    parameters: dict[str, Tensor]
    accuracy_percent: float
    steps: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Stored networks of one architecture. `network` is called functionally with any of them.

    `folder` is where pools are kept (None: in memory only) and `reporter` whom their training
    tells: experts that train a network of their own keep it there and say so too.
    """

    network: Network
    stored: tuple[StoredNetwork, ...]
    key: str
    config: PoolConfig = field(default_factory=PoolConfig)
    folder: Path | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))

    def draw(self, generator: torch.Generator) -> StoredNetwork:
        """One stored network, uniformly."""
        return self.stored[int(torch.randint(len(self.stored), (), generator=generator))]


def network_recipe(config: PoolConfig) -> Recipe:
    """The training recipe that a pool's settings describe."""
    return Recipe(
        name="pool",
        passes=0,
        batch=config.batch,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        augment="none" if config.augment == "none" else "idc",
        families=tuple(config.augment.split("_")) if config.augment != "none" else (),
        cutmix=config.cutmix,
    )


def real_batch(part: PartData, rows: Tensor) -> Fetch:
    """One batch of real images, for a trainer."""
    labels = part.labels[upload(rows, part.labels.device)]
    return lambda augment, _: (augment(part.normalized(rows)), labels)


def pool_key(
    part: PartData, network: Network, config: PoolConfig, precision: str = "float32"
) -> str:
    """What a pool is cached under: a digest of data, network, recipe and precision."""
    recipe = config.model_dump(exclude={"train_on"})
    return cache_key(part, 3, precision, network=network.architecture, recipe=recipe)


def pool_profile(profile: Profile, network: Network, config: PoolConfig) -> Profile:
    """The form that the pool's networks are trained in. By the work on one of them: how it is
    computed must not depend on how many are there already."""
    work = 3 * forward_operations(network) * config.steps * config.batch
    return profile.for_work(work)


def network_paths(place: Path, count: int) -> list[Path]:
    """The files of a pool's networks, one each, in the folder of its key."""
    return [place / f"network-{n:02d}.safetensors" for n in range(count)]


def load_pool(
    part: PartData,
    network_name: str,
    width: int,
    config: PoolConfig,
    folder: Path,
    reporter: Reporter | None = None,
    profile: Profile | None = None,
    trained: bool = True,
) -> Pool:
    """The pool of these settings from `folder`, training what is not there yet. Its networks lie
    on the profile's device. With `trained` False it has an architecture and no stored networks.

    A killed call goes on with the first network that is not whole; two calls at once wait for each
    other; the ranks of one run train different networks. Raises NonFiniteError: training left the
    finite numbers; such a network is not kept.
    """
    template = network_for(network_name, part.shape, len(part.classes), width)
    profile = pool_profile(profile or Profile(), template, config)
    key = pool_key(part, template, config, profile.precision)
    place = folder / key
    place.mkdir(parents=True, exist_ok=True)
    stored: list[StoredNetwork] = []
    told = reporter or Reporter(quiet=True)
    ranks = world()
    paths = network_paths(place, config.networks if trained else 0)
    with ranks.lock(place / "lock"):
        missing = ranks.tell(lambda: [n for n, path in enumerate(paths) if not path.exists()])
        for n in missing[ranks.place :: ranks.size]:
            _train_one(part, network_name, width, config, n, paths[n], told, profile)
    for path in paths:
        stored += _read_one(path, profile.device)
    for parameter in template.parameters():
        parameter.requires_grad_(False)
    return Pool(template.to(profile.device), tuple(stored), key, config, folder, told)


def _train_one(
    part: PartData,
    network_name: str,
    width: int,
    config: PoolConfig,
    n: int,
    path: Path,
    reporter: Reporter,
    profile: Profile,
) -> None:
    streams = Streams(config.seed).scope("pool", n)
    init = streams.generator("init")
    network = network_for(network_name, part.shape, len(part.classes), width, init)
    trainer = Trainer(network, network_recipe(config), streams, part.flip, profile)
    batches = shuffled_batches(len(part.labels), config.batch, streams)
    meter = torch.randperm(len(part.labels), generator=streams.generator("meter"))[:_METER_IMAGES]
    reporter.begin(f"pool network {n + 1}/{config.networks}", config.steps)
    ages: list[StoredNetwork] = []
    for step in range(1, config.steps + 1):
        trainer.step(real_batch(part, next(batches)))
        if step % config.every == 0 or step == config.steps:
            _require_finite(network, n, step, config)
            right = accuracy(network, meter, part.labels[meter], part.normalized, profile=profile)
            now = {n: p.detach().cpu().clone() for n, p in network.named_parameters()}
            ages.append(StoredNetwork(now, 100 * right, step))
        reporter.step(step)
    reporter.end()
    write_ages(path, ages)


def write_ages(path: Path, ages: Sequence[StoredNetwork]) -> None:
    """Keep one network at its ages."""
    tensors = {
        f"{number}.{name}": tensor
        for number, age in enumerate(ages)
        for name, tensor in age.parameters.items()
    }
    meta = [{"steps": age.steps, "accuracy_percent": age.accuracy_percent} for age in ages]
    save_checkpoint(path, tensors, {"ages": meta})


def _require_finite(network: Network, n: int, step: int, config: PoolConfig) -> None:
    """Raise NonFiniteError unless every parameter is a number: others would be kept for ever."""
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise NonFiniteError(
            f"network {n + 1} of {config.networks} of the pool has NaN or infinite parameters "
            f"after {step} training steps at step size {config.lr:g}: lower it "
            "(--set pool.lr=...)"
        )


def _read_one(path: Path, device: str) -> list[StoredNetwork]:
    tensors, meta = load_checkpoint(path)
    return [
        StoredNetwork(
            {
                name.split(".", 1)[1]: tensor.to(device)
                for name, tensor in tensors.items()
                if name.split(".", 1)[0] == str(index)
            },
            age["accuracy_percent"],
            age["steps"],
        )
        for index, age in enumerate(meta["ages"])
    ]
