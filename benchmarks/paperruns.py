"""Many runs of the paper's tables in one pool of processes, until a deadline.

    python -m benchmarks.paperruns RUNS.txt --data cifar10=DIR --jobs 12 --seconds 300 --records DIR

Each line of RUNS.txt holds the options of one `moedd tables` command (see docs/tables.md, without
--data, --jobs and --records); lines are run in their order, cells that several share once. On a GPU
the many processes fill the gaps that launches leave. At the deadline everything is stopped; what is
finished is kept, the rest goes on from its checkpoints when the command is given again.

A line that begins with `choose` is one set that is scored on the validation part instead:

    choose cifar10-idc-5x2 0.0025 idc.lr_img=0.02 diversity.every=0

(name, part of the schedule, settings), evaluated by --protocol and --epochs on --networks, with
each --fuse. Its records are kept under DIR/choices.
"""

import argparse
import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moedd.experts import method_names
from moedd.papertables.asked import Asked, arithmetic
from moedd.papertables.cells import Cell, Evaluation, Facts, SetCell, cell_address
from moedd.papertables.jobs import described, run_in_processes
from moedd.papertables.places import CellPlaces, DataPlace, read_data
from moedd.papertables.plan import Planned, plan_cells
from moedd.papertables.rows import Identity, Row
from moedd_loaders.names import parse_name
from moedd_loaders.records import Record
from moedd_loaders.resolve import home

_FLAGS = {"--best": True}
_NAMES = {"--set": "settings", "--evaluation-profile": "evaluation_profile"}
_NUMBERS = ("seeds", "draws", "epochs", "width")


def asked_of(line: str) -> Asked:
    """The options of one `moedd tables` command."""
    words = shlex.split(line)
    found: dict[str, Any] = {}
    settings: list[str] = []
    while words:
        option = words.pop(0)
        name = _NAMES.get(option, option.removeprefix("--"))
        if option in _FLAGS:
            found[name] = True
        elif name == "settings":
            settings.append(words.pop(0))
        elif name == "size":
            side = int(words.pop(0))
            found[name] = (side, side)
        else:
            value = words.pop(0)
            found[name] = int(value) if name in _NUMBERS else value
    return Asked(**found, settings=tuple(settings))


def planned_of(line: str, places: CellPlaces) -> list[Planned]:
    """The cells of one line of a tables run."""
    options = (asked := asked_of(line)).options()
    names = asked.on.split(",") if asked.on else ["cifar10"]
    there = [place.name for place in places.data]
    if missing := [name for name in names if name not in there]:
        raise SystemExit(f"{line}: give --data {missing[0]}=DIR (given: {', '.join(there)})")
    return plan_cells(options, [Facts.of(read_data(places.of(name))) for name in names])


def choices_of(line: str, given: argparse.Namespace, places: CellPlaces) -> list[Planned]:
    """The networks of one set that is scored on the validation part."""
    _, text, fraction, *settings = shlex.split(line)
    name = parse_name(text, method_names())
    form = arithmetic(given.profile)
    methods = "+".join(dict.fromkeys(name.methods)) if len(set(name.methods)) == 1 else None
    assert methods, "one method, however many experts"
    on = SetCell(
        methods, name.ipc, name.experts, given.seed, float(fraction), tuple(settings), (), form
    )
    facts = Facts.of(read_data(places.of(name.data)))
    evaluation = Evaluation(given.protocol, given.epochs, 128, False, form)
    planned = []
    for network in given.networks.split(","):
        for fuse in given.fuse.split(","):
            row = Row(
                1, "choice",
                Identity("distilled", methods, name.ipc, name.experts, tuple(settings), fuse),
            )  # fmt: skip
            for repeat in range(given.repeats):
                cell = Cell(name.data, on, fuse, network, repeat, evaluation)
                planned.append(Planned(row, cell, cell_address(cell, facts)))
    return planned


def stop_at(deadline: float) -> None:
    """End this process and its workers when the time is up."""

    def watch() -> None:
        time.sleep(max(0.0, deadline - time.monotonic()))
        print("time is up: the rest goes on when the command is given again", flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def places_of(given: argparse.Namespace, records: Path, validation: bool) -> CellPlaces:
    """Where cells find and leave things; ImageNet's subsets at 64x64."""
    data = []
    for text in given.data:
        name, path = text.split("=", 1)
        size = (64, 64) if name.startswith("image") else None
        data.append(DataPlace(name, path, size, None, validation))
    return CellPlaces(home(), records, tuple(data), given.threads, given.checkpoint_seconds)


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
    choosing = lines[0].startswith("choose")
    records = given.records / "choices" if choosing else given.records
    places = places_of(given, records, choosing)
    planned: dict[str, Planned] = {}
    for line in lines:
        cells = choices_of(line, given, places) if choosing else planned_of(line, places)
        print(f"{len(cells)} networks: {line}", flush=True)
        for item in cells:
            planned.setdefault(item.address, item)
    sets = {(item.cell.data, item.cell.on) for item in planned.values()}
    print(f"{len(planned)} networks on {len(sets)} training sets", flush=True)
    run(list(planned.values()), places, given.jobs)


if __name__ == "__main__":
    main()
