"""The observer: a network that says how recognisable an image is, and as what.

Source: RDED (Sun et al., CVPR 2024; notes, sections 1 and 9). An observer whose classes stand in
another order than the data's selects the worst images and labels them wrongly, which is what its
users report most. So an observer carries the names of its classes, its logits are handed out in the
order of the data's names, and its accuracy on the expert's part is measured before it is used.

It is trained once and cached: `$MOEDD_HOME/pools/observers/KEY.safetensors`, where KEY covers the
part of the data, the network and the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from moedd.arithmetic import arithmetic, forward_operations, state_of, template
from moedd.checkpoint import load_checkpoint, save_checkpoint
from moedd.networks import Network, network_for
from moedd.parts import PartData, cache_key
from moedd.pool import Pool, real_batch
from moedd.profile import Profile
from moedd.streams import Streams
from moedd.train import TEST_BATCH, Recipe, Trainer, shuffled_batches, test_batch
from moedd_loaders.errors import DataError, UsageError, unknown

_HELD_OUT = 10  # one in so many images of a class is kept from training, to measure accuracy on


@dataclass(frozen=True)
class ObserverRecipe:
    """How an observer is trained; `width` is that of a ConvNet's blocks."""

    network: str
    width: int
    steps: int
    batch: int
    lr: float
    seed: int

    def training(self) -> Recipe:
        """SGD with momentum, the rate cut to a fifth after 2/3 and 5/6 of the steps."""
        return Recipe(
            name="observer",
            passes=0,
            batch=self.batch,
            lr=self.lr,
            decay=((2 * self.steps // 3 - 1, 0.2), (5 * self.steps // 6 - 1, 0.2)),
            augment="idc",
            families=("color", "crop", "flip"),
        )


@dataclass(frozen=True, eq=False)
class Observer:
    """A network with its parameters and buffers by name, and the names of its logits."""

    network: Network
    state: Mapping[str, Tensor]
    classes: tuple[str, ...]
    profile: Profile

    def logits(self, images: Tensor, classes: Sequence[str]) -> Tensor:
        """Logits float32 (n, len(classes)) of normalised images (n, C, H, W), in the order of
        `classes`.

        Always in eval mode, where batch norm uses its running statistics, and in float32. A class
        that the observer does not know is a `DataError`.
        """
        columns = self.columns(classes)
        exact = replace(self.profile, precision="float32").for_work(0)
        functions = arithmetic(template(self.network, training=False), exact)
        most = test_batch(self.network, self.profile)
        batches = [
            functions.logits(self.state, batch, whole=len(batch) == most)
            for batch in images.split(most)
        ]
        return torch.cat(batches)[:, columns]

    def columns(self, classes: Sequence[str]) -> list[int]:
        """Places of the classes among the observer's logits, found by their names."""
        missing = [name for name in classes if name not in self.classes]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(
                f"the observer has no class {missing[0]!r}{more}, it was trained on "
                f"{', '.join(self.classes[:5])}{', ...' if len(self.classes) > 5 else ''}: "
                "take one that was trained on these classes"
            )
        return [self.classes.index(name) for name in classes]

    def accuracy(self, part: PartData, rows: Tensor) -> float:
        """Share of right answers, 0 to 1, on the plain images `rows` of a part."""
        found = [
            self.logits(part.normalized(batch), part.classes).argmax(1) == part.labels[batch]
            for batch in rows.split(TEST_BATCH)
        ]
        return float(torch.cat(found).double().mean())


def held_out(part: PartData) -> tuple[Tensor, Tensor]:
    """(training rows, held-out rows) of a part: one in ten images of each class is held out.

    The only image of a class is in both.
    """
    training = [rows[torch.arange(len(rows)) % _HELD_OUT > 0] for rows in part.rows]
    training = [own if len(own) else rows for own, rows in zip(training, part.rows, strict=True)]
    return torch.cat(training), torch.cat([rows[::_HELD_OUT] for rows in part.rows])


def require_accuracy(accuracy: float, classes: int, floor: float, who: str, images: int) -> None:
    """Raise UsageError unless the observer has gone `floor` of the way from chance to 1."""
    chance = 1 / classes
    needed = chance + floor * (1 - chance)
    # The comparison is the other way round so that NaN does not pass.
    if not accuracy >= needed:
        raise UsageError(
            f"the observer of {who} recognises {accuracy:.1%} of {images} held-out images of its "
            f"part, expected at least {needed:.1%} (chance is {chance:.1%}), so its choice of "
            "crops would be noise: train it longer (observer_steps), at another step size "
            "(observer_lr), or take the pool's network (observer=pool)"
        )


def load_observer(
    which: str, part: PartData, recipe: ObserverRecipe, pool: Pool, profile: Profile
) -> Observer:
    """The observer that a setting names.

    `which`: "part", one trained on `part` by `recipe` (from the cache where it is there); "pool",
    the oldest network of the pool, trained on all of the data by default; else the key of a stored
    observer. Raises UsageError: an unknown key. DataError: a stored observer of other images.
    """
    if which == "pool":
        oldest = max(pool.stored, key=lambda stored: stored.steps)
        return Observer(pool.network, oldest.parameters, part.classes, profile)
    folder = None if pool.folder is None else pool.folder / "observers"
    if which != "part":
        stored = sorted(path.stem for path in folder.glob("*.safetensors")) if folder else []
        if folder is None or which not in stored:
            raise unknown("observer", which, ["part", "pool", *stored])
        return _read(folder / f"{which}.safetensors", part, profile)
    network = fresh_observer(recipe, part)
    profile = observer_profile(profile, network, recipe)
    if folder is None:
        return _train(network, part, recipe, pool, profile)
    path = folder / f"{observer_key(part, recipe, profile)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            write_observer(path, _train(network, part, recipe, pool, profile))
    # Read back even when it was just trained: one path, the same bytes.
    return _read(path, part, profile)


def observer_profile(profile: Profile, network: Network, recipe: ObserverRecipe) -> Profile:
    """The form that an observer is trained in."""
    return profile.for_work(3 * forward_operations(network) * recipe.steps * recipe.batch)


def observer_key(part: PartData, recipe: ObserverRecipe, profile: Profile) -> str:
    """What an observer is cached under: a digest of data, network, recipe and precision."""
    return cache_key(part, 1, profile.precision, recipe=asdict(recipe))


def fresh_observer(recipe: ObserverRecipe, part: PartData) -> Network:
    """The network that an observer is before it is trained."""
    generator = Streams(recipe.seed).generator("observer", "init")
    return network_for(recipe.network, part.shape, len(part.classes), recipe.width, generator)


def _train(
    network: Network, part: PartData, recipe: ObserverRecipe, pool: Pool, profile: Profile
) -> Observer:
    streams = Streams(recipe.seed).scope("observer")
    rows, _ = held_out(part)
    trainer = Trainer(network, recipe.training(), streams, part.flip, profile)
    batches = shuffled_batches(len(rows), recipe.batch, streams)
    pool.reporter.begin(f"observer of expert {part.index}", recipe.steps)
    for step in range(recipe.steps):
        trainer.step(real_batch(part, rows[next(batches)]))
        trainer.after_epoch(step)
        pool.reporter.step(step + 1)
    pool.reporter.end()
    state = {name: tensor.detach() for name, tensor in state_of(network).items()}
    return Observer(network, state, part.classes, profile)


def write_observer(path: Path, observer: Observer) -> None:
    """Keep an observer, where `load_observer` finds it."""
    net = observer.network
    meta: dict[str, Any] = {
        "classes": list(observer.classes),
        "network": net.name,
        "width": net.width,
        "channels": net.channels,
        "size": list(net.size),
    }
    save_checkpoint(path, observer.state, meta)


def _read(path: Path, part: PartData, profile: Profile) -> Observer:
    state, meta = load_checkpoint(path)
    channels, (height, width) = meta["channels"], meta["size"]
    if (channels, height, width) != part.shape:
        raise DataError(
            f"the observer {path.stem} takes images of {channels}x{height}x{width}, those of "
            f"{part.data} are {'x'.join(map(str, part.shape))}: take one trained on such images"
        )
    network = network_for(meta["network"], part.shape, len(meta["classes"]), meta["width"])
    on_device = {name: tensor.to(profile.device) for name, tensor in state.items()}
    return Observer(network.to(profile.device), on_device, tuple(meta["classes"]), profile)
