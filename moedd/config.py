"""What a run is: every setting of it, resolved from the set's name, presets and overrides.

The name gives data, methods, ipc and experts. Presets give each method's settings for that data and
ipc. `--set key=value` overrides single settings; a key that does not exist lists those that do.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from moedd.diversity import DiversityConfig
from moedd.experts import ExpertConfig, expert_class
from moedd.networks import check_size, fitting_network
from moedd.pool import PoolConfig
from moedd_loaders.errors import UsageError, unknown
from moedd_loaders.names import SetName

SCHEDULES: dict[str, float] = {"smoke": 0.00005, "short": 0.02, "paper": 1.0}
"""Fraction of each method's own number of steps."""


RECIPES: dict[tuple[str, str], dict[str, Any]] = {("cifar10", "idc"): {"lr_img": 5e-2}}
"""Settings of ours in place of a published row, by data and method, chosen on a part of training
(docs/results.md). IDC's mosaics of CIFAR-10 take ten times the published step: the best of four at
some hundred steps, which is what people have time for; 5e-3 was published for 200,000."""


class EvaluationConfig(BaseModel):
    """How a set of this run is evaluated when nothing else is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["common", "idc", "idm", "mtt", "rded"] = Field(
        "common", description="named training recipe"
    )
    epochs: int = Field(1000, ge=1, description="epochs of the recipe")
    repeats: int = Field(3, ge=1, description="networks trained per row")
    width: int = Field(128, ge=1, description="channels of a ConvNet's blocks")


class RunConfig(BaseModel):
    """A resolved run. Two runs with equal configurations make the same set, byte for byte."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="data set, from the name")
    data_path: str | None = Field(None, description="where the data were read, if given")
    shape: tuple[int, int, int] = Field(description="(channels, height, width) of the images")
    methods: tuple[str, ...] = Field(description="method of each expert")
    ipc: int = Field(ge=1, description="stored images per class and expert")
    seed: int = Field(0, description="seed of every random stream of the run")
    parts: Literal["stratified", "all"] = Field(
        "stratified", description="disjoint parts of the data, or all of it for every expert"
    )
    network: str = Field(description="network of the pool: the one images are matched under")
    width: int = Field(128, ge=1, description="channels of the network's blocks")
    pool: PoolConfig = PoolConfig()
    diversity: DiversityConfig = DiversityConfig()
    experts: tuple[SerializeAsAny[ExpertConfig], ...] = Field(description="settings per expert")
    evaluation: EvaluationConfig = EvaluationConfig()

    def digest(self) -> str:
        """Hash of everything that decides the result."""
        plain = self.model_dump(mode="json", exclude={"data_path", "evaluation"})
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _data_settings(name: SetName) -> dict[str, Any]:
    """Settings of a run that depend on its data.

    MNIST with IDC mosaics has no CutMix anywhere (IDC's preset). Digits are the embedded default:
    8x8 pixels need no large network and no long pool. Their diversity step is as long as two image
    steps: at the general 0.05 its effect is below what one can measure (docs/results.md).
    """
    if name.data == "mnist" and "idc" in name.methods:
        return {"pool": PoolConfig(cutmix=0.0)}
    if name.data != "digits":
        return {}
    return {
        "width": 32,
        "pool": PoolConfig(networks=3, steps=240, every=24),
        "diversity": DiversityConfig(ratio=2.0),
        "evaluation": EvaluationConfig(epochs=60, width=32),
    }


def resolve_config(
    name: SetName,
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    data_path: str | None = None,
    overrides: list[str] | None = None,
) -> RunConfig:
    """The configuration of `name` on images of `shape` (C, H, W), with `key=value` overrides.

    Keys: the run's own (`seed` has an option of its own), `pool.KEY`, `diversity.KEY`,
    `evaluation.KEY`, and `METHOD.KEY` for every expert of that method.

    Raises UsageError: unknown key or method, a value that does not fit, an image side too small
    for the network, batch norm in the matching network.
    """
    methods = tuple(name.method_of(e) for e in range(name.experts))
    plain: dict[str, Any] = {
        "data": name.data,
        "data_path": data_path,
        "shape": shape,
        "methods": methods,
        "ipc": name.ipc,
        "seed": seed,
        "network": fitting_network(shape[1:], shape[0]),
        **_data_settings(name),
    }
    presets = {method: _preset(method, name, shape) for method in dict.fromkeys(methods)}
    groups = _Overrides(plain, presets)
    for text in overrides or []:
        groups.apply(text)
    try:
        made = groups.made_experts(presets)
        config = RunConfig(**groups.run, experts=tuple(made[method] for method in methods))
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None
    check_size(config.network, shape[1:], shape[0])
    if config.network.endswith("_bn"):
        raise UsageError(
            f"network={config.network} has batch norm, whose statistics of a few synthetic images "
            f"are noise: distil with {config.network.removesuffix('_bn')} and keep batch norm for "
            "evaluation"
        )
    return config


def _preset(method: str, name: SetName, shape: tuple[int, int, int]) -> ExpertConfig:
    """The published row of a method, with our recipe for the data in it where there is one."""
    preset = expert_class(method).config_class.preset(name.data, name.ipc, shape)
    return preset.model_copy(update=RECIPES.get((name.data, method), {}))


class _Overrides:
    """Settings as plain values while `key=value` texts are applied to them."""

    OWN = ("network", "width", "parts")
    GROUPS: dict[str, type[BaseModel]] = {  # noqa: RUF012
        "pool": PoolConfig,
        "diversity": DiversityConfig,
        "evaluation": EvaluationConfig,
    }

    def __init__(self, run: dict[str, Any], presets: dict[str, ExpertConfig]) -> None:
        self.run = dict(run)
        self.experts = {method: preset.model_dump() for method, preset in presets.items()}
        self.groups: dict[str, dict[str, Any]] = {}
        for group, model in self.GROUPS.items():
            self.groups[group] = self.run.get(group, model()).model_dump()

    def known(self) -> list[str]:
        keys = list(self.OWN)
        for group, values in {**self.groups, **self.experts}.items():
            keys += [f"{group}.{key}" for key in values if key != "ipc"]
        return keys

    def apply(self, text: str) -> None:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator:
            raise UsageError(f"--set {text!r} given; expected KEY=VALUE, for example width=64")
        if key not in self.known():
            raise unknown("setting", key, self.known())
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value.strip()
        group, _, field = key.rpartition(".")
        if not group:
            self.run[field] = parsed
        elif group in self.groups:
            self.groups[group][field] = parsed
            self.run[group] = self.groups[group]
        else:
            self.experts[group][field] = parsed

    def made_experts(self, presets: dict[str, ExpertConfig]) -> dict[str, ExpertConfig]:
        """The experts' configurations, checked."""
        made = {}
        for method, values in self.experts.items():
            try:
                made[method] = type(presets[method])(**values)
            except ValidationError as error:
                raise UsageError(_first_problem(error, method)) from None
        return made


def _first_problem(error: ValidationError, group: str = "") -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in (group, *problem["loc"]) if part != "")
    if isinstance(problem["input"], dict):  # settings that do not fit each other
        said = problem["msg"].removeprefix("Value error, ")
        return f"the settings {where}.* do not fit each other: {said}"
    return f"setting {where}={problem['input']!r} does not fit: {problem['msg']}"


def schedule_fraction(schedule: str) -> float:
    """Fraction of the methods' own steps: of a named schedule, or the number itself.

    Raises UsageError: neither a name nor a number above 0 and at most 1.
    """
    if schedule in SCHEDULES:
        return SCHEDULES[schedule]
    try:
        fraction = float(schedule)
    except ValueError:
        raise unknown("schedule", schedule, SCHEDULES) from None
    if not 0 < fraction <= 1:
        raise UsageError(f"--schedule {schedule} given; a fraction is above 0 and at most 1")
    return fraction
