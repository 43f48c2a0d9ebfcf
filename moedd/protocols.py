"""Named recipes of published work: how an evaluation network is trained.

    common  DC, DSA, DM, MTT and IDM: 1001 passes, batches of 256, one DSA family per batch
    idc     IDC: 1000 passes, batches of 64, CutMix half of the time
    idm     `common` on the 2x2 expansion, which the set's decode rule makes (batches of 128 from
            128 pixels on, as on ImageNet)
    mtt     `common` at the step size that MTT learned, in the space the set was optimised in
    rded    RDED: 300 passes, AdamW, CutMix always, labels by a teacher at temperature 20

Sources: networks and evaluation notes, section 5, and each method's own notes. Epochs are the
protocol's own number; other numbers are named, `common-300`. Accuracy is that of the last epoch;
only where asked for, and marked (`idc-300-best`), it is the best of the points at which the
published code tests, which is a choice made on the test images.

What depends on images, set and network is filled in by `data_recipe`, `set_recipe` and `fitted`.
MTT's affine maps
sample with align_corners True in both steps; for square images that is the same function as ours.
"""

import math
from dataclasses import replace

from moedd.augment import DSA_FAMILIES
from moedd.fusion import fusion_of
from moedd.train import Recipe
from moedd_loaders.errors import UsageError, unknown
from moedd_loaders.manifest import Manifest

PROTOCOLS = ("common", "idc", "idm", "mtt", "rded")
DEFAULT_EPOCHS = 1000

_OWN_EPOCHS = {"rded": 300}
_IMAGENET_SIDE = 128  # pixels from which IDM's recipe is that of its ImageNet script
# RDED's step sizes, by student; its other students are none of our networks.
_RDED_LR = {"vgg11": 5e-4, "alexnet": 1e-4}
_RDED_USUAL_LR = 1e-3
# (training images per class, batch): 1, 10 and 50 as published; what lies between takes the row
# below, and 5, for which the published code has no batch at all, half that of 10.
_RDED_BATCH = ((50, 100), (10, 50), (5, 25), (1, 10))
_RDED_TEMPERATURE = {"cutmix": 20.0, "mixup": 4.0}


def own_epochs(protocol: str) -> int:
    """Epochs of a protocol as published."""
    return _OWN_EPOCHS.get(protocol, DEFAULT_EPOCHS)


def protocol_recipe(protocol: str, epochs: int | None = None, best: bool = False) -> Recipe:
    """The recipe of `protocol`, at `epochs` instead of its own number where given.

    `best`: the accuracy will be the best of the recipe's test points; its name says so.

    Raises UsageError: unknown protocol, fewer than 1 epoch, `best` of a protocol whose published
    code tests once.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    own = own_epochs(protocol)
    count = own if epochs is None else epochs
    if count < 1:
        raise UsageError(f"{count} epochs given; an evaluation needs at least 1")
    makers = {"idc": _idc, "rded": _rded}
    recipe = makers.get(protocol, _common)(count)
    recipe = replace(recipe, name=protocol if count == own else f"{protocol}-{count}")
    if not best:
        return recipe
    if not recipe.points:
        raise UsageError(
            f"the best of several tests is asked for and protocol {protocol} tests once, after the "
            "last epoch: leave --best out, or give --protocol idc or rded"
        )
    return replace(recipe, name=f"{recipe.name}-best")


def data_recipe(
    protocol: str, shape: tuple[int, int, int], epochs: int | None = None, best: bool = False
) -> Recipe:
    """The recipe of `protocol` for images of `shape` (C, H, W)."""
    recipe = protocol_recipe(protocol, epochs, best)
    if protocol == "idm" and min(shape[1:]) >= _IMAGENET_SIDE:
        return replace(recipe, batch=128)
    return recipe


def set_recipe(
    manifest: Manifest, protocol: str, epochs: int | None = None, best: bool = False
) -> Recipe:
    """The recipe of `protocol` for one set: `mtt` takes its learning rate from the manifest,
    `rded` the mosaics that its augmentation shuffles."""
    recipe = data_recipe(protocol, manifest.shape, epochs, best)
    if protocol == "mtt":
        return replace(recipe, lr=learned_step_size(manifest))
    if protocol == "rded":
        return replace(recipe, factor=_mosaic(manifest))
    return recipe


def fitted(
    recipe: Recipe, network: str, *, images: int, classes: int, fuse: str, conv_teacher: bool = True
) -> Recipe:
    """The recipe for one network on `images` training images of `classes` classes.

    Only `rded` depends on them: on the network its step size, on the images its batch. Fusion
    takes the place of its CutMix, at the temperature that RDED gives such mixing. `conv_teacher`:
    the teacher is a ConvNet-3, for RDED's special case of CIFAR-100.
    """
    if recipe.temperature is None:
        return recipe
    base = network.removesuffix("_bn")
    per_class = images / classes
    batch = next((b for least, b in _RDED_BATCH if per_class >= least), _RDED_BATCH[-1][1])
    lr, batch = _RDED_LR.get(base, _RDED_USUAL_LR), batch * (2 if classes >= 100 else 1)
    if classes == 100 and base == "convnet3" and conv_teacher:
        lr, batch = 2e-3, 25
    recipe = replace(recipe, lr=lr, batch=min(batch, images))
    mode, _ = fusion_of(fuse)
    if mode in ("none", "cutmix"):
        return replace(recipe, cutmix=1.0 if mode == "none" else 0.0)
    return replace(recipe, cutmix=0.0, temperature=_RDED_TEMPERATURE["mixup"])


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


def _mosaic(manifest: Manifest) -> int:
    """Crops along a side of the set's training images: RDED's mosaics are not decoded."""
    found = {
        int(entry.config.get("mosaic", 1)) if entry.decode.kind == "none" else 1
        for entry in manifest.experts
    }
    if len(found) > 1:
        raise UsageError(
            f"protocol rded shuffles the crops of mosaics, and of the experts of {manifest.name} "
            f"some have mosaics and some have none ({sorted(found)} crops along a side): give "
            "--protocol common"
        )
    return found.pop()


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
    """IDC: batches of 64, x0.2 at 2/3 and 5/6, CutMix half of the time instead of cutout; the
    published code tests four times."""
    return Recipe(
        name="idc",
        passes=epochs,
        batch=64,
        decay=((2 * epochs // 3 - 1, 0.2), (5 * epochs // 6 - 1, 0.2)),
        augment="idc",
        families=tuple(name for name in DSA_FAMILIES if name != "cutout"),
        cutmix=0.5,
        points=tuple(sorted({max(1, epochs * k // 4) for k in (1, 2, 3, 4)})),
    )


def _rded(epochs: int) -> Recipe:
    """RDED: the step size falls to a half, not to zero; tests every ten epochs of the last fifth.

    Step size and batch are those of `fitted`. The published code forwards the student twice per
    step to print its training accuracy, which moves batch-norm statistics twice; not emulated.
    """
    tested = [e + 1 for e in range(epochs) if (e % 10 == 9 or e == epochs - 1) and e > 0.8 * epochs]
    return Recipe(
        name="rded",
        passes=epochs,
        batch=50,
        lr=_RDED_USUAL_LR,
        weight_decay=0.01,
        optimizer="adamw",
        half_cosine=epochs,
        augment="rded",
        families=("flip",),
        cutmix=1.0,
        temperature=_RDED_TEMPERATURE["cutmix"],
        points=tuple(tested) or (epochs,),
    )
