"""The one table of data sets that moedd knows by name.

Each row says where the data lie on the Hub (id, configuration, branch), how their columns and
splits are called, their licence as their own page states it, the normalisation constants of the
field, and whether mirroring an image keeps its class. Everything else in the project asks here.

Sources: Hub ids, columns, splits and licences from the data cards on huggingface.co; constants of
CIFAR, SVHN, MNIST and Fashion-MNIST from DC/DSA/DM's code, of ImageNet subsets from torchvision,
of STL-10 the values in common use; those of `digits` are computed from its training split.
"""

from __future__ import annotations

from dataclasses import dataclass

from moedd_loaders.errors import UsageError, nearest

__all__ = ["CONVERT_BRANCH", "DATA", "DataSpec", "aliases", "unknown_data"]

CONVERT_BRANCH = "refs/convert/parquet"
"""The branch on which the Hub keeps the Parquet form of data sets that come as a script."""


@dataclass(frozen=True)
class DataSpec:
    """What is known about a data set before a byte of it is read.

    `mean`, `std`: per channel, in unit space (0 = black, 1 = white). `size`: (H, W) of every
    image, None where images differ and `--size` is needed. `flip`: mirroring left-right keeps the
    class. `stray_grey`: the original files mix in some grey images, which become colour without
    asking. `license`: the data card's identifier, "unknown" where it states none.
    """

    name: str
    hub_id: str | None
    config: str | None
    image_column: str
    label_column: str
    train_split: str
    test_split: str
    license: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    channels: int
    size: tuple[int, int] | None
    classes: tuple[str, ...]
    revision: str | None = None
    stray_grey: bool = False


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = _words("0 1 2 3 4 5 6 7 8 9")
_CIFAR10 = _words("airplane automobile bird cat deer dog frog horse ship truck")
_CIFAR100 = _words(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_FASHION = (
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_STL10 = _words("airplane bird car cat deer dog horse monkey ship truck")
_IMAGENETTE = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)
_IMAGEWOOF = (
    "Shih-Tzu",
    "Rhodesian ridgeback",
    "beagle",
    "English foxhound",
    "Border terrier",
    "Australian terrier",
    "golden retriever",
    "Old English sheepdog",
    "Samoyed",
    "dingo",
)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _imagenet_subset(name: str, classes: tuple[str, ...]) -> DataSpec:
    return DataSpec(
        name=name,
        hub_id=f"frgfm/{name}",
        config="160px",
        revision=CONVERT_BRANCH,
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="validation",
        license="apache-2.0",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        flip=True,
        channels=3,
        size=None,
        classes=classes,
        stray_grey=True,
    )


_ROWS = (
    DataSpec(
        # scikit-learn's copy, inside its package: nothing is fetched.
        name="digits",
        hub_id=None,
        config=None,
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="test",
        license="unknown",
        mean=(0.3045,),
        std=(0.3754,),
        flip=False,
        channels=1,
        size=(8, 8),
        classes=_DIGITS,
    ),
    DataSpec(
        name="cifar10",
        hub_id="uoft-cs/cifar10",
        config="plain_text",
        image_column="img",
        label_column="label",
        train_split="train",
        test_split="test",
        license="unknown",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        flip=True,
        channels=3,
        size=(32, 32),
        classes=_CIFAR10,
    ),
    DataSpec(
        name="cifar100",
        hub_id="uoft-cs/cifar100",
        config="cifar100",
        image_column="img",
        label_column="fine_label",
        train_split="train",
        test_split="test",
        license="unknown",
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
        channels=3,
        size=(32, 32),
        classes=_CIFAR100,
    ),
    DataSpec(
        name="mnist",
        hub_id="ylecun/mnist",
        config="mnist",
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="test",
        license="mit",
        mean=(0.1307,),
        std=(0.3081,),
        flip=False,
        channels=1,
        size=(28, 28),
        classes=_DIGITS,
    ),
    DataSpec(
        name="fashion_mnist",
        hub_id="zalando-datasets/fashion_mnist",
        config="fashion_mnist",
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="test",
        license="mit",
        mean=(0.2861,),
        std=(0.3530,),
        flip=True,
        channels=1,
        size=(28, 28),
        classes=_FASHION,
    ),
    DataSpec(
        # House numbers: a mirrored 2 is no 2. The card says "other" (non-commercial use).
        name="svhn",
        hub_id="ufldl-stanford/svhn",
        config="cropped_digits",
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="test",
        license="other",
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flip=False,
        channels=3,
        size=(32, 32),
        classes=_DIGITS,
    ),
    DataSpec(
        # The labelled splits only (5,000 and 8,000 images).
        name="stl10",
        hub_id="tanganke/stl10",
        config=None,
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="test",
        license="unknown",
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
        flip=True,
        channels=3,
        size=(96, 96),
        classes=_STL10,
    ),
    _imagenet_subset("imagenette", _IMAGENETTE),
    _imagenet_subset("imagewoof", _IMAGEWOOF),
)

DATA: dict[str, DataSpec] = {row.name: row for row in _ROWS}
"""Every known alias, in the order of the documentation."""


def aliases() -> tuple[str, ...]:
    """The names that `load_real` accepts without a path."""
    return tuple(DATA)


def unknown_data(given: str) -> UsageError:
    """The error for a data name that is neither an alias nor comes with a path."""
    close = nearest(given, DATA, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return UsageError(
        f"unknown data '{given}'{hint}; known: {', '.join(DATA)}; for any other data give "
        "--data FOLDER (Parquet files, class folders of images, WebDataset tars) or "
        "--data NAMESPACE/NAME (a data set on the Hugging Face Hub)"
    )
