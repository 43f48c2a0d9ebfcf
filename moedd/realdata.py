"""Real data as uint8 pixels: `load_real("cifar10")`, `load_real("mine", path="folder")`.

Whatever the source (scikit-learn's digits, a local folder, the Hub), every image is read and
checked before anything is distilled, brought to one size and 1 or 3 channels by stated rules, and
kept on the host, in memory or in a file (`pixels.py`). What was decided on the way is in
`RealData.notes`, for the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from moedd.datatable import DATA, DataSpec, unknown_data
from moedd.imageread import RULES, fit_channels, fit_size
from moedd.imagescan import BadImage, Scanned, ScanProgress, scan
from moedd.pixels import ImageWriter, in_batches
from moedd.readers import ACCEPTED, Opened, SplitSource, open_image_folder, open_tars
from moedd.realsplit import HOLDOUT, RealData, RealSplit, fingerprint, stratified_holdout
from moedd_loaders.errors import DataError, UsageError

__all__ = [
    "MIN_SIDE",
    "RealData",
    "RealSplit",
    "fingerprint",
    "load_real",
    "stratified_holdout",
]

MIN_SIDE = 8
"""Smallest height and width of an image, in pixels."""


def load_real(
    data: str,
    *,
    path: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    flip: bool | None = None,
    skip_bad: bool = False,
) -> RealData:
    """Loads a known alias, or under the name `data` whatever `path` points to.

    `path`: a local folder (see `readers.ACCEPTED`) or NAMESPACE/NAME[:CONFIG][@REVISION] on the
    Hub; without it `data` must be an alias, or itself such a Hub id. `size`: int (square) or
    (H, W); images are scaled, antialiased, to cover it and centre-cropped; without it all images
    must have one size. `channels` 1 or 3 converts; without it, images that contradict the table
    are an error, and unknown data are grey if every image is. `flip` overrides the table; unknown
    data are not mirrored by default. `skip_bad` leaves unreadable images out instead of stopping.

    Errors: UsageError/DataError (exit 2), NetworkError (6), AuthError (3).
    """
    if channels not in (None, 1, 3):
        raise UsageError(f"channels is {channels}, expected 1 (grey) or 3 (RGB)")
    target = _target_size(size)
    spec = DATA.get(data)
    if path is not None and str(path) in DATA and not Path(path).exists():
        path, spec = None, DATA[str(path)]  # `--data mnist`: an alias under another name
    if spec is None and path is None and "/" not in data:
        raise unknown_data(data)
    if path is None and spec is not None and spec.hub_id is None:
        splits, notes = _digits(spec, target, channels)
        rule = f"as in moedd's table for {spec.name}"
        opened = Opened("scikit-learn's digits", spec.classes, rule, _NOTHING, None)
    else:
        opened = _open(data, path, spec)
        _check_classes(opened.classes, spec, data)
        splits, notes = _read(opened, spec, data, target, channels, skip_bad)
    train, test = splits
    shape = tuple(train.images.shape[1:])
    if min(shape[1:]) < MIN_SIDE:
        raise DataError(
            f"the images of {data} are {shape[1]}x{shape[2]} (height x width), expected at least "
            f"{MIN_SIDE}x{MIN_SIDE}: enlarge them with --size"
        )
    mean, std = _constants(spec, train, notes)
    if flip is None:
        flip = spec.flip if spec is not None else False
        if spec is None:
            notes.append("mirroring was not declared to keep the class, so images are not flipped")
    return RealData(
        data=data,
        hub_id=opened.hub_id or (spec.hub_id if spec is not None else None),
        revision=opened.revision,
        license=opened.license or (spec.license if spec is not None else "unknown"),
        classes=opened.classes,
        train=train,
        test=test,
        mean=mean,
        std=std,
        flip=flip,
        fingerprint=fingerprint(opened.classes, train, test),
        class_order=opened.class_order,
        notes=notes,
    )


_NOTHING = SplitSource(0, list)


def _target_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIDE:
        raise UsageError(
            f"size {height}x{width} is too small, expected at least {MIN_SIDE} pixels each way"
        )
    return height, width


def _open(data: str, path: str | Path | None, spec: DataSpec | None) -> Opened:
    """Finds out what `path` (or the alias) is and opens it."""
    if path is None and spec is not None:
        from moedd.tablereaders import open_hub

        assert spec.hub_id is not None  # scikit-learn's digits were taken care of before
        return open_hub(spec.hub_id, spec.config, spec.revision, spec)
    given = str(path) if path is not None else data
    folder = Path(given).expanduser()
    if folder.is_dir():
        return _open_folder(folder, spec)
    if folder.exists():
        raise DataError(f"'{given}' is a file; expected {ACCEPTED}")
    from moedd.tablereaders import HUB_ID, open_hub

    match = HUB_ID.fullmatch(given)
    if match is None:
        raise DataError(
            f"no folder '{given}'; expected {ACCEPTED}, or NAMESPACE/NAME for a data set on the Hub"
        )
    return open_hub(match["id"], match["config"], match["rev"], spec)


def _open_folder(folder: Path, spec: DataSpec | None) -> Opened:
    from moedd.tablereaders import open_parquet

    if (folder / "moedd.json").is_file():
        raise DataError(f"'{folder}' is a distilled set, not real data; expected {ACCEPTED}")
    opened = open_parquet(folder, spec) or open_tars(folder, spec) or open_image_folder(folder)
    if opened is None:
        state = "is empty" if not any(folder.iterdir()) else "holds no data that moedd reads"
        raise DataError(f"'{folder}' {state}; expected {ACCEPTED}")
    # The folder's own name only: a full path would tell the world about somebody's disk.
    opened.notes.insert(0, f"read from the local folder '{folder.resolve().name}' ({opened.kind})")
    return opened


def _check_classes(classes: Sequence[str], spec: DataSpec | None, data: str) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{data} has {len(classes)} class{'es' * (not classes)} "
            f"({', '.join(classes) or 'none'}), expected at least 2; expected {ACCEPTED}"
        )
    if spec is not None and len(classes) != len(spec.classes):
        raise DataError(
            f"the given data have {len(classes)} classes, but {data} has {len(spec.classes)}: "
            "use a data name that is not one of moedd's known ones"
        )


def _read(
    opened: Opened,
    spec: DataSpec | None,
    data: str,
    size: tuple[int, int] | None,
    channels: int | None,
    skip_bad: bool,
) -> tuple[tuple[RealSplit, RealSplit], list[str]]:
    """Scans both splits and turns everything amiss into one error."""
    notes = list(opened.notes)
    if spec is not None and opened.classes != spec.classes:
        notes.append(f"class names differ from those usual for {data}")
    sources = {"train": opened.train, **({"test": opened.test} if opened.test else {})}
    total = sum(source.count for source in sources.values())
    declared = channels or (spec.channels if spec is not None else None)
    convert = channels is not None or (spec is not None and spec.stray_grey)
    found: dict[str, Scanned] = {}
    with ScanProgress(total, f"Reading {data}") as progress:
        for split, source in sources.items():
            if split == "test" and declared is None and len(found["train"].images.shape) == 4:
                # Undeclared channels are what training data have; grey can join colour, no more.
                declared = found["train"].images.shape[1]
                convert = declared == 3
            found[split] = scan(
                source.items(),
                source.count,
                channels=declared,
                convert=convert,
                size=size,
                progress=progress,
                total=total,
            )
    bad = [entry for scanned in found.values() for entry in scanned.bad]
    if bad and not skip_bad:
        raise DataError(
            f"{len(bad)} of {total} images cannot be read: {_listed(bad)}; repair or remove them, "
            "or leave them out with --skip-bad"
        )
    if bad:
        notes.append(f"{len(bad)} of {total} unreadable images left out: {_listed(bad)}")
    for split, scanned in found.items():
        _check_scanned(split, scanned, declared, data)
        for rule, count in sorted(scanned.rules.items()):
            notes.append(f"{count} of {scanned.read} {split} images: {RULES[rule]}")
    train = RealSplit(found["train"].images, found["train"].labels)
    if "test" in found:
        test = RealSplit(found["test"].images, found["test"].labels)
        shapes = [tuple(split.images.shape[2:]) for split in (train, test)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"train images of {data} are {shapes[0]} and test images {shapes[1]} (height, "
                "width): give --size, to which all images are scaled and cropped"
            )
    _check_every_class(train, opened.classes, "training")
    if "test" not in found:
        rows, held = stratified_holdout(train.labels, opened.classes)
        notes.append(f"no test split in the data; held out: {HOLDOUT} ({len(held)} images)")
        return (train.subset(rows), train.subset(held)), notes
    counts = torch.bincount(test.labels, minlength=len(opened.classes)).tolist()
    lacking = [name for name, count in zip(opened.classes, counts, strict=True) if not count]
    if lacking:
        notes.append(f"the test split has no image of: {', '.join(lacking[:10])}")
    return (train, test), notes


def _listed(bad: Sequence[BadImage]) -> str:
    shown = ", ".join(f"{entry.where} ({entry.reason})" for entry in bad[:10])
    return shown + (f", and {len(bad) - 10} more" if len(bad) > 10 else "")


def _check_scanned(split: str, scanned: Scanned, declared: int | None, data: str) -> None:
    if scanned.wrong_channels is not None:
        where, count = scanned.wrong_channels
        more = f" (and {count - 1} more)" if count > 1 else ""
        if declared == 3:
            fault, ways = "grey", "--channels 3 to replicate grey, or --channels 1 to work in grey"
        else:
            fault, ways = "colour", "--channels 1 to reduce to grey, or --channels 3 to keep colour"
        raise DataError(
            f"'{where}'{more} is {fault}, but {data} is declared to have {declared} "
            f"channel{'s' * (declared != 1)}: use {ways}"
        )
    if scanned.mixed_size is not None:
        first, have, other, differs = scanned.mixed_size
        raise DataError(
            f"images differ in size ('{first}' is {have[0]}x{have[1]}, '{other}' "
            f"{differs[0]}x{differs[1]}, height x width): give --size, to which all are scaled "
            "and cropped"
        )
    if not len(scanned.labels):
        raise DataError(f"the {split} split of {data} has no readable image; expected {ACCEPTED}")


def _check_every_class(train: RealSplit, classes: Sequence[str], what: str) -> None:
    counts = torch.bincount(train.labels, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"class '{empty[0]}'{more} has no readable {what} image: add images or remove the class"
        )


def _constants(
    spec: DataSpec | None, train: RealSplit, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel in unit space: the table's, else those of the training split."""
    channels = train.images.shape[1]
    if spec is not None and channels == spec.channels:
        return spec.mean, spec.std
    if spec is not None and channels == 3:
        return spec.mean * 3, spec.std * 3
    notes.append("mean and standard deviation computed from the training split")
    levels = torch.arange(256, dtype=torch.float64) / 255
    # Histograms make this exact, and need no float copy of the images.
    found = np.zeros((channels, 256), np.int64)
    for batch in in_batches(train.images):
        for channel in range(channels):
            found[channel] += np.bincount(batch[:, channel].numpy().ravel(), minlength=256)
    means, stds = [], []
    for counts in found:
        weight = torch.from_numpy(counts).double() / counts.sum()
        mean = (weight * levels).sum()
        std = (weight * (levels - mean) ** 2).sum().sqrt().item()
        means.append(mean.item())
        stds.append(std or 1.0)  # a channel of one value has nothing to scale
    return tuple(means), tuple(stds)


def _digits(
    spec: DataSpec, size: tuple[int, int] | None, channels: int | None
) -> tuple[tuple[RealSplit, RealSplit], list[str]]:
    """scikit-learn's 1,797 grey 8x8 digits (values 0..16, so value / 16 is unit space)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.round(raw.images * 255 / 16).astype(np.uint8)[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    notes = [
        "scikit-learn's digits: value / 16, stored as round(value * 255 / 16)",
        f"no test split in the data; held out: {HOLDOUT}",
    ]
    height, width = size or (8, 8)
    shape = (channels or 1, height, width)
    images = ImageWriter.fitting(len(pixels), shape)
    rules: set[str | None] = set()
    for grey in pixels:
        image, replicated = fit_channels(grey, channels or 1)
        image, resized = fit_size(image, (height, width))
        images.add(image)
        rules |= {replicated, resized}
    notes += [f"all images: {RULES[rule]}" for rule in sorted(rule for rule in rules if rule)]
    whole = RealSplit(images.finish(), labels)
    train, test = stratified_holdout(labels, spec.classes)
    return (whole.subset(train), whole.subset(test)), notes
