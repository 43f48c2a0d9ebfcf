"""What the terminal shows: the plan with its cost, and the tables when cells are done."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from moedd.papertables.estimate import Estimate, PlanCost
from moedd.papertables.lines import sections
from moedd.papertables.markdown import SUBJECTS, accuracy_text, shown_lines, title_of
from moedd.papertables.rows import TABLES
from moedd.tables import duration
from moedd_loaders.records import Record


def print_plan(cost: PlanCost, jobs: int, machine: str) -> None:
    """The plan on standard output."""
    console = _console()
    _print_estimates(console, "Sets to make", "set", cost.sets)
    lines = {f"{line}, {title_of(network)}": e for (line, network), e in cost.networks.items()}
    _print_estimates(console, "Networks to train", "line", lines)
    for work, seconds in cost.shared.items():
        console.print(f"made once and shared: {work.title}, {duration(seconds)}")
    total = f"{duration(cost.seconds)} on {machine}, one after another"
    if jobs > 1:
        total += f"; about {duration(cost.seconds / jobs)} with {jobs} jobs at these rates"
    console.print(f"in all: {total}")
    if cost.assumed:
        console.print(
            f"rates of {', '.join(cost.assumed)} are assumed (docs/performance.md); they are "
            "measured as cells are done"
        )


def _print_estimates(
    console: Console, title: str, column: str, parts: Mapping[str, Estimate]
) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column(column)
    for name in ("to do", "of", "TFLOP", "each", "together"):
        table.add_column(name, justify="right")
    for name, part in parts.items():
        each = duration(part.seconds / part.left) if part.left else ""
        table.add_row(
            name, str(part.left), str(part.of), f"{part.operations / 1e12:,.0f}", each,
            duration(part.seconds),
        )  # fmt: skip
    console.print(table)


def print_results(records: Sequence[Record], tables: Sequence[int] = TABLES) -> None:
    """These tables of the records on standard output."""
    console = _console()
    for section in sections(records):
        setting = section.setting
        for table in tables:
            lines = shown_lines(section, table)
            if not lines:
                continue
            heading = f"{SUBJECTS[table]} ({setting.data}, {setting.protocol})"
            shown = Table(title=heading, title_justify="left")
            shown.add_column("")
            shown.add_column("schedule", justify="right")
            for network in section.networks:
                shown.add_column(title_of(network), justify="right")
            for title, line, _ in lines:
                fraction = f"{line.key.fraction:.4g}" if line.operations else ""
                cells = [accuracy_text(line, n).replace("**", "") for n in section.networks]
                shown.add_row(title, fraction, *cells)
            console.print(shown)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=240)
