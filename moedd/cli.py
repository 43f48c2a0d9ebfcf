"""The `moedd` command. Heavy imports happen inside the commands, so that help answers at once."""

import json
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from moedd.hubcommands import add_hub_commands
from moedd.options import (
    ChannelsOption,
    DataOption,
    ProfileOption,
    SizeOption,
    SkipBadOption,
    parse_numbers,
    parse_size,
)
from moedd.tablescommand import add_tables_command
from moedd_loaders.errors import MoeddError, MoeddWarning

DEFAULT_SET = "digits-idm-5x2"

app = typer.Typer(
    name="moedd",
    help="Distilled data sets made by a mixture of experts: make, prove, publish and show them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def distill(
    name: Annotated[
        str, typer.Argument(help="DATA-METHOD[+METHOD...]-IPCxEXPERTS, e.g. cifar10-idc-5x2")
    ] = DEFAULT_SET,
    data: DataOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    skip_bad: SkipBadOption = False,
    note: Annotated[
        str | None, typer.Option(help="What readers must know of the data, for the manifest.")
    ] = None,
    set_name: Annotated[
        str | None, typer.Option("--name", help="Call the set this instead of NAME.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="smoke, short (default), paper or a number: part of the methods' steps."),
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="Fit the schedule to these hours of matching.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value; see --print-config.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random stream.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the set and any unfinished run.")
    ] = False,
    evaluate_after: Annotated[
        bool | None,
        typer.Option("--evaluate/--no-evaluate", help="Evaluate at the end (default: digits)."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the resolved settings and stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, show the run's cost and stop.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds between checkpoints.")
    ] = 60.0,
    validation: Annotated[
        bool,
        typer.Option("--validation", help="Keep a tenth of training out, to score choices on."),
    ] = False,
    profile: ProfileOption = None,
) -> None:
    """Distil real data into a set, written to $MOEDD_HOME/sets/NAME.

    Under torchrun the run is spread over its processes: docs/scale.md.
    """
    arguments: dict[str, Any] = {
        "name": name,
        "data": data,
        "size": parse_size(size),
        "channels": channels,
        "skip_bad": skip_bad,
        "note": note,
        "set_name": set_name,
        "schedule": schedule,
        "max_hours": max_hours,
        "overrides": overrides or [],
        "seed": seed,
        "resume": resume,
        "overwrite": overwrite,
        "evaluate_after": evaluate_after,
        "print_config": print_config,
        "checkpoint_seconds": checkpoint_seconds,
        "profile_name": profile,
        "validation": validation,
    }
    from moedd.launch import joined

    with joined():
        if dry_run:
            from moedd.dryrun.command import run_dry

            run_dry(**arguments)
        else:
            from moedd.commands import run_distill

            run_distill(**arguments)


@app.command()
def trajectories(
    data_name: Annotated[
        str, typer.Argument(metavar="DATA", help="Real data by name, e.g. cifar10.")
    ],
    count: Annotated[
        int | None, typer.Option(min=1, help="Trajectories (default: mtt's own number).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each (default: what mtt needs at ipc 10).")
    ] = None,
    data: DataOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    skip_bad: SkipBadOption = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: network, width, mtt.trajectory_lr, mtt.zca..."),
    ] = None,
    profile: ProfileOption = None,
) -> None:
    """Train networks on real data and keep their parameters, for mtt to match."""
    from moedd.launch import joined
    from moedd.maketrajectories import run_trajectories

    with joined():
        run_trajectories(
            data_name,
            count=count,
            epochs=epochs,
            data=data,
            size=parse_size(size),
            channels=channels,
            skip_bad=skip_bad,
            overrides=overrides or [],
            profile_name=profile,
        )


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="A set: its folder or name.")],
    networks: Annotated[
        str | None, typer.Option(help="Comma-separated; default: the ConvNet that fits.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Networks per row (default: the set's).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs (default: the set's).")] = None,
    fuse: Annotated[
        str | None,
        typer.Option(help="With commas: none, mixup, mixup:0.4 (of Beta), vanilla, cutmix..."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="common, idc, idm, mtt or rded (default: the set's).")
    ] = None,
    data: DataOption = None,
    random_draws: Annotated[
        int, typer.Option("--random", min=0, help="Also random real images: draws.")
    ] = 0,
    full: Annotated[bool, typer.Option("--full", help="Also all real images.")] = False,
    only_baselines: Annotated[
        bool, typer.Option("--only-baselines", help="Leave the distilled rows out.")
    ] = False,
    skip_bad: SkipBadOption = False,
    width: Annotated[
        int | None, typer.Option(min=1, help="Width of ConvNets (default: the set's).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the evaluation.")] = 0,
    profile: ProfileOption = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="Best of the protocol's test points, marked, not the last."),
    ] = False,
    validation: Annotated[
        bool,
        typer.Option("--validation", help="Score on what distill --validation kept out."),
    ] = False,
) -> None:
    """Train fresh networks on a set, test them on real data, write benchmark records."""
    from moedd.commands import run_evaluate

    run_evaluate(
        name,
        networks=networks.split(",") if networks else None,
        repeats=repeats,
        epochs=epochs,
        fuse=fuse.split(",") if fuse else None,
        protocol=protocol,
        data=data,
        random_draws=random_draws,
        full=full,
        only_baselines=only_baselines,
        skip_bad=skip_bad,
        width=width,
        seed=seed,
        profile_name=profile,
        best=best,
        validation=validation,
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A set: its folder or name.")],
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False,
) -> None:
    """Print what a set is: experts, budget, decode rules, diversity, records, origin."""
    from moedd.show import show_set

    show_set(name, as_json=as_json)


@app.command("import")
def import_(
    path: Annotated[
        str,
        typer.Argument(help="A file or folder that others released, or NAMESPACE/NAME on the Hub."),
    ],
    method: Annotated[
        str | None, typer.Option(help="What made it: dm, idm, mtt, rded...; or unknown.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="Pixels: unit, normalized[:NAME of constants] or zca[:FILE or DATA]."),
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Of normalized: 0.49,0.48,0.45.")] = None,
    std: Annotated[str | None, typer.Option(help="Of normalized: 0.20,0.20,0.20.")] = None,
    decode: Annotated[
        str | None, typer.Option(help="none, 2x2-row-major, 2x2-column-major, 3x3-row-major...")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names in label order: a file (one a line) or A,B,C.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Real data by name: cifar10 gives class names.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="File of labels, or by-class (equal numbers, in order).")
    ] = None,
    soft_labels: Annotated[
        str | None, typer.Option(help="Float labels are probabilities, logits, or count by argmax.")
    ] = None,
    step_size: Annotated[
        float | None, typer.Option(help="Learned step size, where no file holds it.")
    ] = None,
    experiment: Annotated[
        int | None, typer.Option(help="Which set of a file that holds several: 0, 1, ...")
    ] = None,
    set_name: Annotated[str | None, typer.Option("--name", help="Name of the set.")] = None,
    note: Annotated[str | None, typer.Option(help="A sentence for the manifest.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was found, as JSON.")] = False,
) -> None:
    """Turn what others released into a set; asks for what the files do not say."""
    from moedd.importers import Answers, Choice, Request
    from moedd.setcommands import run_import

    said = Answers(
        method=method,
        space=space,
        mean=parse_numbers("--mean", mean),
        std=parse_numbers("--std", std),
        decode=decode,
        classes=classes,
        data=data,
        soft_labels=soft_labels,
        step_size=step_size,
    )
    request = Request(path, said, Choice(experiment, labels), set_name, note)
    run_import(request, overwrite=overwrite, as_json=as_json)


@app.command()
def merge(
    names: Annotated[list[str], typer.Argument(metavar="SET...", help="Two or more sets.")],
    set_name: Annotated[
        str | None, typer.Option("--name", help="Name of the new set (default: made of theirs).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The new set, as JSON.")] = False,
) -> None:
    """Join sets into one with all their experts."""
    from moedd.setcommands import run_merge

    run_merge(names, name=set_name, overwrite=overwrite, as_json=as_json)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A set: its folder or name.")],
    to: Annotated[str, typer.Option("--to", help="ddranking, mtt, dc, imagefolder or webdataset.")],
    out: Annotated[
        str | None, typer.Option("--out", help="New folder (default: NAME-LAYOUT here).")
    ] = None,
    decoded: Annotated[
        bool, typer.Option("--decoded", help="Training images instead of stored tiles.")
    ] = False,
    space: Annotated[
        str | None, typer.Option(help="Pixels of tensor layouts: unit, normalized or trained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as JSON.")] = False,
) -> None:
    """Write a set in the layout of another project."""
    from moedd.setcommands import run_export

    run_export(name, to=to, out=out, decoded=decoded, space=space, as_json=as_json)


@app.command()
def validate(
    name: Annotated[str, typer.Argument(help="A set: its folder or name.")],
    as_json: Annotated[bool, typer.Option("--json", help="The verdict as JSON.")] = False,
) -> None:
    """Check a set: schema, checksums, counts, and that its three containers agree."""
    from moedd.setcommands import run_validate

    run_validate(name, as_json=as_json)


@app.command()
def experts(
    method: Annotated[
        str | None, typer.Argument(help="Show this method's settings and defaults.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
) -> None:
    """List the methods that can stand in a set's name."""
    from moedd.show import describe_experts, show_experts

    if as_json:
        typer.echo(json.dumps(describe_experts(method), indent=1))
    else:
        show_experts(method)


add_hub_commands(app)
add_tables_command(app)


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and its exit code."""
    show = warnings.showwarning

    def shown(message, category, *where):  # type: ignore[no-untyped-def]
        # Our own warnings are one line; those of libraries stay as they are.
        if category is MoeddWarning:
            print(f"moedd: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *where)

    warnings.showwarning = shown
    try:
        app()
    except MoeddError as error:
        print(f"moedd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    finally:
        warnings.showwarning = show
