"""`moedd tables`: plan, run or report."""

from dataclasses import dataclass
from pathlib import Path

import torch

from moedd.papertables.asked import Asked
from moedd.papertables.cells import Facts
from moedd.papertables.cost import is_prepared
from moedd.papertables.estimate import PlanCost, fitting_schedule, plan_cost
from moedd.papertables.headline import write_headline
from moedd.papertables.jobs import (
    Outcome,
    Run,
    SetUnit,
    described,
    run_on_this_machine,
    set_of,
)
from moedd.papertables.onray import on_ray
from moedd.papertables.page import write_report
from moedd.papertables.places import CellPlaces, DataPlace, known_facts, read_data
from moedd.papertables.plan import Options, Planned, plan_cells
from moedd.papertables.rates import Machine, Rates
from moedd.papertables.run import set_folder
from moedd.papertables.shown import duration, print_plan, print_results
from moedd.papertables.store import read_cells
from moedd.profile import choose_profile
from moedd.progress import Reporter
from moedd.tables import counted
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import MANIFEST
from moedd_loaders.records import Record


def run_report(asked: Asked, page: Path, readme: Path | None = None, note: str = "") -> None:
    """`moedd tables --report PAGE`: write the page, and the figure of the README, from all records;
    nothing is run."""
    folder = asked.records_folder()
    records = list(read_cells(folder).values())
    written = write_report(page, records, asked.records or str(folder), note)
    if readme is not None:
        written += write_headline(readme, page, records, note)
    for path in written:
        print(path)


def run_plan(asked: Asked, hours: float | None = None) -> None:
    """`moedd tables --plan`: cells, what they cost and how long they take; nothing is run.

    `hours`: also the schedule at which a set takes so long.
    """
    if hours is not None and not hours > 0:
        raise UsageError(f"--hours {hours} given; expected hours above 0, for example 0.5")
    work = _Work.of(asked, reading=False)
    print_plan(work.cost(), asked.at_once, work.machine_text)
    for note in work.notes:
        print(f"note: {note}")
    if hours is not None:
        schedule = fitting_schedule(work.planned, work.facts, work.rates, hours)
        print(f"sets of about {duration(hours * 3600)} each: --schedule {schedule}")


def run_tables(asked: Asked) -> None:
    """`moedd tables`: run what is not done, show the tables."""
    reporter = Reporter()
    if asked.ray is None:
        work, outcome = _run(asked, run_on_this_machine(asked.at_once), reporter)
    else:
        with on_ray(asked, reporter) as (settled, run):
            work, outcome = _run(settled, run, reporter)
    addresses = {item.address for item in work.planned}
    known = {**work.done, **{record.config["cell"]: record for record in outcome.records}}
    shown = [record for address, record in known.items() if address in addresses]
    print_results(shown, work.options.tables)
    _raise_failures(outcome, reporter)


def _run(asked: Asked, run: Run, reporter: Reporter) -> "tuple[_Work, Outcome]":
    """Plan, say what is to do, and do it."""
    work = _Work.of(asked, reading=True)
    left = [item for item in work.planned if item.address not in work.done]
    for note in work.notes:
        reporter.say(f"note: {note}")
    done = len(work.planned) - len(left)
    reporter.say(
        f"{counted(len(work.planned), 'network')}, {done} done; about "
        f"{duration(work.cost().seconds / asked.at_once)} left with "
        f"{counted(asked.at_once, 'job')} of {counted(work.rates.machine.threads, 'thread')}; "
        f"records go to {work.places.records}"
    )

    def told(item: Planned, record: Record, count: int) -> None:
        reporter.say(
            f"[{count}/{len(left)}] {described(item)}: {100 * record.accuracy:.1f} % "
            f"({duration(record.seconds)})"
        )

    return work, run(left, work.places, told, reporter)


def _raise_failures(outcome: Outcome, reporter: Reporter) -> None:
    """Name everything that failed; the first one decides the exit code."""
    if not outcome.failed:
        return
    for what, error in outcome.failed.items():
        reporter.say(f"failed: {what}: {error}")
    what, first = next(iter(outcome.failed.items()))
    count = len(outcome.failed)
    raise type(first)(
        f"{count} of the tables' sets and networks could not be made (the first: {what}: {first}); "
        "the others are done, and running the command again tries these anew"
    )


@dataclass(frozen=True)
class _Work:
    """A plan with everything that is known about it."""

    options: Options
    places: CellPlaces
    facts: dict[str, Facts]
    planned: list[Planned]
    done: dict[str, Record]
    rates: Rates
    unread: tuple[str, ...]
    notes: list[str]

    @classmethod
    def of(cls, asked: Asked, reading: bool) -> "_Work":
        """Plan; with `reading` False, data that would have to be fetched stay unread."""
        options = asked.options()
        places = asked.places(options.tables)
        unread = tuple(p.name for p in places.data if not reading and not _is_here(p))
        facts = {
            place.name: known_facts(place) if place.name in unread else Facts.of(read_data(place))
            for place in places.data
        }
        planned = plan_cells(options, list(facts.values()))
        done = read_cells(places.records)
        profile = choose_profile(options.distilling.profile)
        threads = places.threads or torch.get_num_threads()
        machine = Machine(profile.processor, threads, profile.device)
        rates = Rates.of(done.values(), machine)
        notes = [f"{d} has not been read: its cells that are done count as to do" for d in unread]
        for name in asked.left_out(options.tables):
            notes.append(f"the paper's {name} is left out: add --data {name}=DIR, or --on")
        return cls(options, places, facts, planned, done, rates, unread, notes)

    @property
    def machine_text(self) -> str:
        machine = self.rates.machine
        return f"{counted(machine.threads, 'thread')} of {machine.hardware}"

    def cost(self) -> PlanCost:
        """What is left to do."""
        cost = plan_cost(self.planned, self.facts, self.done, self._made(), self.rates)
        precision = self.options.distilling.precision
        there = [
            work
            for work in cost.shared
            if work.data not in self.unread
            and is_prepared(work, read_data(self.places.of(work.data)), self.places.home, precision)
        ]
        for work in there:
            del cost.shared[work]
        return cost

    def _made(self) -> set[SetUnit]:
        units = {unit for item in self.planned if (unit := set_of(item.cell)) is not None}
        folders = {(data, on): set_folder(on, self.facts[data], self.places) for data, on in units}
        return {unit for unit, folder in folders.items() if (folder / MANIFEST).is_file()}


def _is_here(place: DataPlace) -> bool:
    """The data can be read without fetching anything."""
    return (
        place.path is not None and Path(place.path).expanduser().exists()
    ) or place.name == "digits"
