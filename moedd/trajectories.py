"""Expert trajectories: the parameters of networks while they learn the real data.

Source: MTT (Cazenavette et al., CVPR 2022), its notes' section 2. A trajectory is one network
trained by plain SGD (a student that does plain SGD can imitate it) with DSA; a snapshot of all its
parameters is kept at the start and after every epoch. Trajectories are made once and kept under
`$MOEDD_HOME/trajectories/KEY`, where KEY covers the real data, the network, the recipe and the
precision, but neither how many there are nor how long they are: a run that needs more of either
adds to what is there. Without momentum the parameters are the whole state, so a lengthened
trajectory has the bytes of one made at once.

    trajectory-000.safetensors    snapshots float32 (epochs + 1, P), one row per epoch
    whitening.safetensors         the ZCA matrix, where they were trained in that space

Deviation from the published code: only the epochs that a distillation can reach are made, and no
test pass follows them. DSA's scale and rotation there sample with align_corners True in both
steps, which for square images is the same function as our False in both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moedd.arithmetic import flatten, forward_operations, unflatten
from moedd.augment import DSA_FAMILIES
from moedd.checkpoint import load_checkpoint, save_checkpoint
from moedd.networks import Network, fresh_network
from moedd.ondevice import upload
from moedd.parts import PartData, cache_key
from moedd.pool import real_batch
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.ranks import world
from moedd.streams import Streams
from moedd.train import Fetch, Recipe, Trainer, shuffled_batches
from moedd.zca import Whitening, fit_zca, load_zca, save_zca
from moedd_loaders.errors import DataError, MoeddError, NonFiniteError, UsageError

# Whether training is compiled must not depend on the epochs that are there already.
_NOMINAL_EPOCHS = 20
WHITENING = "whitening.safetensors"


class TrajectoryConfig(BaseModel):
    """How trajectories are trained. `epoch_steps`: SGD steps of what counts as one epoch; None:
    one pass over the data. Experts with a part of the data keep the whole data's number, because
    the distance between snapshots decides the useful step sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(256, ge=1, description="real images per step")
    lr: float = Field(0.01, gt=0, description="SGD step size; no momentum, no weight decay")
    augment: Literal["dsa", "none"] = Field("dsa", description="augmentation of the real images")
    epoch_steps: int | None = Field(None, ge=1, description="SGD steps per epoch")
    zca: bool = Field(False, description="train on whitened images")
    seed: int = Field(0, description="seed of the trajectories, apart from the run's")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The first `count` trajectories of a folder, the first `epochs` epochs of each."""

    folder: Path
    key: str
    count: int
    epochs: int
    parameters: int
    whitening: Whitening | None = None

    def snapshots(self, number: int, *epochs: int) -> list[Tensor]:
        """Parameters (P,) float32 of one trajectory after so many epochs (0: untrained)."""
        assert 0 <= number < self.count
        assert all(0 <= epoch <= self.epochs for epoch in epochs)
        path = trajectory_path(self.folder, number)
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice("snapshots")
                return [rows[epoch] for epoch in epochs]
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error


def trajectory_path(folder: Path, number: int) -> Path:
    """The file of one trajectory."""
    return folder / f"trajectory-{number:03d}.safetensors"


def trajectory_recipe(config: TrajectoryConfig) -> Recipe:
    """The training recipe that the settings describe."""
    return Recipe(
        name="trajectory",
        passes=0,
        batch=config.batch,
        lr=config.lr,
        momentum=0.0,
        weight_decay=0.0,
        augment=config.augment,
        families=DSA_FAMILIES if config.augment == "dsa" else (),
    )


def trajectory_key(
    part: PartData,
    network: Network,
    config: TrajectoryConfig,
    precision: str = "float32",
) -> str:
    """What trajectories are kept under: a digest of data, network, recipe and precision."""
    recipe = {**config.model_dump(), "epoch_steps": epoch_steps(part, config)}
    return cache_key(part, 1, precision, network=network.architecture, recipe=recipe)


def trajectory_profile(
    profile: Profile, part: PartData, network: Network, config: TrajectoryConfig
) -> Profile:
    """The form that trajectories are trained in."""
    work = 3 * forward_operations(network) * epoch_steps(part, config) * config.batch
    return profile.for_work(work * _NOMINAL_EPOCHS)


def epoch_steps(part: PartData, config: TrajectoryConfig) -> int:
    """SGD steps between two snapshots."""
    return config.epoch_steps or -(-len(part.labels) // config.batch)


def load_trajectories(
    part: PartData,
    network: Network,
    config: TrajectoryConfig,
    count: int,
    epochs: int,
    folder: Path,
    reporter: Reporter | None = None,
    profile: Profile | None = None,
) -> Trajectories:
    """`count` trajectories of at least `epochs` epochs from `folder`, making what is missing.

    A killed call goes on with the first trajectory that is not whole; two calls at once wait for
    each other; the ranks of one run make different ones. `network` says which architecture; its
    parameters are not used.

    Raises UsageError: batch norm, whose statistics are no part of a snapshot. DataError: a part
    without images. NonFiniteError: a training loss left the finite numbers.
    """
    _check(part, network)
    profile = trajectory_profile(profile or Profile(), part, network, config)
    key = trajectory_key(part, network, config, profile.precision)
    place = folder / key
    place.mkdir(parents=True, exist_ok=True)
    made = Trajectories(place, key, count, epochs, len(flatten(dict(network.named_parameters()))))
    ranks = world()
    paths = [trajectory_path(place, number) for number in range(count)]
    with ranks.lock(place / "lock"):
        if config.zca:
            ranks.tell(lambda: _fit_whitening(part, place))
        whitening = _read_whitening(place).to(profile.device) if config.zca else None
        maker = _Maker(part, network, config, whitening, reporter, profile)
        missing = ranks.tell(
            lambda: [n for n, path in enumerate(paths) if epochs_of(path, made.parameters) < epochs]
        )
        for n in missing[ranks.place :: ranks.size]:
            maker.make(n, epochs, paths[n], f"trajectory {n + 1}/{count}")
    return Trajectories(**{**vars(made), "whitening": whitening})


def _check(part: PartData, network: Network) -> None:
    if any(True for _ in network.buffers()):
        raise UsageError(
            f"network={network.name} has batch norm, whose statistics are no part of a trajectory: "
            f"make trajectories with {network.name.removesuffix('_bn')}"
        )
    if not len(part.labels):
        raise DataError(
            f"part {part.index} of {part.of} of {part.data} holds no images, and trajectories are "
            "trained on real images: ask for fewer experts or give more data"
        )


def _fit_whitening(part: PartData, place: Path) -> None:
    """Make the matrix of this key: once, so that all its trajectories share it to the bit."""
    path = place / WHITENING
    if not path.exists():
        save_zca(path, fit_zca(part))


def _read_whitening(place: Path) -> Whitening:
    return load_zca(place / WHITENING)


def epochs_of(path: Path, parameters: int) -> int:
    """Epochs that a file holds; -1 where there is none."""
    if not path.exists():
        return -1
    try:
        with safe_open(path, framework="pt") as file:
            rows, columns = file.get_slice("snapshots").get_shape()
    except (SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error
    if columns != parameters:
        raise _unreadable(path, f"{columns} parameters instead of {parameters}")
    return rows - 1


def _unreadable(path: Path, why: object) -> MoeddError:
    return MoeddError(f"trajectory {path} cannot be read ({why}); delete it to make it anew")


def write_trajectory(
    path: Path, rows: Sequence[Tensor], losses: Sequence[float], steps: int
) -> None:
    """Keep a trajectory: `rows` (n, P) of snapshots, losses per epoch, steps of an epoch."""
    meta = {"losses": list(losses), "epoch_steps": steps}
    save_checkpoint(path, {"snapshots": torch.cat(list(rows))}, meta)


@dataclass(frozen=True, eq=False)
class _Maker:
    """What the trajectories of one folder have in common while they are made."""

    part: PartData
    network: Network
    config: TrajectoryConfig
    whitening: Whitening | None
    reporter: Reporter | None
    profile: Profile

    def make(self, number: int, epochs: int, path: Path, title: str) -> None:
        """Train one trajectory from its start, or from where its file ends."""
        streams = Streams(self.config.seed).scope("trajectory", number)
        network = fresh_network(self.network, streams.generator("init"))
        snapshots = flatten(dict(network.named_parameters()))[None]
        losses: list[float] = []
        if path.exists():
            tensors, meta = load_checkpoint(path)
            snapshots, losses = tensors["snapshots"], meta["losses"]
            network.load_state_dict(unflatten(network, snapshots[-1]))
        done, steps = len(snapshots) - 1, epoch_steps(self.part, self.config)
        trainer = Trainer(
            network, trajectory_recipe(self.config), streams, self.part.flip, self.profile
        )
        trainer.steps = done * steps
        batches = shuffled_batches(len(self.part.labels), self.config.batch, streams, trainer.steps)
        told = self.reporter or Reporter(quiet=True)
        told.begin(title, epochs, done)
        rows = [snapshots]
        for epoch in range(done, epochs):
            total = torch.zeros((), device=self.profile.device)
            for _ in range(steps):
                total += trainer.step(self._batch(next(batches)))
            losses.append(self._finite(float(total) / steps, number, epoch))
            # Copied: on a CPU the parameters themselves would go on changing.
            rows.append(flatten(dict(network.named_parameters())).cpu()[None])
            told.step(epoch + 1, f"loss {losses[-1]:.3g}")
        told.end()
        write_trajectory(path, rows, losses, steps)

    def _batch(self, rows: Tensor) -> Fetch:
        whitening = self.whitening
        if whitening is None:
            return real_batch(self.part, rows)
        labels = self.part.labels[upload(rows, self.part.labels.device)]
        images = whitening.whiten(self.part.unit(rows))
        return lambda augment, _: (augment(images), labels)

    def _finite(self, loss: float, number: int, epoch: int) -> float:
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the training loss of trajectory {number} is {loss} in epoch {epoch + 1} at step "
                f"size {self.config.lr}: lower it (--set mtt.trajectory_lr=...)"
            )
        return loss
