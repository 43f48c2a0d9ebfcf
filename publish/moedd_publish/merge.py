"""Joining sets into one with several experts, each with its own decode rule, space and origin."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moedd_loaders.errors import DataError, UsageError
from moedd_loaders.manifest import ExpertEntry, Manifest, Provenance, Source, read_manifest
from moedd_loaders.names import is_slug
from moedd_loaders.read import StoredSet, check_file, read_tensors
from moedd_loaders.validate import validate_set
from moedd_publish.write import ExpertRows, check_target, write_set

__all__ = ["merge_sets", "merged_name", "read_parts"]

UNKNOWN = "unknown"
_DATA_KEYS = {
    "hub_id": None,
    "revision": None,
    "fingerprint": "",
    "split": UNKNOWN,
    "license": UNKNOWN,
}
"""What may be known of the real data, and what stands for not knowing it."""


def read_parts(folders: Sequence[Path]) -> list[StoredSet]:
    """The sets to be joined, checked as `read_tensors` does. Raises InvalidSetError."""
    return [read_tensors(folder, read_manifest(folder)) for folder in folders]


def merge_sets(
    parts: Sequence[StoredSet],
    target: Path,
    *,
    name: str | None = None,
    moedd: str = "",
    created: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the experts of all sets, in their order, as one set.

    Args:
        parts: at least two sets of the same classes (by name, in any order) and image shape.
        target: the folder of the new set.
        name: by default `merged_name`.
        moedd: the version to be recorded.
        created, overwrite: as in `write_set`.

    Returns:
        The manifest of the new set, which has passed the gate. Labels are renumbered to the first
        set's order of classes. Where one set has soft labels, rows of the others are one-hot.

    Raises:
        UsageError: fewer than two sets, or no name follows from theirs.
        DataError: other classes, another shape, other source data, or the same image in two sets.
        ConflictError: as `write_set`.
    """
    if len(parts) < 2:
        raise UsageError(f"{len(parts)} set given to merge, expected two or more")
    name = name or merged_name([part.manifest for part in parts])
    if not is_slug(name):
        raise UsageError(f"--name {name!r} cannot name a set: expected [a-z0-9][a-z0-9_+.-]*")
    check_target(target, overwrite)
    first = parts[0].manifest
    for part in parts[1:]:
        _check_alike(first, part.manifest)
    _check_distinct(parts)
    soft = any(part.soft_labels is not None for part in parts)
    rows = [own for part in parts for own in _rows(part, first.classes, soft)]
    manifest = write_set(
        target,
        name=name,
        source=_source([part.manifest for part in parts]),
        experts=[own.rows for own in rows],
        evaluation=_evaluation([part.manifest for part in parts]),
        diversity=None,
        provenance=_provenance([part.manifest for part in parts], moedd),
        recipe={"merged": [_origin(part) for part in parts]},
        soft_labels=torch.cat([own.soft for own in rows if own.soft is not None]) if soft else None,
        created=created,
        overwrite=overwrite,
    )
    validate_set(target)
    return manifest


def merged_name(manifests: Sequence[Manifest]) -> str:
    """`<data>-<method>+<method>-<ipc>x<experts>`, where all experts store the same per class.

    Raises:
        UsageError: the sets do not have such a name together: one must be given.
    """
    data = _agreed(manifests, "data")
    entries = [entry for manifest in manifests for entry in manifest.experts]
    counts = {count for entry in entries for count in entry.stored_per_class}
    methods = [entry.method for entry in entries]
    period = next(
        n for n in range(1, len(methods) + 1)
        if len(methods) % n == 0 and methods == methods[:n] * (len(methods) // n)
    )  # fmt: skip
    if data in (None, UNKNOWN) or len(counts) != 1 or UNKNOWN in methods:
        raise UsageError(
            "no name follows from the sets to merge (data or method unknown, or experts of unequal "
            "size): give --name"
        )
    return f"{data}-{'+'.join(methods[:period])}-{counts.pop()}x{len(methods)}"


@dataclass(frozen=True)
class _Own:
    """Rows of one expert in the new order of classes, and their soft labels."""

    rows: ExpertRows
    soft: Tensor | None


def _rows(part: StoredSet, classes: list[str], soft: bool) -> list[_Own]:
    manifest = part.manifest
    index = torch.tensor([classes.index(name) for name in manifest.classes])
    return [_own(part, entry, index, soft) for entry in manifest.experts]


def _own(part: StoredSet, entry: ExpertEntry, index: Tensor, soft: bool) -> _Own:
    own = part.experts == entry.id
    labels = index[part.labels[own]]
    order = torch.sort(labels, stable=True).indices
    files: dict[str, bytes] = {}
    matrix = entry.trained_in.matrix
    if matrix is not None:
        check_file(part.folder, matrix, part.manifest)
        files[matrix] = (part.folder / matrix).read_bytes()
    rows = ExpertRows(
        method=entry.method,
        config=entry.config,
        part=entry.part,
        decode=entry.decode,
        trained_in=entry.trained_in,
        step_size=entry.step_size,
        images=part.images[own][order].contiguous(),
        labels=labels[order],
        files=files,
    )
    if not soft:
        return _Own(rows, None)
    if part.soft_labels is None:
        return _Own(rows, F.one_hot(rows.labels, len(index)).float())
    moved = torch.zeros(int(own.sum()), len(index))
    moved[:, index] = part.soft_labels[own]
    return _Own(rows, moved[order])


def _check_alike(first: Manifest, other: Manifest) -> None:
    if set(first.classes) != set(other.classes):
        only = sorted(set(first.classes) ^ set(other.classes))
        raise DataError(
            f"{first.name} and {other.name} have different classes ({', '.join(only[:6])} "
            f"{'is' if len(only) == 1 else 'are'} in one of them only): sets are joined class by "
            "class, by name; import them with the same --classes"
        )
    if first.shape != other.shape:
        raise DataError(
            f"{first.name} has images of {_sides(first)} and {other.name} of {_sides(other)}: "
            "images of one set have one shape"
        )
    data = {first.source.data, other.source.data} - {UNKNOWN}
    if len(data) > 1:
        raise DataError(
            f"{first.name} was made from {first.source.data} and {other.name} from "
            f"{other.source.data}: experts of one set work on the same data"
        )


def _check_distinct(parts: Sequence[StoredSet]) -> None:
    """No image may be in two sets. Stored values decide; what a conversion rounds hides nothing."""
    seen: dict[bytes, list[_Seen]] = {}
    for number, part in enumerate(parts):
        found: dict[bytes, list[_Seen]] = {}
        twice: list[tuple[str, _Seen]] = []
        for row, pixels in zip(part.ids, part.images, strict=True):
            # 8-bit steps find candidates; not clipped, as different images may clip to one.
            steps = (pixels.double() * 255).round() + 0.0  # no -0
            digest = hashlib.sha256(steps.numpy().tobytes()).digest()
            same = [other for other in seen.get(digest, []) if _same(other.pixels, pixels)]
            twice += [(row, other) for other in same[:1]]
            name = f"{part.manifest.name} (set {number + 1})"
            found.setdefault(digest, []).append(_Seen(name, row, pixels))
        if twice:
            row, other = twice[0]
            more = f", and {len(twice) - 1} more" if len(twice) > 1 else ""
            raise DataError(
                f"image {row} of {part.manifest.name} (set {number + 1}) is image {other.row} of "
                f"{other.name}{more}: the same images twice are no second expert"
            )
        for digest, images in found.items():
            seen.setdefault(digest, []).extend(images)


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image of an earlier set."""

    name: str
    row: str
    pixels: Tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def _agreed(manifests: Sequence[Manifest], key: str) -> Any:
    """The one value that all sources which know it have; None where they differ."""
    known = [getattr(manifest.source, key) for manifest in manifests]
    known = [value for value in known if value not in (None, "", UNKNOWN)]
    return known[0] if known and all(value == known[0] for value in known) else None


def _source(manifests: Sequence[Manifest]) -> Source:
    known = next((m for m in manifests if m.source.data != UNKNOWN), manifests[0])
    notes = [f"joined from {', '.join(f'{m.name} {m.version}' for m in manifests)}"]
    for manifest in manifests:
        notes += [f"{manifest.name}: {note}" for note in manifest.source.notes]
        if not _close(known.source, manifest.source):
            notes.append(
                f"{manifest.name} names other means or standard deviations of its data: "
                f"{manifest.source.mean}, {manifest.source.std}"
            )
    plain = known.source.model_dump()
    for key, other in _DATA_KEYS.items():
        value = _agreed(manifests, key)
        plain[key] = other if value is None else value
        told = {getattr(manifest.source, key) for manifest in manifests} - {None, "", UNKNOWN}
        if value is None and told:
            notes.append(f"the sets differ in the {key} of their data")
    first = manifests[0].source
    return Source(**{**plain, "classes": first.classes, "class_order": first.class_order,
                     "notes": list(dict.fromkeys(notes))})  # fmt: skip


def _close(one: Source, other: Source) -> bool:
    pairs = zip([*one.mean, *one.std], [*other.mean, *other.std], strict=True)
    return all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs)


def _evaluation(manifests: Sequence[Manifest]) -> dict[str, Any]:
    first = manifests[0].evaluation
    return first if all(m.evaluation == first for m in manifests) else {"protocol": "common"}


def _provenance(manifests: Sequence[Manifest], moedd: str) -> Provenance:
    """What can be said of all parts together; each part's own is in the recipe."""
    made = [manifest.provenance for manifest in manifests]
    starts = [sum(len(m.experts) for m in manifests[:i]) for i in range(len(manifests))]

    def renumbered(key: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for start, provenance in zip(starts, made, strict=True):
            for name, value in getattr(provenance, key).items():
                number, dot, rest = name.partition(".")
                new = str(int(number) + start) if number.isdigit() else number
                found[f"{new}{dot}{rest}"] = value
        return found

    def common(key: str) -> str:
        return " + ".join(dict.fromkeys(str(getattr(p, key)) or UNKNOWN for p in made))

    seeds = {provenance.seed for provenance in made}
    seconds = [provenance.seconds for provenance in made]
    return Provenance(
        moedd=moedd or common("moedd"),
        torch=common("torch"),
        device=common("device"),
        profile=common("profile"),
        seed=seeds.pop() if len(seeds) == 1 else None,
        seconds=None if None in seconds else sum(s for s in seconds if s is not None),
        iterations=renumbered("iterations"),
        schedule_fraction=renumbered("schedule_fraction"),
        peak_memory_bytes=max(provenance.peak_memory_bytes for provenance in made),
        losses=renumbered("losses"),
    )


def _origin(part: StoredSet) -> dict[str, Any]:
    """What a part was, for the recipe; its own recipe too, where its files are all here."""
    manifest = part.manifest
    recipe = None
    if (part.folder / "recipe/config.json").is_file():
        check_file(part.folder, "recipe/config.json", manifest)
        recipe = json.loads((part.folder / "recipe/config.json").read_text("utf-8"))
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created": manifest.created,
        "content_sha256": manifest.content_sha256,
        "training_sha256": manifest.training_sha256,
        "source": manifest.source.model_dump(mode="json"),
        "provenance": manifest.provenance.model_dump(mode="json"),
        "recipe": recipe,
    }


def _sides(manifest: Manifest) -> str:
    return "x".join(map(str, manifest.shape))
