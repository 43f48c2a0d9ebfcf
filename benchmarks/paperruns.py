"""Many runs of the paper's tables in one pool of processes, until a deadline.

    python -m benchmarks.paperruns RUNS.txt --data cifar10=DIR --jobs 12 --seconds 300 --records DIR

Each line of RUNS.txt holds the options of one `moedd tables` command (see docs/tables.md, without
--data, --jobs and --records; of CIFAR-10 where --on names no other); lines are run in their order,
cells that several share once. On a GPU the many processes fill the gaps that launches leave. At the
deadline everything is stopped; what is finished is kept, the rest goes on from its checkpoints when
the command is given again.

A line that begins with `choose` is one set that is scored on the validation part instead:

    choose cifar10-idc-5x2 0.0025 idc.lr_img=0.02 diversity.every=0

(name, part of the schedule, settings), evaluated by --protocol and --epochs on --networks, with
each --fuse. Its records are kept under DIR/choices. A file holds lines of one kind.
"""

import argparse
import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import typer

from moedd.experts import method_names
from moedd.options import parse_size
from moedd.papertables.asked import Asked, arithmetic
from moedd.papertables.cells import Cell, Evaluation, Facts, SetCell, cell_address
from moedd.papertables.jobs import described, run_in_processes
from moedd.papertables.places import CellPlaces, DataPlace, read_data
from moedd.papertables.plan import Planned, plan_cells
from moedd.papertables.rows import Identity, Row
from moedd.tablescommand import add_tables_command
from moedd_loaders.names import parse_name
from moedd_loaders.records import Record
from moedd_loaders.resolve import home


def asked_of(line: str, given: argparse.Namespace) -> Asked:
    """What one `moedd tables` command with these options asks for, of the data that are given."""
    app = typer.Typer()
    add_tables_command(app)
    words = typer.main.get_command(app).make_context("tables", shlex.split(line)).params
    known = {field.name: words[field.name] for field in fields(Asked)}
    side, on = parse_size(words["size"]), words["on"] or "cifar10"
    return replace(
        Asked(**known),
        on=on,
        data=tuple(text for text in given.data if text.split("=", 1)[0] in on.split(",")),
        size=(side, side) if isinstance(side, int) else side,
        settings=tuple(words["settings"] or ()),
        records=str(given.records),
        threads=given.threads,
        checkpoint_seconds=given.checkpoint_seconds,
    )


def planned_of(line: str, given: argparse.Namespace) -> tuple[list[Planned], CellPlaces]:
    """The cells of one line of a tables run, and where their data are."""
    asked = asked_of(line, given)
    options = asked.options()
    places = asked.places(options.tables)
    if missing := [place.name for place in places.data if place.path is None]:
        raise SystemExit(f"{line}: give --data {missing[0]}=DIR (given: {', '.join(given.data)})")
    return plan_cells(options, [Facts.of(read_data(place)) for place in places.data]), places


def choices_of(line: str, given: argparse.Namespace) -> tuple[list[Planned], CellPlaces]:
    """The networks of one set that is scored on the validation part, and where its data are."""
    _, text, fraction, *settings = shlex.split(line)
    name = parse_name(text, method_names())
    paths = dict(text.split("=", 1) for text in given.data)
    place = DataPlace(name.data, paths[name.data], validation=True)
    places = CellPlaces(
        home(), given.records / "choices", (place,), given.threads, given.checkpoint_seconds
    )
    form, methods, row = arithmetic(given.profile), "+".join(name.methods), tuple(settings)
    on = SetCell(methods, name.ipc, name.experts, given.seed, float(fraction), row, (), form)
    evaluation = Evaluation(given.protocol, given.epochs, 128, False, form)
    facts = Facts.of(read_data(place))
    planned = []
    for network in given.networks.split(","):
        for fuse in given.fuse.split(","):
            line_of = Identity("distilled", methods, name.ipc, name.experts, row, fuse)
            for repeat in range(given.repeats):
                cell = Cell(name.data, on, fuse, network, repeat, evaluation)
                planned.append(Planned(Row(1, "choice", line_of), cell, cell_address(cell, facts)))
    return planned, places


def stop_at(deadline: float) -> None:
    """End this process and its workers when the time is up."""

    def watch() -> None:
        time.sleep(max(0.0, deadline - time.monotonic()))
        print("time is up: the rest goes on when the command is given again", flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def run(planned: Sequence[Planned], places: CellPlaces, jobs: int) -> None:
    """All cells; each one as it is done, and at the end what failed."""
    began = time.monotonic()

    def told(item: Planned, record: Record, count: int) -> None:
        print(
            f"{time.monotonic() - began:.0f} s [{count}/{len(planned)}] {described(item)}: "
            f"{100 * record.accuracy:.1f} ({record.seconds:.0f} s)",
            flush=True,
        )

    outcome = run_in_processes(planned, places, told, jobs)
    for what, error in outcome.failed.items():
        print(f"failed: {what}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", action="append", required=True, help="NAME=DIR")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--protocol", default="idc", help="of choices")
    parser.add_argument("--epochs", type=int, default=300, help="of choices")
    parser.add_argument("--networks", default="convnet3,resnet18", help="of choices")
    parser.add_argument("--fuse", default="none,mixup", help="of choices")
    parser.add_argument("--repeats", type=int, default=2, help="of choices")
    parser.add_argument("--seed", type=int, default=0, help="of choices")
    given = parser.parse_args()
    stop_at(time.monotonic() + given.seconds)
    lines = [line for line in given.runs.read_text().splitlines() if line and line[0] != "#"]
    planned: dict[str, Planned] = {}
    data: dict[DataPlace, None] = {}
    for line in lines:
        make = choices_of if line.startswith("choose") else planned_of
        cells, places = make(line, given)
        print(f"{len(cells)} networks: {line}", flush=True)
        data |= dict.fromkeys(places.data)
        for item in cells:
            planned.setdefault(item.address, item)
    sets = {(item.cell.data, item.cell.on) for item in planned.values()}
    print(f"{len(planned)} networks on {len(sets)} training sets", flush=True)
    run(list(planned.values()), replace(places, data=tuple(data)), given.jobs)


if __name__ == "__main__":
    main()
