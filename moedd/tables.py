"""Tables of records, and the lines at the end of a run."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from moedd_loaders.manifest import PREVIEW
from moedd_loaders.records import Record

USAGE = """from moedd import load_distilled
ds = load_distilled("{name}"{fuse})
images, labels = next(iter(ds.batches(64)))"""


def counted(n: int, what: str) -> str:
    """`1 record`, `2 records`."""
    return f"{n} {what}{'s' * (n != 1)}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `12 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"


def grouped(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Records by what is comparable: network and width, protocol, variant, fuse, real data."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        width = str(record.config.get("width", ""))
        own = record.network if width in ("", "128") else f"{record.network}, width {width}"
        network = own if record.network.startswith("convnet") else record.network
        key = (network, record.protocol, record.variant, record.fuse, record.data_fingerprint)
        groups.setdefault(key, []).append(record)
    return groups


def records_table(records: Sequence[Record], title: str) -> Table:
    """Mean and standard deviation (over networks, n - 1) per row."""
    table = Table(title=title, title_justify="left")
    for column in ("training data", "fuse", "network", "protocol"):
        table.add_column(column)
    for column in ("images", "accuracy %", "n"):
        table.add_column(column, justify="right")
    names = {"random": "random real images", "full": "all real images"}
    for (network, protocol, variant, fuse, _), group in grouped(records).items():
        values = [100 * record.accuracy for record in group]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        # At chance: within two standard deviations of a guess, or no better.
        chance = 100 * group[0].chance
        near = mean(values) <= chance + 2 * (stdev(values) if len(values) > 1 else 0.0)
        table.add_row(
            names.get(variant, variant),
            fuse,
            network,
            protocol,
            str(group[0].n_train),
            f"{mean(values):.1f}{spread}{' (at chance)' if near else ''}",
            str(len(values)),
        )
    return table


def print_table(records: Sequence[Record], title: str) -> None:
    """Print the table on standard output, as wide as it needs to be."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(records_table(records, title))


def usage_lines(name: str, experts: int) -> str:
    """Three lines that load a set."""
    return USAGE.format(name=name, fuse=', fuse="mixup"' if experts > 1 else "")


def print_usage(folder: Path, name: str, experts: int) -> None:
    """Where the set lies, its picture, and how to load it."""
    print(f"set:     {folder}")
    print(f"preview: {folder / PREVIEW}")
    print("load it:")
    print(usage_lines(name, experts))
