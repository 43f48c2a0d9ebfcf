"""MTT: matching training trajectories (Cazenavette et al., CVPR 2022).

A student network starts where an expert network was after t epochs on real data, takes N steps of
plain gradient descent on the synthetic images, and the images are moved until it ends where the
expert was M epochs later. The student's step size is learned with them. Images live in normalised
space (or, `zca=true`, whitened) and are never clamped.

Deviations from the published code, each for a stated reason:
* the gradient is the exact one in constant memory (`adjoint.py`), not that of an unrolled graph;
* the step size is optimised as its logarithm, so it stays positive; `lr_lr` keeps its published
  meaning at the initial step size (its step in the logarithm is `lr_lr / step_size^2`), and one
  step changes it by `most_change` at most;
* a step whose loss is above `most_loss`, or whose adjoint grew beyond `most_growth`, is rounding
  noise and left out (as in DATM); `patience` such steps in a row end the run;
* every trajectory is used once before one is used again, in an order drawn per round; the clock
  seeds of the published code are replaced by named streams;
* trajectories are trained on all data for all experts (`train_on="all"`), or on the expert's part:
  an epoch then still has as many steps as one over all data, so that `expert_epochs` keeps its
  meaning.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from moedd.arithmetic import forward_operations
from moedd.augment import DSA_FAMILIES, draw_dsa, select_families
from moedd.experts.adjoint import Match, StudentStep, match_trajectory
from moedd.experts.base import Expert, ExpertConfig, Ground, Space, register_expert
from moedd.experts.mttpresets import preset_row
from moedd.ondevice import upload
from moedd.parts import PartData, normalize
from moedd.pool import Pool
from moedd.streams import Streams
from moedd.trajectories import Trajectories, TrajectoryConfig, epoch_steps, load_trajectories
from moedd_loaders.errors import DataError, DivergedError, UsageError
from moedd_loaders.manifest import TrainedIn


class MTTConfig(ExpertConfig):
    """Settings of MTT. Rows of the reference's presets: data x ipc (see `mttpresets.py`)."""

    syn_steps: int = Field(30, ge=1, description="N: student steps on synthetic images")
    expert_epochs: int = Field(2, ge=1, description="M: epochs from start to target")
    max_start_epoch: int = Field(15, ge=1, description="T+: starts are epochs 0 .. T+ - 1")
    batch_syn: int | None = Field(None, ge=1, description="images per student step; null: all")
    lr_img: float = Field(1000.0, gt=0, description="image step size")
    lr_lr: float = Field(1e-5, ge=0, description="step size of the learned step size; 0: fixed")
    step_size: float = Field(0.01, gt=0, description="initial step size of the student")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum of images and step size")
    augment: bool = Field(True, description="DSA in the student's steps, parameters per image")
    freeze_adjoint: bool = Field(False, description="TESLA's approximate gradient")
    most_loss: float = Field(1.5, gt=1, description="steps with a larger loss are left out")
    most_growth: float = Field(10.0, gt=1, description="... or with a larger adjoint growth")
    most_change: float = Field(0.1, gt=0, description="largest change of log step size per step")
    patience: int = Field(20, ge=1, description="left-out steps in a row that end the run")
    zca: bool = Field(False, description="optimise whitened images; the matrix goes into the set")
    train_on: Literal["all", "part"] = Field(
        "all", description="trajectories on all data for all experts, or on each expert's part"
    )
    trajectories: int = Field(20, ge=1, description="expert trajectories")
    trajectory_batch: int = Field(256, ge=1, description="real images per step of a trajectory")
    trajectory_lr: float = Field(0.01, gt=0, description="step size of a trajectory")
    trajectory_augment: Literal["dsa", "none"] = Field("dsa", description="of a trajectory")
    trajectory_seed: int = Field(0, description="seed of the trajectories: they are shared")

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """The row of (data, ipc), without ZCA; the rules are in `mttpresets.preset_row`."""
        return cls(ipc=ipc, **{"steps": 5000, **preset_row(data, ipc, shape)})

    @property
    def epochs(self) -> int:
        """Epochs of a trajectory that the distillation can reach."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def trajectory_config(self) -> TrajectoryConfig:
        """How the trajectories are trained (on all data)."""
        return TrajectoryConfig(
            batch=self.trajectory_batch,
            lr=self.trajectory_lr,
            augment=self.trajectory_augment,
            zca=self.zca,
            seed=self.trajectory_seed,
        )


@register_expert("mtt")
class MTT(Expert):
    """Matching of training trajectories with a learned step size."""

    config_class: ClassVar[type[ExpertConfig]] = MTTConfig
    source: ClassVar[str] = "Cazenavette et al., CVPR 2022, arXiv 2203.11932"
    space: ClassVar[Space] = "normalized"
    config: MTTConfig
    prepared: Trajectories

    @classmethod
    def prepare(
        cls, part: PartData, config: ExpertConfig, pool: Pool, ground: Ground
    ) -> Trajectories:
        """The trajectories, made where they are missing. A whitening is that of the data they are
        trained on, so experts share it unless they are given trajectories of their own."""
        assert isinstance(config, MTTConfig)
        trained_on, settings = cls.trajectories_of(part, config, ground.everything())
        return load_trajectories(
            trained_on, pool.network, settings, config.trajectories, config.epochs,
            ground.home / "trajectories", ground.reporter, ground.profile,
        )  # fmt: skip

    @classmethod
    def trajectories_of(
        cls, part: PartData, config: MTTConfig, everything: PartData
    ) -> tuple[PartData, TrajectoryConfig]:
        """What the trajectories are trained on and how."""
        settings = config.trajectory_config()
        if config.train_on == "all":
            return everything, settings
        if config.zca:
            raise UsageError(
                "mtt.zca=true and mtt.train_on=part are both given: each part would be "
                "whitened by a matrix of its own, and no evaluation could see all experts in "
                "their space; leave one of them out"
            )
        steps = epoch_steps(everything, settings)
        return part, settings.model_copy(update={"epoch_steps": steps})

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        return False

    def initial_images(self) -> Tensor:
        """`ipc` random real images of each class."""
        if self.prepared is None:
            raise UsageError(
                "MTT got no trajectories: give the expert what MTT.prepare returns as `prepared`"
            )
        images = []
        for c, rows in enumerate(self.part.rows):
            if len(rows) < self.config.ipc:
                raise DataError(
                    f"class {self.part.classes[c]!r} has {len(rows)} images in part "
                    f"{self.part.index} and MTT starts from {self.config.ipc} of each class: lower "
                    "the ipc or drop the class"
                )
            order = torch.randperm(len(rows), generator=self.streams.generator("init", c))
            images.append(self._seen(rows[order[: self.config.ipc]]))
        stored = torch.cat(images)
        self.velocity = torch.zeros_like(stored)
        self.log_step = math.log(self.config.step_size)
        self.log_velocity = 0.0
        self.left_out_in_row = 0
        return stored

    def _seen(self, rows: Tensor) -> Tensor:
        """Real images in the space that networks see here."""
        if self.prepared.whitening is None:
            return self.part.normalized(rows)
        return self.prepared.whitening.whiten(self.part.unit(rows))

    @property
    def image_lr(self) -> float:
        return self.config.lr_img

    @property
    def step_size(self) -> float:
        """The student's step size as it is now."""
        return math.exp(self.log_step)

    def step(self) -> dict[str, float]:
        """One step of images and step size; the loss is 1 where the student does not move."""
        streams = self.streams.scope("step", self.done)
        match = self._match(streams)
        loss = self.finite(float(match.loss), "matching loss")
        size = self.step_size
        growth = self.finite(float(match.growth), "adjoint growth")
        if loss > self.config.most_loss or growth > self.config.most_growth:
            self._leave_out(loss, growth)
        else:
            self.left_out_in_row = 0
            self._move(match.images, float(match.step_size))
        self.done += 1
        return {"match": loss, "step_size": size, "left_out": float(self.left_out)}

    @property
    def notes(self) -> list[str]:
        if not self.left_out:
            return []
        return [
            f"expert {self.part.index} (mtt): {self.left_out} of {self.done} steps were left out, "
            "because the student went astray in them"
        ]

    def _match(self, streams: Streams) -> Match:
        number, epoch = self._segment(streams)
        start, target = (
            upload(snapshot, self.images.device).to(self.images.dtype)
            for snapshot in self.prepared.snapshots(
                number, epoch, epoch + self.config.expert_epochs
            )
        )
        return match_trajectory(
            self.arithmetic, self.images, self.labels, self._student_steps(streams),
            start, target, self.step_size, self.config.freeze_adjoint,
        )  # fmt: skip

    def _segment(self, streams: Streams) -> tuple[int, int]:
        """Which trajectory, and at which epoch the student starts."""
        round_, place = divmod(self.done, self.config.trajectories)
        order = torch.randperm(
            self.config.trajectories, generator=self.streams.generator("order", round_)
        )
        epoch = torch.randint(self.config.max_start_epoch, (), generator=streams.generator("epoch"))
        return int(order[place]), int(epoch)

    def _student_steps(self, streams: Streams) -> list[StudentStep]:
        """Rows and draws of all student steps: the images shuffled, cut into chunks, the last (and
        perhaps short) one first; shuffled anew when they are used up."""
        n = len(self.images)
        families = select_families(DSA_FAMILIES, flip=self.part.flip)
        chunks: list[Tensor] = []
        steps = []
        for i in range(self.config.syn_steps):
            if not chunks:
                order = torch.randperm(n, generator=streams.generator("rows", i))
                chunks = list(order.split(self.config.batch_syn or n))
            rows = chunks.pop()
            draw = None
            if self.config.augment:
                generator = streams.generator("augment", i)
                draw = draw_dsa(generator, len(rows), self.part.shape, families, shared=False)
            steps.append(StudentStep(upload(rows, self.images.device), draw))
        return steps

    def _move(self, by_images: Tensor, by_step_size: float) -> None:
        """SGD with momentum on the images and on the logarithm of the step size."""
        config = self.config
        velocity = config.momentum * self.velocity + by_images
        images = self.images - config.lr_img * velocity
        norm = self.finite(float((images - self.images).norm()), "image step")
        # d/dlog(beta) = beta d/dbeta.
        push = self.finite(by_step_size, "gradient of the step size") * self.step_size
        self.log_velocity = config.momentum * self.log_velocity + push
        change = -config.lr_lr / config.step_size**2 * self.log_velocity
        self.log_step += max(-config.most_change, min(config.most_change, change))
        self.velocity.copy_(velocity)
        self.images.copy_(images)
        self.last_step_norm = norm

    def _leave_out(self, loss: float, growth: float) -> None:
        """The images stay; too many of these in a row are a run that goes nowhere."""
        self.last_step_norm = 0.0
        self.left_out += 1
        self.left_out_in_row += 1
        if self.left_out_in_row >= self.config.patience:
            raise DivergedError(
                f"expert {self.part.index} (mtt) diverges: its last {self.left_out_in_row} steps "
                f"up to step {self.done + 1} of {self.steps} had a matching loss above "
                f"{self.config.most_loss} (now {loss:.3g}) or an adjoint growth above "
                f"{self.config.most_growth} (now {growth:.3g}): {self.remedy}"
            )

    @property
    def remedy(self) -> str:
        return (
            "lower mtt.lr_lr, mtt.step_size or mtt.max_start_epoch, after them mtt.lr_img (--set), "
            f"and start anew with --overwrite (the learned step size is {self.step_size:.3g} now)"
        )

    # -- pixel space -----------------------------------------------------------------------
    def training_images(self, stored: Tensor) -> Tensor:
        """Stored images in normalised space, as every other expert's; differentiable."""
        if self.prepared.whitening is None:
            return stored
        unit = self.prepared.whitening.unit(stored)
        return normalize(unit, self.part.mean, self.part.std)

    def unit_images(self) -> Tensor:
        if self.prepared.whitening is None:
            return super().unit_images()
        return self.prepared.whitening.unit(self.images.detach())

    @property
    def trained_in(self) -> TrainedIn:
        if self.prepared.whitening is None:
            return super().trained_in
        return TrainedIn(space="zca", matrix=self.prepared.whitening.file()[0])

    @property
    def files(self) -> dict[str, bytes]:
        whitening = self.prepared.whitening
        return {} if whitening is None else dict([whitening.file()])

    @property
    def made_with(self) -> dict[str, Any]:
        return {"trajectories": self.prepared.key, "epochs": self.prepared.epochs}

    # -- state -----------------------------------------------------------------------------
    def step_operations(self) -> float:
        # Per image and student step: a parameter gradient (three forward passes), and in the
        # backward sweep its graph and derivative (nine).
        images = min(self.config.batch_syn or len(self.labels), len(self.labels))
        return 12 * forward_operations(self.pool.network) * self.config.syn_steps * images

    def state_dict(self) -> dict[str, Tensor]:
        numbers = [self.log_step, self.log_velocity, self.left_out, self.left_out_in_row]
        return {
            **super().state_dict(),
            "velocity": self.velocity,
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.velocity.copy_(state["velocity"])
        numbers = state["numbers"].tolist()
        self.log_step, self.log_velocity = numbers[:2]
        self.left_out, self.left_out_in_row = int(numbers[2]), int(numbers[3])
