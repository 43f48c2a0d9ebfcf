"""The `moedd` command. Heavy imports happen inside the commands, so that help answers at once."""

import json
import os
import sys
import warnings
from typing import Annotated

import typer

from moedd.hubcommands import add_hub_commands
from moedd_loaders.errors import MoeddError, MoeddWarning, UsageError

DEFAULT_SET = "digits-idm-5x2"

app = typer.Typer(
    name="moedd",
    help="Distilled data sets made by a mixture of experts: make, prove, publish and show them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Real data: a folder (Parquet, images, tars) or a Hub id."),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Resize images: 64, or 48x64 (height x width).")
]
ChannelsOption = Annotated[
    int | None, typer.Option("--channels", help="Convert images to 1 or 3 channels.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option(help="How the arithmetic runs: auto (default), float32 or fast (bfloat16)."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable images out instead of stopping.")
]


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
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds between checkpoints.")
    ] = 60.0,
    profile: ProfileOption = None,
) -> None:
    """Distil real data into a set, written to $MOEDD_HOME/sets/NAME."""
    from moedd.commands import run_distill

    run_distill(
        name,
        data=data,
        size=parse_size(size),
        channels=channels,
        skip_bad=skip_bad,
        note=note,
        set_name=set_name,
        schedule=schedule,
        max_hours=max_hours,
        overrides=overrides or [],
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        evaluate_after=evaluate_after,
        print_config=print_config,
        checkpoint_seconds=checkpoint_seconds,
        profile_name=profile,
    )


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
    from moedd.maketrajectories import run_trajectories

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
        str | None, typer.Option(help="Comma-separated: none, mixup, vanilla, same, cutmix...")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="common, idc or mtt (default: the set's).")
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
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A set: its folder or name.")],
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False,
) -> None:
    """Print what a set is: experts, budget, decode rules, diversity, records, origin."""
    from moedd.show import show_set

    show_set(name, as_json=as_json)


@app.command()
def validate(
    name: Annotated[str, typer.Argument(help="A set: its folder or name.")],
) -> None:
    """Check a set: schema, checksums, counts, and that its three containers agree."""
    from moedd_loaders.resolve import resolve
    from moedd_loaders.validate import validate_set

    found = resolve(name)
    manifest = validate_set(found.whole())
    typer.echo(f"{manifest.name} is valid ({found}): content {manifest.content_sha256[:12]}")


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


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """`64` or `48x64` (height x width); anything else is a UsageError."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 2:
        raise UsageError(f"--size {text!r} given; expected a side (64) or HEIGHTxWIDTH (48x64)")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


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
