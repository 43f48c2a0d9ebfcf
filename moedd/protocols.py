"""Named recipes of published work: how an evaluation network is trained.

`common` is the recipe that DC, DSA, DM, MTT and IDM share (networks and evaluation notes, section
5); `idc` is IDC's. Epochs are the protocol's own number; other numbers are named, `common-300`.
"""

from dataclasses import replace

from moedd.augment import DSA_FAMILIES
from moedd.train import Recipe
from moedd_loaders.errors import UsageError, unknown

PROTOCOLS = ("common", "idc")
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
    recipe = _common(count) if protocol == "common" else _idc(count)
    return recipe if count == DEFAULT_EPOCHS else replace(recipe, name=f"{protocol}-{count}")


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
