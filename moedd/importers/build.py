"""From a release and what was said about it to a set on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moedd import __version__
from moedd.datatable import DATA
from moedd.importers.answers import Answers, Question, Settled, questions, refusal, settle
from moedd.importers.choice import Choice
from moedd.importers.classes import Named, class_file, name_classes, told_classes
from moedd.importers.detect import read_release
from moedd.importers.labels import soft_rows
from moedd.importers.released import Released
from moedd.importers.spaces import Converted, convert
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import Manifest, Part, Provenance, Source, TilesDecode
from moedd_loaders.names import is_slug
from moedd_loaders.validate import validate_set
from moedd_publish.write import ExpertRows, check_target, write_set

__all__ = ["Imported", "OpenedRelease", "Request", "import_release", "open_release"]

_TRAJECTORIES = ("mtt", "tesla", "ftd", "datm")


@dataclass(frozen=True)
class Request:
    """One import: what, what was said about it, and what the set is to be called.

    `note` is a sentence of the person's for the manifest.
    """

    address: str
    said: Answers = field(default_factory=Answers)
    choice: Choice = field(default_factory=Choice)
    name: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Imported:
    """A set that was written, and the warnings of its import."""

    folder: Path
    manifest: Manifest
    record: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class OpenedRelease:
    """A release that was read, its classes where somebody names them, and what is to be asked."""

    released: Released
    named: Named | None
    asked: list[Question]


def open_release(request: Request) -> OpenedRelease:
    """Read a release and see what is not known about it; errors as `read_release`'s."""
    told = told_classes(request.said)
    count = len(told[0]) if told else None
    released = read_release(request.address, replace(request.choice, count=count))
    named = name_classes(released, told)
    asked = questions(released, request.said, names_known=named is not None)
    return OpenedRelease(released, named, asked)


def import_release(
    request: Request, sets: Path, opened: OpenedRelease | None = None, overwrite: bool = False
) -> Imported:
    """Write a release as a set into the folder `sets` and pass it through the gate.

    Raises:
        UsageError: something about it is not known (all of it is asked at once), or an answer does
            not fit.
        DataError: files that are damaged or contradict one another.
        ConflictError: a set of that name exists and `overwrite` is not set.
    """
    opened = opened or open_release(request)
    if opened.asked or opened.named is None:
        raise refusal(request.address, opened.asked)
    meaning = _Meaning(request, opened.released, opened.named)
    folder = sets / meaning.name
    check_target(folder, overwrite)
    record = meaning.record()
    manifest = write_set(
        folder,
        name=meaning.name,
        source=_source(request, opened.released, opened.named, meaning.converted, record),
        experts=[meaning.rows(record)],
        evaluation={"protocol": _protocol(meaning.settled.method, meaning.step_size)},
        diversity=None,
        provenance=_PROVENANCE,
        recipe={"imported": [record]},
        soft_labels=meaning.soft,
        overwrite=overwrite,
    )
    validate_set(folder)
    warning = meaning.converted.warning
    return Imported(folder, manifest, record, (warning,) if warning else ())


_PROVENANCE = Provenance(
    moedd=__version__,
    torch=str(torch.__version__),
    device="unknown",
    profile="unknown",
    seed=None,
    seconds=None,
)
"""What is known of how somebody else made a set."""


class _Meaning:
    """A release with everything settled: pixels in unit space, labels, rows ordered by class."""

    def __init__(self, request: Request, released: Released, named: Named) -> None:
        self.released, self.named, self.said = released, named, request.said
        self.settled = settle(released, request.said)
        self.converted = convert(released.images, request.said)
        self.step_size = _step_size(released, request.said)
        labels = named.labels(released.labels)
        hard = labels.argmax(1) if labels.dim() == 2 else labels
        self.order = torch.sort(hard, stable=True).indices
        self.labels = hard[self.order]
        soft = None
        if self.settled.soft_labels is not None:
            soft = soft_rows(labels, self.settled.soft_labels)
        self.soft = None if soft is None else soft[self.order].contiguous()
        self.name = _name(request, self.settled, hard, len(named.classes))

    def rows(self, record: dict[str, Any]) -> ExpertRows:
        return ExpertRows(
            method=self.settled.method,
            config={"imported": record},
            part=Part(rule="unknown"),
            decode=self.settled.decode,
            trained_in=self.converted.trained_in,
            step_size=self.step_size,
            images=self.converted.images[self.order].contiguous(),
            labels=self.labels,
            files=self.converted.files,
        )

    def record(self) -> dict[str, Any]:
        """Everything about the import, as plain values for the manifest."""
        found = self.released.detected
        rule = self.settled.decode
        concluded: dict[str, Any] = {
            "method": self.settled.method,
            "space": self.converted.trained_in.space,
            "space_rule": self.converted.rule,
            "decode": "none",
            "class_order": self.named.rule,
        }
        if isinstance(rule, TilesDecode):
            concluded["decode"] = f"{rule.factor}x{rule.factor} {rule.order}"
        if self.settled.soft_labels is not None:
            concluded["soft_labels"] = self.settled.soft_labels
        if found["order"] == "mixed":
            concluded["order"] = "sorted by class, otherwise in the order of the file"
        return {
            "format": self.released.format,
            "files": self.released.files,
            "detected": found,
            "said": _told(self.said),
            "concluded": concluded,
        }


def _step_size(released: Released, said: Answers) -> float | None:
    if said.step_size is None or released.step_size in (None, said.step_size):
        return said.step_size if released.step_size is None else released.step_size
    raise UsageError(
        f"--step-size {said.step_size} given, and the file beside the images says "
        f"{released.step_size:g}: leave it out"
    )


def _protocol(method: str, step_size: float | None) -> str:
    """The method's own recipe where its needs are met, else the common one."""
    if method in _TRAJECTORIES and step_size is not None and step_size > 0:
        return "mtt"
    return "idc" if method in ("idc", "idc_i") else "common"


def _name(request: Request, settled: Settled, labels: Tensor, classes: int) -> str:
    """The given name; else the configuration; else one made of the path."""
    if request.name is not None:
        if not is_slug(request.name):
            raise UsageError(
                f"--name {request.name!r} cannot name a set: expected [a-z0-9][a-z0-9_+.-]*"
            )
        return request.name
    counts = torch.bincount(labels, minlength=classes)
    even = bool((counts == counts[0]).all())
    if request.said.data and even and settled.method != "unknown":
        name = f"{request.said.data.lower()}-{settled.method}-{int(counts[0])}x1"
    else:
        path = Path(request.address.rstrip("/"))
        plain = path.stem in ("images", "data", "images_best", "ema_images_best")
        text = path.resolve().parent.name if plain else path.stem
        name = re.sub(r"[^a-z0-9_+.-]+", "-", text.lower()).strip("-_+.")
    if not is_slug(name):
        raise UsageError(f"no name for the set follows from {request.address}: give --name")
    return name


def _told(said: Answers) -> dict[str, Any]:
    """What was said; of paths the last part only, which tells nothing about somebody's disk."""
    plain = said.plain()
    listed = class_file(plain.get("classes", ""))
    if listed is not None:
        plain["classes"] = listed.name
    space, colon, place = plain.get("space", "").partition(":")
    if colon and space == "zca":
        plain["space"] = f"zca:{Path(place).name}"
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def _source(
    request: Request, released: Released, named: Named, converted: Converted, record: dict[str, Any]
) -> Source:
    channels, height, width = (int(side) for side in released.images.shape[1:])
    said, notes = request.said, _notes(request, released, record)
    spec = DATA.get(said.data or "")
    if spec is not None:
        times = 3 if channels == 3 and len(spec.mean) == 1 else 1
        mean, std = spec.mean * times, spec.std * times
    elif converted.trained_in.mean is not None and converted.trained_in.std is not None:
        mean, std = tuple(converted.trained_in.mean), tuple(converted.trained_in.std)
    else:
        mean, std = _measured(converted.images)
        notes.append("mean and std are those of these images: the source's are not known")
    if len(mean) != channels:
        raise UsageError(
            f"--data {said.data} given, whose images have {len(mean)} channel"
            f"{'s' * (len(mean) != 1)}, and these have {channels}: give another --data name with "
            "--classes"
        )
    return Source(
        data=said.data or "unknown",
        hub_id=spec.hub_id if spec else None,
        split="unknown",
        license=(spec.license if spec else released.license) or "unknown",
        classes=list(named.classes),
        shape=(channels, height, width),
        mean=list(mean),
        std=list(std),
        class_order=named.rule,
        notes=notes,
    )


def _measured(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = images.double()
    mean = values.mean((0, 2, 3)).tolist()
    std = values.std((0, 2, 3), correction=0).tolist()
    return tuple(mean), tuple(value or 1.0 for value in std)


def _notes(request: Request, released: Released, record: dict[str, Any]) -> list[str]:
    said, concluded = record["said"], record["concluded"]
    told = ", ".join(f"{key} {value}" for key, value in said.items()) or "nothing"
    notes = [
        f"imported from {', '.join(released.files)} ({released.format}); hashes of these files and "
        "all that was detected are in recipe/config.json",
        f"told at import: {told}",
        f"pixels: {concluded['space']} in the files ({concluded['space_rule']}), unit space here",
        "how it was made (seed, schedule, part of the data, machine, time) is not known",
        *released.notes,
    ]
    if "order" in concluded:
        notes.append(f"rows {concluded['order']}")
    if released.reported:
        best = {net: max(values) for net, values in released.reported.items() if values}
        listed = ", ".join(f"{net} {value:.4g}" for net, value in best.items())
        if listed:
            notes.append(f"accuracies its makers report in the file, not measured here: {listed}")
    rule = concluded["decode"]
    if rule != "none" and any(side % int(rule[0]) for side in released.images.shape[2:]):
        notes.append("tiles are padded with the source's mean here, with 0.5 in IDC's own code")
    return notes + ([request.note] if request.note else [])
