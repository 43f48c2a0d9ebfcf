"""What an expert is: one distillation method on one part of the real data.

A method registers itself under the name that stands in a set's name:

    @register_expert("idm")
    class IDM(Expert): ...

Packages outside moedd register through the `moedd.experts` entry-point group.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from moedd.arithmetic import Arithmetic, arithmetic
from moedd.parts import PartData, denormalize, normalize
from moedd.pool import Pool
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.ranks import ALONE, Ranks
from moedd.shares import blocks
from moedd.streams import Streams
from moedd_loaders.decode import decode, decode_labels
from moedd_loaders.errors import DataError, NonFiniteError, UsageError, unknown
from moedd_loaders.manifest import DecodeRule, NoDecode, TrainedIn

Space = Literal["unit", "normalized"]


class ExpertConfig(BaseModel):
    """Settings every expert has; a method's own config derives from it. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ipc: int = Field(ge=1, description="stored images per class of this expert")
    steps: int = Field(ge=0, description="matching steps of the whole schedule")

    @classmethod
    def preset(cls, data: str, ipc: int, shape: tuple[int, int, int]) -> Self:
        """The reference's settings for this data set and ipc; each method states its rule."""
        raise NotImplementedError

    @property
    def factor(self) -> int:
        """Decode factor f: a stored image becomes f*f training images."""
        return 1


@dataclass(frozen=True)
class Ground:
    """What `Expert.prepare` may use: all of the real data (asked for when needed), a folder whose
    contents outlive the run, a reporter, and the profile."""

    everything: Callable[[], PartData]
    home: Path
    reporter: Reporter
    profile: Profile


class Expert:
    """One method at work. Subclasses set `config_class`, fill `images` and define `step`.

    `images` is a leaf of shape (classes*ipc, C, H, W), class-major, float32 in `space`.
    `steps` is the length of the method's schedule (0: made at once, nothing to optimise), `done`
    how many were made, `left_out` how many of those moved nothing, as they would have done harm.

    `team`: the ranks that work on this expert, one unless the method `spreads_classes`, that is,
    does in a step only what concerns its `own_classes`. A rank that is not of the team has the
    expert too, but not its images as they are now.
    """

    config_class: ClassVar[type[ExpertConfig]]
    space: ClassVar[Space]
    method: ClassVar[str]
    source: ClassVar[str] = ""  # the paper, for `moedd experts`
    spreads_classes: ClassVar[bool] = False
    team: Ranks = ALONE

    def __init__(
        self,
        part: PartData,
        config: ExpertConfig,
        pool: Pool,
        streams: Streams,
        profile: Profile,
        prepared: Any = None,
    ) -> None:
        self.part, self.config, self.pool = part, config, pool
        self.streams, self.profile = streams, profile
        self.prepared = prepared
        self.steps = config.steps
        self.done = 0
        self.labels = torch.arange(len(part.classes)).repeat_interleave(config.ipc)
        self.labels = self.labels.to(part.images.device)
        self._arithmetic: Arithmetic | None = None
        self.images = self.initial_images()
        self.last_step_norm = 0.0
        self.left_out = 0

    # -- what a method defines -------------------------------------------------------------
    @classmethod
    def prepare(cls, part: PartData, config: ExpertConfig, pool: Pool, ground: Ground) -> Any:
        """What the method makes from real data before it starts, beside the pool (MTT: its
        trajectories), and is then given as `prepared`; None where there is nothing."""
        return None

    @classmethod
    def uses_stored(cls, config: ExpertConfig) -> bool:
        """Whether the method takes trained networks from the pool, not only its architecture:
        where nobody does, none are trained."""
        return True

    def initial_images(self) -> Tensor:
        """Stored images at the start, made from the part."""
        raise NotImplementedError

    def step(self) -> dict[str, float]:
        """One matching step over all classes; returns its losses by name (means over classes)."""
        raise NotImplementedError

    @property
    def decode_rule(self) -> DecodeRule:
        """How stored images become training images."""
        return NoDecode()

    @property
    def image_lr(self) -> float:
        """Step size of the images: what the diversity step is scaled against."""
        return 1.0

    def step_operations(self) -> float:
        """Floating-point operations of one step, two per multiply-add; 0 where nobody counts."""
        return 0.0

    @property
    def sample_steps(self) -> list[tuple[int | None, float]]:
        """Steps to be timed, by number, each with the share of all steps that cost what it costs;
        None where any will do."""
        return [(None, 1.0)]

    # -- shared ----------------------------------------------------------------------------
    def join(self, team: Ranks) -> None:
        """Let the ranks of `team` work on this expert together."""
        self.team = team

    @property
    def own_classes(self) -> range:
        """The classes that this rank works on."""
        if not self.team.here:
            return range(0)
        return blocks(len(self.part.classes), self.team.size)[self.team.place]

    def pull(self) -> None:
        """Get what the other ranks of the team have changed, so that `images` and `state_dict` are
        whole; all of the team call it together."""

    def settle(self, operations: float) -> None:
        """Choose the form of the arithmetic for so many operations of this expert's."""
        self._arithmetic = arithmetic(self.pool.network, self.profile.for_work(operations))

    @property
    def arithmetic(self) -> Arithmetic:
        """The heavy functions under the profile; uncompiled until `settle` says otherwise."""
        if self._arithmetic is None:
            self.settle(0.0)
        assert self._arithmetic is not None
        return self._arithmetic

    def class_groups(self, real_images: Sequence[int]) -> list[list[int]]:
        """Own classes that go through the network in one call: neighbours with as many real images
        (given for all classes), at most `profile.classes_at_once` of them."""
        groups: list[list[int]] = []
        own = range(len(real_images)) if self.team.size == 1 else self.own_classes
        for c in own:
            last, count = groups[-1] if groups else [], real_images[c]
            if last and len(last) < self.profile.classes_at_once and real_images[last[0]] == count:
                last.append(c)
            else:
                groups.append([c])
        return groups

    def rows(self, c: int) -> slice:
        """Positions of class c among the stored images."""
        return slice(c * self.config.ipc, (c + 1) * self.config.ipc)

    def training_images(self, stored: Tensor) -> Tensor:
        """Stored images decoded and brought into normalised space; differentiable."""
        fill = 0.0 if self.space == "normalized" else self.part.mean
        images = decode(stored, self.decode_rule, fill)
        if self.space == "unit":
            images = normalize(images, self.part.mean, self.part.std)
        return images

    def decoded(self) -> tuple[Tensor, Tensor]:
        """All training images in normalised space and their labels (a graph to `images`)."""
        return self.training_images(self.images), decode_labels(self.labels, self.decode_rule)

    def unit_images(self) -> Tensor:
        """Stored images in unit space, detached, not clipped."""
        images = self.images.detach()
        if self.space == "unit":
            return images.clone()
        return denormalize(images, self.part.mean, self.part.std)

    @property
    def trained_in(self) -> TrainedIn:
        """The pixel space the method optimises in, with its constants."""
        if self.space == "unit":
            return TrainedIn(space="unit")
        return TrainedIn(space="normalized", mean=list(self.part.mean), std=list(self.part.std))

    @property
    def step_size(self) -> float | None:
        """Learned step size of the network's training, for methods that have one (MTT)."""
        return None

    @property
    def soft_labels(self) -> Tensor | None:
        """Label probabilities of the stored images, float32 (classes*ipc, classes), for methods
        that make them. `decoded` gives hard labels all the same: matching and diversity go by
        class."""
        return None

    @property
    def measured(self) -> dict[str, float]:
        """Numbers that say how good the means of this expert were, for the manifest."""
        return {}

    def smaller_classes(self, asked: int) -> str:
        """Which classes have fewer real images in the part than `asked`: the subject of a note,
        empty where there are none."""
        counts = [len(rows) for rows in self.part.rows]
        short = [c for c, count in enumerate(counts) if count < asked]
        if not short:
            return ""
        least = min(short, key=counts.__getitem__)
        return (
            f"expert {self.part.index} ({self.method}): {len(short)} of {len(counts)} classes have "
            f"fewer than {asked} real images in its part (least: {self.part.classes[least]!r}, "
            f"{counts[least]})"
        )

    def require_images(self, needed: int, what: str) -> None:
        """Raise DataError, naming the class, unless each has `needed` real images in the part."""
        for name, rows in zip(self.part.classes, self.part.rows, strict=True):
            if len(rows) < needed:
                raise DataError(
                    f"class {name!r} has {len(rows)} images in the part of expert "
                    f"{self.part.index} ({self.method}), and {what} per class need at least "
                    f"{needed}: lower the ipc, add images or drop the class"
                )

    @property
    def files(self) -> dict[str, bytes]:
        """Payload files that the set needs for this expert, by path in the set (a whitening
        matrix)."""
        return {}

    @property
    def made_with(self) -> dict[str, Any]:
        """What else decided the images, for the set's recipe: JSON values."""
        return {}

    def finite(self, value: float, term: str) -> float:
        """`value`, or a `NonFiniteError` that names iteration, expert and term."""
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{term} of expert {self.part.index} ({self.method}) is {value} at its step "
                f"{self.done + 1} of {self.steps}: {self.remedy}"
            )
        return value

    @property
    def remedy(self) -> str:
        """What a person can do where the images of this expert go astray: part of a sentence."""
        fields = type(self.config).model_fields
        setting = next((key for key in ("lr_img", "lr") if key in fields), None)
        if setting is None:
            return "lower the image step size (--set) and start anew with --overwrite"
        return (
            f"lower the image step size (--set {self.method}.{setting}=..., now "
            f"{getattr(self.config, setting):g}) and start anew with --overwrite"
        )

    @property
    def notes(self) -> list[str]:
        """Where this expert has to do with less than its method asks for, in a sentence each."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes from step to step, as tensors."""
        return {
            "images": self.images.detach(),
            "done": torch.tensor(self.done),
            "last_step_norm": torch.tensor(self.last_step_norm, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state that `state_dict` gave."""
        self.images.copy_(state["images"])
        self.done = int(state["done"])
        self.last_step_norm = float(state["last_step_norm"])


_REGISTRY: dict[str, type[Expert]] = {}


def register_expert(name: str) -> Callable[[type[Expert]], type[Expert]]:
    """Class decorator: make `name` usable in set names. Twice the same name is an error."""

    def add(cls: type[Expert]) -> type[Expert]:
        if _REGISTRY.get(name, cls) is not cls:
            raise UsageError(f"two experts are called {name!r}: {_REGISTRY[name]} and {cls}")
        cls.method = name
        _REGISTRY[name] = cls
        return cls

    return add


def method_names() -> list[str]:
    """Every method that can stand in a set's name, those of other packages included."""
    outside = {point.name for point in entry_points(group="moedd.experts")}
    return sorted(_REGISTRY.keys() | outside)


def expert_class(name: str) -> type[Expert]:
    """The class registered as `name`; unknown names list the known ones (`UsageError`)."""
    if name not in _REGISTRY:
        for point in entry_points(group="moedd.experts"):
            if point.name == name:
                register_expert(name)(_load(point))
    if name not in _REGISTRY:
        raise unknown("method", name, method_names())
    return _REGISTRY[name]


def _load(point: EntryPoint) -> type[Expert]:
    """The class that another package registered; what cannot be one is a `UsageError`."""
    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the method {point.name!r} of {point.value} cannot be loaded ({error}): repair or "
            "uninstall the package that registers it"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Expert)):
        raise UsageError(
            f"the method {point.name!r} of {point.value} is {cls!r}, expected a subclass of "
            "moedd.experts.Expert: repair or uninstall the package that registers it"
        )
    return cls


def config_fields(cls: type[ExpertConfig]) -> dict[str, Any]:
    """Setting name -> its description, for help texts."""
    return {name: field.description for name, field in cls.model_fields.items()}
