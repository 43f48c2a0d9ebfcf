"""What the commands `distill` and `evaluate` do, apart from reading their arguments."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from moedd.config import EvaluationConfig, RunConfig, resolve_config, schedule_fraction
from moedd.datatable import DATA
from moedd.distill import Effort, Places, distill
from moedd.evaluate import Row
from moedd.experts import method_names
from moedd.fusion import fusion_of
from moedd.mixture import scaled
from moedd.networks import check_size, fitting_network
from moedd.plans import Plan, evaluate_default, jobs_of, run_plan
from moedd.profile import Profile, choose_profile
from moedd.progress import Reporter
from moedd.protocols import PROTOCOLS, own_epochs, protocol_recipe, set_recipe
from moedd.ranks import world
from moedd.realdata import RealData, load_real
from moedd.runstate import RunFolder
from moedd.tables import counted, print_table, print_usage
from moedd.validation import with_validation_part
from moedd_loaders.errors import DataError, InvalidSetError, UsageError
from moedd_loaders.fuse import FUSE_MODES
from moedd_loaders.manifest import Manifest, read_manifest
from moedd_loaders.names import SetName, is_slug, parse_name
from moedd_loaders.read import read_tensors
from moedd_loaders.resolve import Resolved, home, resolve
from moedd_loaders.validate import validate_set
from moedd_publish.write import check_target

DEFAULT_SCHEDULE = "short"


@dataclass(frozen=True)
class Work:
    """What a run is made of. `evaluates`: whether an evaluation follows."""

    config: RunConfig
    real: RealData
    places: Places
    effort: Effort
    profile: Profile
    evaluates: bool


def run_distill(
    name: str,
    *,
    data: str | None,
    size: int | tuple[int, int] | None,
    channels: int | None,
    skip_bad: bool,
    note: str | None,
    set_name: str | None,
    schedule: str | None,
    max_hours: float | None,
    overrides: list[str],
    seed: int,
    resume: bool,
    overwrite: bool,
    evaluate_after: bool | None,
    print_config: bool,
    checkpoint_seconds: float,
    profile_name: str | None,
    validation: bool = False,
    instead: Callable[[Work], None] | None = None,
) -> None:
    """`moedd distill`: resolve, distil, write, and for digits evaluate.

    `instead` is given what the run would be made of, and takes its place.
    """
    parsed = parse_name(name, method_names())
    called = set_name or name
    if not is_slug(called):
        raise UsageError(f"--name {called!r} cannot name a set: expected [a-z0-9][a-z0-9_+.-]*")
    places = Places(home(), home() / "sets" / called, called)
    if schedule is not None and max_hours is not None:
        raise UsageError(
            f"--schedule {schedule} and --max-hours {max_hours} are both given: give one of them"
        )
    effort = Effort(
        schedule_fraction(schedule or DEFAULT_SCHEDULE),
        max_hours,
        checkpoint_seconds,
        f"--schedule {schedule}" if schedule else f"--max-hours {max_hours}" if max_hours else None,
    )
    ranks = world()
    reporter = Reporter(quiet=not ranks.first)
    evaluates = evaluate_after or (evaluate_after is None and parsed.data == "digits")
    finished = ranks.tell(lambda: resume and _finished(places))
    if finished:
        reporter.say(f"{called} is finished already: {places.target}")
        if not evaluates:
            return
    if not print_config and not resume and instead is None:
        ranks.tell(lambda: check_target(places.target, overwrite))
    shape = _known_shape(parsed.data, data, size, channels)
    if shape is not None:
        # A wrong setting is refused, and the settings are shown, before any data are read.
        config = resolve_config(parsed, shape, seed=seed, data_path=data, overrides=overrides)
        if print_config:
            _print_config(config, schedule, effort)
            return
    real = load_real(parsed.data, path=data, size=size, channels=channels, skip_bad=skip_bad)
    if validation:
        real = with_validation_part(real)
    if note:
        real.notes.append(note)
    config = resolve_config(parsed, real.shape, seed=seed, data_path=data, overrides=overrides)
    if print_config:
        _print_config(config, schedule, effort)
        return
    real.require_per_class(_needed(parsed, config), f"{name} ({parsed.budget} images per class)")
    profile = choose_profile(profile_name or _begun_with(places, resume) or "auto")
    reporter.say(_announcement(name, config, real, profile))
    if instead is not None:
        instead(Work(config, real, places, effort, profile, bool(evaluates)))
        return
    if not finished:
        distill(
            config, real, places, effort, profile,
            resume=resume, overwrite=overwrite, reporter=reporter,
        )  # fmt: skip
    if not ranks.first:
        return
    if evaluates:
        evaluate_default(places.target, config, real, profile, reporter)
    print_usage(places.target, called, len(config.methods))


def _known_shape(
    data: str, path: str | None, size: int | tuple[int, int] | None, channels: int | None
) -> tuple[int, int, int] | None:
    """(C, H, W) of a known alias; None where only the data can tell."""
    spec = DATA.get(data)
    if spec is None or path is not None:
        return None
    sides = (size, size) if isinstance(size, int) else size or spec.size
    return None if sides is None else (channels or spec.channels, *sides)


def _print_config(config: RunConfig, schedule: str | None, effort: Effort) -> None:
    """The resolved settings as JSON, with what the schedule makes of each expert's steps."""
    if not world().first:
        return
    fitted = effort.max_hours is not None
    plan = {
        "schedule": None if fitted else schedule or DEFAULT_SCHEDULE,
        "fraction": None if fitted else effort.fraction,
        "max_hours": effort.max_hours,
        "steps": None if fitted else [scaled(e.steps, effort.fraction) for e in config.experts],
    }
    print(json.dumps({**config.model_dump(mode="json"), "schedule": plan}, indent=1))


def _needed(parsed: SetName, config: RunConfig) -> int:
    return parsed.ipc if config.parts == "all" else parsed.budget


def _finished(places: Places) -> bool:
    run = places.home / "runs" / places.name / "checkpoint.safetensors"
    return (places.target / "moedd.json").is_file() and not run.exists()


def _begun_with(places: Places, resume: bool) -> str | None:
    """The profile that the run to be resumed was started with."""
    return RunFolder(places.home / "runs" / places.name).profile_name() if resume else None


def _announcement(name: str, config: RunConfig, real: RealData, profile: Profile) -> str:
    channels, height, width = real.shape
    notes = f" ({'; '.join(real.notes)})" if real.notes else ""
    return (
        f"{name}: {counted(len(config.methods), 'expert')} ({', '.join(config.methods)}), "
        f"{counted(config.ipc, 'image')} per class each, from {len(real.train)} images of "
        f"{channels}x{height}x{width}{notes}\n"
        f"matched under {config.network} on {profile.device} ({profile.processor}), {profile}"
    )


def run_evaluate(
    name: str,
    *,
    networks: list[str] | None,
    repeats: int | None,
    epochs: int | None,
    fuse: list[str] | None,
    protocol: str | None,
    data: str | None,
    random_draws: int,
    full: bool,
    only_baselines: bool,
    skip_bad: bool,
    width: int | None,
    seed: int,
    profile_name: str | None,
    best: bool = False,
    validation: bool = False,
) -> None:
    """`moedd evaluate`: train, test, write records beside the set."""
    found = resolve(name)
    # A copy of a set elsewhere holds only what training needs: `read_tensors` checks that.
    here = found.origin in ("folder", "home", "bundled")
    manifest = validate_set(found.folder) if here else read_manifest(found.folder)
    settings = _evaluation_settings(manifest, protocol)
    set_recipe(manifest, settings.protocol, best=best)  # refused before anything is read
    stored = read_tensors(found.folder, manifest)
    modes = fuse or (["none", "mixup"] if len(manifest.experts) > 1 else ["none"])
    for mode in modes:
        if FUSE_MODES[fusion_of(mode)[0]][0] == "cross" and len(manifest.experts) < 2:
            raise UsageError(
                f"fuse={mode} mixes images of different experts and {manifest.name} has one: use "
                "vanilla (any two images) or none"
            )
    _, height, width_px = manifest.shape
    if data is None and manifest.source.data not in DATA and manifest.source.hub_id is None:
        raise UsageError(
            f"{manifest.name} was made from {manifest.source.data!r}, which is no data set that "
            "moedd knows by name: say where its real data are with --data"
        )
    real = load_real(
        manifest.source.data,
        path=data,
        size=(height, width_px),
        channels=manifest.shape[0],
        skip_bad=skip_bad,
    )
    _same_classes(manifest, real)
    if validation:
        real = _validated(manifest, real)
    nets = networks or [fitting_network((height, width_px), manifest.shape[0])]
    for net in nets:
        check_size(net, (height, width_px), manifest.shape[0])
    rows = [] if only_baselines else [Row("distilled", mode) for mode in modes]
    rows += [Row("random", draw=d) for d in range(random_draws)]
    rows += [Row("full")] if full else []
    plan = Plan(
        jobs_of(rows, nets, repeats or settings.repeats),
        settings.protocol,
        epochs or settings.epochs,
        width or settings.width,
        seed,
        best,
    )
    reporter = Reporter()
    reporter.say(f"evaluating {manifest.name} ({found})")
    if not manifest.source.fingerprint:
        reporter.say("note: the very data that the set was made from are not known")
    elif real.fingerprint != manifest.source.fingerprint:
        reporter.say(
            "note: these real data are not, byte for byte, those that the set was made from"
        )
    few = min(map(sum, zip(*(e.decoded_per_class for e in manifest.experts), strict=True)))
    shaky = [net for net in nets if net.endswith("_bn")]
    if shaky and few < 2:
        reporter.say(
            f"note: batch norm in {', '.join(shaky)} takes its statistics of {few} training image "
            "per class: they are noise, and a network with instance norm says more"
        )
    profile = choose_profile(profile_name or "auto")
    records = run_plan(stored, real, plan, profile, reporter, _records_folder(found))
    print_table(records, f"accuracy on {len(real.test)} test images of {real.data}")


def _validated(manifest: Manifest, real: RealData) -> RealData:
    """The data with the validation part as test split; refused for a set that has seen it."""
    held = with_validation_part(real)
    if held.fingerprint != manifest.source.fingerprint:
        raise UsageError(
            f"--validation scores on training images that the set must not have seen, and "
            f"{manifest.name} was not made without them: make it with moedd distill --validation "
            "(or moedd tables --validation), from these very data"
        )
    return held


def _records_folder(found: Resolved) -> Path | None:
    return found.folder if found.origin in ("folder", "home") else None


def _evaluation_settings(manifest: Manifest, protocol: str | None) -> EvaluationConfig:
    """What the set says about its evaluation; settings of other versions are left out."""
    said = manifest.evaluation or {}
    given = {key: value for key, value in said.items() if key in EvaluationConfig.model_fields}
    if protocol is not None:
        protocol_recipe(protocol)
        whole = own_epochs(given.get("protocol", "common"))
        given["protocol"] = protocol
        # A set that asks for all epochs of its protocol gets all of another one too.
        if given.get("epochs", whole) == whole:
            given["epochs"] = own_epochs(protocol)
    try:
        return EvaluationConfig.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"] == ("protocol",):
            raise UsageError(
                f"{manifest.name} asks for the evaluation protocol {problem['input']!r}, which "
                f"this version does not have: give --protocol {' or '.join(PROTOCOLS)}"
            ) from None
        where = ".".join(str(part) for part in problem["loc"])
        raise InvalidSetError(
            f"the manifest of {manifest.name} has evaluation.{where}={problem['input']!r}: "
            f"{problem['msg']}; repair moedd.json or get the set anew"
        ) from None


def _same_classes(manifest: Manifest, real: RealData) -> None:
    if list(real.classes) != manifest.classes:
        differ = [
            f"{ours!r} is not {theirs!r}"
            for ours, theirs in zip(manifest.classes, real.classes, strict=False)
            if ours != theirs
        ]
        raise DataError(
            f"the classes of {manifest.name} and of the real data differ "
            f"({len(manifest.classes)} and {len(real.classes)}; {'; '.join(differ[:3])}): give the "
            "data that the set was made from"
        )
