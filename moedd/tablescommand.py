"""The command `moedd tables`: its arguments. What it does is in `papertables`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from moedd.options import parse_size


class _Tables(TyperCommand):
    """A command whose option `--ray` may stand without a value, which Typer has no word for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_ray_value(args))


def with_ray_value(args: list[str]) -> list[str]:
    """The arguments, with `auto` after a `--ray` that no value follows."""
    given: list[str] = []
    for number, word in enumerate(args):
        given.append(word)
        after = args[number + 1 : number + 2]
        if word == "--ray" and (not after or after[0].startswith("-")):
            given.append("auto")
    return given


def add_tables_command(app: typer.Typer) -> None:
    """Register the command."""
    app.command("tables", cls=_Tables)(tables)


def tables(
    table: Annotated[
        str | None, typer.Option("--table", help="1, 2, 3, 4; several with commas (default: all).")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Real data: DIR, or NAME=DIR, once for each data set."),
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Data sets (default: the paper's; one --data DIR: CIFAR-10).")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="Resize images: 64, or 48x64.")] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", help="Convert images to 1 or 3 channels.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Images per class, e.g. 10,20 (default: the paper's).")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Methods: idc, idm, mtt, rded, or one form: idc_i, idm_plain")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="paper, fair, strong, diversity, full (default: all but full)."),
    ] = None,
    networks: Annotated[
        str | None, typer.Option(help="Default: convnet3,vgg11,resnet18,alexnet.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Sets of each line: distillation seeds.")] = 3,
    repeats: Annotated[
        str, typer.Option(help="Networks of each set: 3, or 3,resnet18=2,convnet3=5.")
    ] = "3",
    draws: Annotated[int, typer.Option(min=1, help="Draws of random real images.")] = 3,
    schedule: Annotated[
        str, typer.Option(help="Part of the methods' steps: short, 0.01, or 0.02,idc=0.002.")
    ] = "short",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of all sets, as in moedd distill.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Training recipe: common, idc, idm, mtt or rded.")
    ] = "common",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs (default: the recipe's own).")
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Width of evaluated ConvNets.")] = 128,
    best: Annotated[
        bool,
        typer.Option("--best", help="Best of the protocol's test points, marked, not the last."),
    ] = False,
    validation: Annotated[
        bool,
        typer.Option("--validation", help="Score on a tenth of training, held out for choices."),
    ] = False,
    profile: Annotated[str | None, typer.Option(help="auto (default), float32 or fast.")] = None,
    evaluation_profile: Annotated[
        str | None, typer.Option(help="Of the evaluated networks (default: the same).")
    ] = None,
    records: Annotated[
        str | None,
        typer.Option(help="Folder of records (default: $MOEDD_HOME/records/tables)."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Cells at the same time (default: 1; with --ray: all that fit)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each cell (default: cores / jobs).")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run cells as tasks of the Ray at HOST:PORT; alone: of one that is there, else "
            "of one started here.",
        ),
    ] = None,
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(min=0.0, help="With --ray: 0.5, 1... (default: 1 where the cluster has any)."),
    ] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds between checkpoints.")
    ] = 60.0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show cells, cost and time; run nothing.")
    ] = False,
    hours: Annotated[
        float | None, typer.Option(help="With --plan: the schedule at which a set takes so long.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write tables and figures of all records into this page; run nothing."),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="With --report: also show the headline figure in this README."),
    ] = None,
    note: Annotated[
        str, typer.Option(help="With --report: what was done to the data, for page and README.")
    ] = "",
) -> None:
    """Run the cells of the mixture paper's tables; what is done is never done again."""
    from moedd.papertables.asked import Asked
    from moedd.papertables.command import run_plan, run_report, run_tables
    from moedd_loaders.errors import UsageError

    sides = parse_size(size)
    asked = Asked(
        table=table,
        on=on,
        data=tuple(data or ()),
        size=(sides, sides) if isinstance(sides, int) else sides,
        channels=channels,
        budget=budget,
        only=only,
        rows=rows,
        networks=networks,
        seeds=seeds,
        repeats=repeats,
        draws=draws,
        schedule=schedule,
        settings=tuple(settings or ()),
        protocol=protocol,
        epochs=epochs,
        width=width,
        best=best,
        validation=validation,
        profile=profile,
        evaluation_profile=evaluation_profile,
        records=records,
        jobs=jobs,
        threads=threads,
        checkpoint_seconds=checkpoint_seconds,
        ray=ray,
        gpus_per_cell=gpus_per_cell,
    )
    if report is not None and plan:
        raise UsageError("--plan and --report are both given: give one of them")
    if hours is not None and not plan:
        raise UsageError("--hours is given without --plan: it only suggests a schedule")
    if readme is not None and report is None:
        raise UsageError("--readme is given without --report: it shows a figure of the report")
    if note and report is None:
        raise UsageError("--note is given without --report: it is a sentence for the report")
    if gpus_per_cell is not None and ray is None:
        raise UsageError("--gpus-per-cell is given without --ray: it is what Ray gives each cell")
    if report is not None:
        run_report(asked, report, readme, note.rstrip("."))
    elif plan:
        run_plan(asked, hours)
    else:
        run_tables(asked)
