"""The teacher of RDED's evaluation: an observer trained on all of the real training data.

The recipe of the published checkpoints was never published; ours is that of RDED's observer here
(`experts/observer.py`), on T instead of an expert's part, and its accuracy is measured on a tenth
of T that it was not trained on. It is a ConvNet-3 (or what fits), whatever the student is.
"""

from pathlib import Path

from moedd.experts.observer import (
    Observer,
    ObserverRecipe,
    held_out,
    load_observer,
    require_accuracy,
)
from moedd.experts.rded import RDEDConfig
from moedd.networks import fitting_network, network_for
from moedd.parts import whole
from moedd.pool import Pool
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.realdata import RealData
from moedd_loaders.manifest import Manifest


def teacher_settings(real: RealData, manifest: Manifest | None = None) -> RDEDConfig:
    """The observer's settings of the set's first RDED expert, or RDED's for the data."""
    own = next((e.config for e in manifest.experts if e.method == "rded"), {}) if manifest else {}
    preset = RDEDConfig.preset(real.data, 1, real.shape)
    settings = {key: value for key, value in own.items() if key.startswith("observer_")}
    return RDEDConfig.model_validate({**preset.model_dump(), **settings})


def teacher_recipe(real: RealData, settings: RDEDConfig, width: int) -> ObserverRecipe:
    """How the teacher is trained, at this width of a ConvNet's blocks."""
    name = settings.observer_network or fitting_network(real.shape[1:], real.shape[0])
    network = network_for(name, real.shape, len(real.classes), width)
    return settings.observer_recipe(name, network.width)


def load_teacher(
    real: RealData,
    settings: RDEDConfig,
    home: Path,
    *,
    width: int,
    profile: Profile,
    reporter: Reporter | None = None,
) -> Observer:
    """The teacher from the cache under `home`, trained where it is missing.

    Raises UsageError: it recognises too little of what it was not trained on.
    """
    recipe = teacher_recipe(real, settings, width)
    network = network_for(recipe.network, real.shape, len(real.classes), recipe.width)
    part = whole(real).to(profile.device)
    told = reporter or Reporter(quiet=True)
    pool = Pool(network, (), key="", folder=home / "pools", reporter=told)
    teacher = load_observer("part", part, recipe, pool, profile)
    _, judged = held_out(part)
    require_accuracy(
        teacher.accuracy(part, judged), len(real.classes), settings.observer_floor,
        "protocol rded (the teacher)", len(judged),
    )  # fmt: skip
    return teacher
