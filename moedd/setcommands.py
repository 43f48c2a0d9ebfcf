"""What the commands `import`, `merge`, `export` and `validate` do, apart from reading arguments."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moedd import __version__
from moedd.importers import Request, import_release, open_release
from moedd.importers.answers import refusal
from moedd.importers.released import Released
from moedd.tables import counted, print_usage
from moedd_loaders.errors import InvalidSetError, MoeddWarning
from moedd_loaders.manifest import Manifest, read_manifest
from moedd_loaders.read import read_tensors
from moedd_loaders.resolve import home, resolve
from moedd_loaders.validate import validate_set
from moedd_publish.export import export_set
from moedd_publish.merge import merge_sets, merged_name, read_parts


def run_import(request: Request, *, overwrite: bool, as_json: bool) -> None:
    """`moedd import`: read, say what was found, ask what is not known, or write the set."""
    opened = open_release(request)
    found = opened.released.detected
    asked = [vars(question) for question in opened.asked]
    if not as_json:
        for line in facts(opened.released):
            print(line)
    if asked:
        if as_json:
            _print_json({"detected": found, "needed": asked})
        else:
            for question in opened.asked:
                print(f"  not known: {question.option} {question.choices}: {question.why}")
        raise refusal(request.address, opened.asked)
    made = import_release(request, home() / "sets", opened, overwrite)
    for text in made.warnings:
        warnings.warn(text, MoeddWarning, stacklevel=1)
    if as_json:
        _print_json(
            {
                **_summary(made.folder, made.manifest),
                "detected": found,
                "concluded": made.record["concluded"],
                "warnings": list(made.warnings),
            }
        )
        return
    concluded = made.record["concluded"]
    print("taken as: " + ", ".join(f"{key} {value}" for key, value in concluded.items()))
    print_usage(made.folder, made.manifest.name, 1)


def facts(released: Released) -> list[str]:
    """What was detected, for people."""
    found = released.detected
    low, high = found["range"]
    per_class = found["per_class"]
    each = f"{per_class} per class" if isinstance(per_class, int) else f"per class {per_class}"
    lines = [
        f"found: {counted(found['images'], 'image')} of {'x'.join(map(str, found['shape']))} "
        f"({found['dtype']}), {found['format']} files",
        f"  files: {', '.join(released.files)}",
        f"  pixels: from {low:g} to {high:g}, mean {_numbers(found['mean'])}, standard deviation "
        f"{_numbers(found['std'])} per channel",
        f"  labels: {found['labels']}, {each}, order {found['order']}",
    ]
    if released.step_size is not None:
        lines.append(f"  learned step size: {released.step_size:g}")
    return lines + [f"  note: {note}" for note in released.notes]


def run_merge(names: Sequence[str], *, name: str | None, overwrite: bool, as_json: bool) -> None:
    """`moedd merge`: the experts of several sets as one set in `$MOEDD_HOME/sets`."""
    found = [resolve(text) for text in names]
    parts = read_parts([place.folder for place in found])
    called = name or merged_name([part.manifest for part in parts])
    target = home() / "sets" / called
    manifest = merge_sets(parts, target, name=called, moedd=__version__, overwrite=overwrite)
    if as_json:
        _print_json(
            {
                **_summary(target, manifest),
                "from": [part.manifest.name for part in parts],
                "experts": [entry.method for entry in manifest.experts],
            }
        )
        return
    for place, part in zip(found, parts, strict=True):
        methods = ", ".join(entry.method for entry in part.manifest.experts)
        print(f"{part.manifest.name} ({place}): {methods}")
    print_usage(target, manifest.name, len(manifest.experts))


def run_export(
    name: str, *, to: str, out: str | None, decoded: bool, space: str | None, as_json: bool
) -> None:
    """`moedd export`: a set in somebody else's layout, in a new folder."""
    found = resolve(name)
    target = Path(out).expanduser() if out else Path(f"{found.folder.resolve().name}-{to}")
    files = export_set(found.folder, target, to, decoded, space=space)
    about = json.loads((target / "moedd-export.json").read_text("utf-8"))
    if as_json:
        _print_json({**about, "folder": str(target), "written": [str(path) for path in files]})
        return
    print(f"{about['set']} ({found}) as {to}: {counted(len(files), 'file')} in {target}")
    pixels = about.get("pixels") or f"{about['space']['space']} space, float32"
    print(f"  pixels: {pixels}; labels: {about['labels']}")
    if "step_size_is" in about:
        each = ", ".join("none" if size is None else f"{size:g}" for size in about["step_sizes"])
        told = about["step_size_is"].partition(";")[0]
        print(f"  step size: {about['step_size']:g}, {told} ({each})")
    rule = about["decode"]
    if rule["kind"] == "tiles":
        print(
            f"  images are stored tiles ({rule['factor']}x{rule['factor']}, {rule['order']}): cut "
            "them for training, or give --decoded"
        )


def run_validate(name: str, *, as_json: bool) -> None:
    """`moedd validate`: the gate, with exit code 5 where a set does not pass."""
    found = resolve(name)
    # A copy of a set elsewhere holds its manifest and tensors, no more.
    here = found.origin in ("folder", "home", "bundled")
    try:
        if here:
            manifest = validate_set(found.folder)
        else:
            manifest = read_tensors(found.folder, read_manifest(found.folder)).manifest
    except InvalidSetError as error:
        if as_json:
            _print_json({"folder": str(found.folder), "valid": False, "fault": str(error)})
        raise
    if as_json:
        _print_json({**_summary(found.folder, manifest), "valid": True, "whole": here})
        return
    part = "" if here else " (manifest and tensors; its other files are not here)"
    print(f"{manifest.name} is valid{part} ({found}): content {manifest.content_sha256[:12]}")


def _summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "name": manifest.name,
        "version": manifest.version,
        "images": manifest.budget.images,
        "classes": manifest.classes,
        "content_sha256": manifest.content_sha256,
        "training_sha256": manifest.training_sha256,
    }


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
