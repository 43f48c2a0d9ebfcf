"""Named recipes of published work: how an evaluation network is trained.

`common` is the recipe that DC, DSA, DM, MTT and IDM share (networks and evaluation notes, section
5); `idc` is IDC's. `mtt` is `common` at the step size that MTT learned, in the space that the set
was optimised in: MTT's own (its notes, section 7). Epochs are the protocol's own number; other
numbers are named, `common-300`.
"""

import math
from dataclasses import replace

from moedd.augment import DSA_FAMILIES
from moedd.train import Recipe
from moedd_loaders.errors import UsageError, unknown
from moedd_loaders.manifest import Manifest

PROTOCOLS = ("common", "idc", "mtt")
DEFAULT_EPOCHS = 1000


def protocol_recipe(protocol: str, epochs: int | None = None) -> Recipe:
    """The recipe of `protocol`, at `epochs` instead of its 1000 where given.

    Raises UsageError: unknown protocol, fewer than 1 epoch.
    """
    count = DEFAULT_EPOCHS if epochs is None else epochs
    if count < 1:
        raise UsageError(f"{count} epochs given; an evaluation needs at least 1")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    recipe = _idc(count) if protocol == "idc" else replace(_common(count), name=protocol)
    return recipe if count == DEFAULT_EPOCHS else replace(recipe, name=f"{protocol}-{count}")


def set_recipe(manifest: Manifest, protocol: str, epochs: int | None = None) -> Recipe:
    """The recipe of `protocol` for one set: `mtt` takes its learning rate from the manifest."""
    recipe = protocol_recipe(protocol, epochs)
    return replace(recipe, lr=learned_step_size(manifest)) if protocol == "mtt" else recipe


def learned_step_size(manifest: Manifest) -> float:
    """The step size that a set's experts learned: of several, the geometric mean, since it scales.

    Raises UsageError: no expert learned one, or one is not a positive number.
    """
    learned = [entry.step_size for entry in manifest.experts if entry.step_size is not None]
    if not learned:
        raise UsageError(
            f"protocol mtt trains with the learned step size and no expert of {manifest.name} "
            "learned one (only MTT's do): give --protocol common or idc"
        )
    if not all(0 < size < math.inf for size in learned):
        raise UsageError(
            f"the experts of {manifest.name} have the step sizes {learned}, and a network can only "
            "be trained with positive ones: give --protocol common"
        )
    return math.exp(sum(map(math.log, learned)) / len(learned))


def _common(epochs: int) -> Recipe:
    """DC's loop counts epochs 0..E inclusive; the optimiser is made anew after epoch E/2+1."""
    return Recipe(
        name="common",
        passes=epochs + 1,
        batch=256,
        decay=((epochs // 2 + 1, 0.1),),
        reset=True,
        augment="dsa",
        families=DSA_FAMILIES,
    )


def _idc(epochs: int) -> Recipe:
    """IDC: batches of 64, x0.2 at 2/3 and 5/6, CutMix half of the time instead of cutout."""
    return Recipe(
        name="idc",
        passes=epochs,
        batch=64,
        decay=((2 * epochs // 3 - 1, 0.2), (5 * epochs // 6 - 1, 0.2)),
        augment="idc",
        families=tuple(name for name in DSA_FAMILIES if name != "cutout"),
        cutmix=0.5,
    )
