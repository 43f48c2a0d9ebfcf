"""The tables of a dry run: what each expert takes, and what the whole run takes, stage by stage."""

from rich.console import Console
from rich.table import Table

from moedd.dryrun.estimate import FORMATS, Estimate
from moedd.tables import counted, duration

_NOT_COVERED = "not covered: downloads of data that are here by now, and other work on this machine"


def print_estimate(estimate: Estimate) -> None:
    """Print it on standard output, as wide as it needs to be."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    console.print(experts_table(estimate))
    console.print(stages_table(estimate))
    for line in summary(estimate):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def experts_table(estimate: Estimate) -> Table:
    """One line per expert and one for all of them."""
    title = f"{estimate.name}: experts (schedule {estimate.fraction:.4g})"
    table = Table(title=title, title_justify="left")
    for column in ("id", "method"):
        table.add_column(column)
    columns = ("steps", "each", "matching", "peak memory", "checkpoint", "stored", "decoded")
    for column in (*columns, *FORMATS):
        table.add_column(column, justify="right")
    experts = estimate.experts
    for e, cost in enumerate(experts):
        table.add_row(
            str(e), cost.method, f"{cost.steps} of {cost.schedule}",
            short(cost.step_seconds) if cost.steps else "",
            took(cost.seconds), _memory(cost.peak, cost.device_peak), size(cost.checkpoint),
            str(cost.stored), str(cost.decoded), *(size(cost.formats[name]) for name in FORMATS),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "all", "", str(sum(cost.steps for cost in experts)), "",
        took(sum(cost.seconds for cost in experts)),
        _memory(max(c.peak for c in experts), max(c.device_peak for c in experts)),
        size(sum(cost.checkpoint for cost in experts)),
        str(sum(cost.stored for cost in experts)), str(sum(cost.decoded for cost in experts)),
        *(size(estimate.format_bytes(name)) for name in FORMATS),
    )  # fmt: skip
    return table


def stages_table(estimate: Estimate) -> Table:
    """One line per stage of the run, with what it covers."""
    table = Table(title="the whole run", title_justify="left")
    for column in ("stage", "how much", "covers"):
        table.add_column(column)
    for column in ("time", "peak memory", "disk"):
        table.add_column(column, justify="right")
    for stage in estimate.stages:
        disk = [size(stage.kept)] if stage.kept else []
        disk += [f"{size(stage.passing)} passing"] if stage.passing else []
        table.add_row(
            stage.title, stage.amount, stage.covers, took(stage.seconds),
            _memory(stage.peak, stage.device_peak), " + ".join(disk),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "all", "", "", took(estimate.seconds),
        _memory(estimate.peak, estimate.device_peak), size(estimate.disk),
    )  # fmt: skip
    return table


def summary(estimate: Estimate) -> list[str]:
    """The lines below the tables."""
    formats = [estimate.format_bytes(name) for name in FORMATS]
    images = sum(cost.stored for cost in estimate.experts)
    decoded = sum(cost.decoded for cost in estimate.experts)
    parts = ", ".join(f"{name} {size(n)}" for name, n in zip(FORMATS, formats, strict=True))
    return [
        f"in all: {took(estimate.seconds)}, peak memory "
        f"{_memory(estimate.peak, estimate.device_peak)}, disk {size(estimate.disk)} at most and "
        f"{size(estimate.kept)} when it has ended; on {estimate.machine}",
        f"the set: {counted(images, 'stored image')}, {decoded} decoded, "
        f"{size(sum(formats) + estimate.other_files)} ({parts}, the rest "
        f"{size(estimate.other_files)}): its images are those the run starts from, and PNG shrinks "
        "optimised ones less",
        _NOT_COVERED,
        *(f"note: {note}" for note in estimate.notes),
    ]


def took(seconds: float) -> str:
    """`4.2 s`, `45 s`, `3.4 min`, and `moedd.tables.duration` of more than ten minutes."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if 90 <= seconds < 600 else duration(seconds)


def short(seconds: float) -> str:
    """`3.1 s`, `42 ms`."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def size(count: float) -> str:
    """`512 B`, `3.1 kB`, `42 MB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _memory(host: int, device: int) -> str:
    return f"{size(host)} + {size(device)} GPU" if device else size(host)
