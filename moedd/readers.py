"""Opens local real data: class folders of images and WebDataset tars (Parquet: `tablereaders`).

Opening finds the files, the classes and every label; no image is decoded here. What a folder may
look like is `ACCEPTED`; anything else is a DataError that quotes it.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moedd.datatable import DataSpec
from moedd.imagescan import FileSlice, Item
from moedd_loaders.errors import DataError

__all__ = [
    "ACCEPTED",
    "Opened",
    "SplitSource",
    "named_classes",
    "open_image_folder",
    "open_tars",
    "order_classes",
    "split_files",
    "test_split",
]

ACCEPTED = (
    "a folder of Parquet files (train-*.parquet and test-*.parquet with an image and a label "
    "column), of class folders (train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png), or of "
    "WebDataset tars (train*.tar and test*.tar with png or jpg and cls or json members)"
)
"""What a local path may hold, in words."""

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val", "dev")
"""Names under which a held-out split is found, best first."""

IMAGE_ENDINGS = frozenset(
    f".{ending}"
    for ending in (
        *("png", "jpg", "jpeg", "jfif", "bmp", "gif", "tif", "tiff"),
        *("webp", "ppm", "pgm", "pbm", "pnm"),
    )
)
CLASS_FILES = ("classes.txt", "classnames.txt")
"""Where class names are looked for (one a line) if neither the data nor the table has them."""


@dataclass(frozen=True)
class SplitSource:
    """One split before decoding: how many images, and a fresh pass over them."""

    count: int
    items: Callable[[], Iterable[Item]]


@dataclass
class Opened:
    """Real data found and understood, but not yet decoded.

    `test` is None where no held-out split exists. `class_order` says by which rule `classes` are
    ordered; `notes` says everything else that was decided on the way.
    """

    kind: str
    classes: tuple[str, ...]
    class_order: str
    train: SplitSource
    test: SplitSource | None
    notes: list[str] = field(default_factory=list)
    hub_id: str | None = None
    revision: str | None = None
    license: str | None = None


def order_classes(names: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Class names in the order that gives them their indices, and the rule in words.

    Whole numbers are sorted by value (1, 2, 10), anything else by plain string order, which is
    what torchvision's ImageFolder does with all names.
    """
    distinct = set(names)
    if distinct and all(name.isascii() and name.isdigit() for name in distinct):
        ordered = sorted(distinct, key=lambda name: (int(name), name))
        return tuple(ordered), "numeric: all class names are whole numbers, sorted by value"
    return tuple(sorted(distinct)), "lexicographic: class names in plain string order"


def named_classes(
    root: Path | None, count: int, spec: DataSpec | None, declared: Sequence[str] | None
) -> tuple[tuple[str, ...], str]:
    """Names for integer labels 0..count-1: the data's own, else the table's, else classes.txt."""
    if declared:
        return tuple(declared), "as declared in the data (ClassLabel)"
    if spec is not None:
        return spec.classes, f"as in moedd's table for {spec.name}"
    for name in CLASS_FILES:
        if root is not None and (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip()), f"as listed in {name}"
    place = f"'{root.name}'" if root is not None else "this data set"
    raise DataError(
        f"{place} has integer labels 0..{count - 1} and no class names: put them into "
        f"{CLASS_FILES[0]} beside the data, one a line in label order, or name a known data set"
    )


def test_split(names: Iterable[str], spec: DataSpec | None) -> str | None:
    """The split to hold out among `names`, or None."""
    have = set(names)
    wanted = (spec.test_split, *TEST_NAMES) if spec is not None else TEST_NAMES
    return next((name for name in wanted if name in have), None)


def split_files(
    root: Path, ending: str, spec: DataSpec | None
) -> tuple[dict[str, list[Path]], list[str]]:
    """Files under `root` by split, and notes; the split is read off file or folder names.

    Files of which none names a split are all training data; several configurations side by side
    need the table to say which one is meant.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    other: list[Path] = []
    every = sorted(path for path in root.rglob(f"*{ending}") if _visible(path, root))
    for path in every:
        parts = (*path.relative_to(root).parts[:-1], path.name[: -len(ending)])
        splits = [_split_of(part) for part in parts]
        split = next((name for name in reversed(splits) if name), None)
        if split is None:
            other.append(path)
            continue
        folders = zip(parts[:-1], splits[:-1], strict=True)
        config = "/".join(part for part, named in folders if not named)
        found.setdefault(config, {}).setdefault(split, []).append(path)
    if not found:
        return ({"train": every} if every else {}), []
    if len(found) > 1:
        wanted = spec.config if spec is not None else None
        found = {config: files for config, files in found.items() if config == wanted} or found
    if len(found) > 1:
        listed = ", ".join(sorted(name or "." for name in found))
        raise DataError(f"'{root}' holds several data sets ({listed}): give the path of one")
    notes = [f"{len(other)} {ending} files of no known split ignored"] if other else []
    return next(iter(found.values())), notes


def _visible(path: Path, root: Path) -> bool:
    return path.is_file() and not any(
        part.startswith((".", "__")) for part in path.relative_to(root).parts
    )


def _split_of(text: str) -> str | None:
    for word in re.split(r"[^a-z]+", text.lower()):
        if word in TRAIN_NAMES:
            return "train"
        if word in TEST_NAMES:
            return word
    return None


def no_train(root: Path, names: Iterable[str]) -> DataError:
    """The error for data with a held-out split and nothing to train on."""
    return DataError(
        f"'{root}' has a {'/'.join(sorted(names))} split but no train split; expected {ACCEPTED}"
    )


def open_image_folder(root: Path) -> Opened | None:
    """Class folders of images, with or without split folders above them; None if it is not that.

    Files with other endings and hidden files are ignored (counted in the notes). Below a class
    folder every level is searched, sorted by path. The test split may lack a class, not add one.
    """
    folders = {path.name: path for path in sorted(root.iterdir()) if _is_class_folder(path)}
    train_name = next((name for name in TRAIN_NAMES if name in folders), None)
    test_name = test_split(folders, None)
    if train_name is None and test_name is not None:
        raise no_train(root, [test_name])
    if not any(_images_below(path)[0] for path in folders.values()):
        return None
    notes: list[str] = []
    train_files = _class_files(root, folders[train_name] if train_name else root, notes)
    classes, rule = order_classes(train_files)
    index = {name: number for number, name in enumerate(classes)}
    test: SplitSource | None = None
    if train_name is not None and test_name is not None:
        test_files = _class_files(root, folders[test_name], notes)
        extra = sorted(set(test_files) - set(classes))
        if extra:
            raise DataError(
                f"'{root / test_name}' has class folders that '{train_name}' lacks: "
                f"{', '.join(extra[:10])}; both splits need the same classes"
            )
        if test_name != "test":
            notes.append(f"the '{test_name}' folder serves as test split")
        test = _folder_source(root, test_files, index)
    return Opened(
        "image folder", classes, rule, _folder_source(root, train_files, index), test, notes
    )


def _is_class_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """Image files under `folder`, sorted by path, and how many other files were passed over."""
    images: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in IMAGE_ENDINGS:
                images.append(Path(place) / name)
            else:
                others += 1
    return sorted(images), others


def _class_files(root: Path, split: Path, notes: list[str]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    ignored = 0
    for path in sorted(split.iterdir()):
        if not _is_class_folder(path):
            ignored += path.is_file() and not path.name.startswith(".")
            continue
        files[path.name], others = _images_below(path)
        ignored += others
    if not files:
        raise DataError(f"'{split}' has no class folders; expected {ACCEPTED}")
    empty = [name for name, found in files.items() if not found]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"class folder '{split / empty[0]}'{more} has no image; add images "
            f"({', '.join(sorted(IMAGE_ENDINGS))}) or remove the folder"
        )
    if ignored:
        name = split.relative_to(root).as_posix()
        notes.append(f"{ignored} files that are no images ignored{f' in {name}' * (name != '.')}")
    return files


def _folder_source(root: Path, files: dict[str, list[Path]], index: dict[str, int]) -> SplitSource:
    items = [
        Item(path.relative_to(root).as_posix(), index[name], path)
        for name in sorted(files, key=index.__getitem__)
        for path in files[name]
    ]
    return SplitSource(len(items), lambda: items)


def open_tars(root: Path, spec: DataSpec | None) -> Opened | None:
    """WebDataset tars; None if there is no .tar file.

    A sample is a run of members that share the name up to the first dot: one image member and
    `cls` (an integer, or a class name) or `json` with a key label, cls or class.
    """
    files, notes = split_files(root, ".tar", spec)
    if not files:
        return None
    if "train" not in files:
        raise no_train(root, files)
    test_name = test_split(files, spec)
    samples = {
        split: [sample for path in files[split] for sample in _tar_samples(path, root)]
        for split in ("train", test_name)
        if split is not None
    }
    labels = {label for found in samples.values() for _, label, _ in found}
    if all(isinstance(label, int) for label in labels):
        count = max((int(label) for label in labels), default=-1) + 1
        classes, rule = named_classes(root, count, spec, None)
        index: dict[int | str, int] = {number: number for number in range(len(classes))}
    elif all(isinstance(label, str) for label in labels):
        classes, rule = order_classes(str(label) for label in labels)
        index = {name: number for number, name in enumerate(classes)}
    else:
        kinds = Counter(type(label).__name__ for label in labels)
        raise DataError(f"labels in '{root}' are partly numbers and partly names: {dict(kinds)}")

    def source(split: str) -> SplitSource:
        items = []
        for where, label, piece in samples[split]:
            if label not in index:
                raise DataError(
                    f"{where} has label {label}, expected 0..{len(classes) - 1} for the classes "
                    f"{rule}"
                )
            items.append(Item(where, index[label], piece))
        return SplitSource(len(items), lambda: items)

    if test_name not in (None, "test"):
        notes.append(f"the '{test_name}' tars serve as test split")
    test = source(test_name) if test_name is not None else None
    return Opened("WebDataset tars", classes, rule, source("train"), test, notes)


def _tar_samples(path: Path, root: Path) -> list[tuple[str, int | str, FileSlice]]:
    """(name for people, label, where the image bytes lie) of every sample of one tar."""
    shown = path.relative_to(root).as_posix()
    samples: list[tuple[str, int | str, FileSlice]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            key, image, label = "", None, None
            for member in tar:
                base = member.name.rpartition("/")[2]
                if not member.isfile() or base.startswith("."):
                    continue
                stem, _, ending = base.partition(".")
                this = member.name[: len(member.name) - len(base)] + stem
                if this != key:
                    _close_sample(samples, shown, key, image, label)
                    key, image, label = this, None, None
                ending = ending.lower()
                if f".{ending}" in IMAGE_ENDINGS:
                    if image is not None:
                        raise DataError(f"{shown}: sample '{key}' has more than one image")
                    image = FileSlice(path, member.offset_data, member.size)
                elif ending in ("cls", "json") and (label is None or ending == "cls"):
                    file = tar.extractfile(member)
                    assert file is not None  # isfile() above
                    label = _tar_label(file.read(), ending, f"{shown}: sample '{key}'")
            _close_sample(samples, shown, key, image, label)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"'{path}' is not a readable uncompressed tar ({error})") from error
    return samples


def _close_sample(
    samples: list[tuple[str, int | str, FileSlice]],
    shown: str,
    key: str,
    image: FileSlice | None,
    label: int | str | None,
) -> None:
    if not key or (image is None and label is None):
        return
    if image is None or label is None:
        missing = "an image (png or jpg)" if image is None else "a label (cls or json)"
        raise DataError(
            f"{shown}: sample '{key}' lacks {missing}; members of one sample must be adjacent"
        )
    samples.append((f"{shown}:{key}", label, image))


def _tar_label(data: bytes, ending: str, where: str) -> int | str | None:
    try:
        if ending == "cls":
            text = data.decode("utf-8").strip()
            return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text or None
        content = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where} has an unreadable .{ending} member ({error})") from error
    if not isinstance(content, dict):
        return None
    for name in ("label", "cls", "class"):
        value = content.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool):
            return value
    return None
