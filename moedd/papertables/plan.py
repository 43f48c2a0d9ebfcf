"""From what is asked for to cells, in the order in which they are run.

One distillation seed after the other, so that a run that is cut short has all lines with fewer
seeds instead of a few lines with all; within a seed the paper's rows first, then those that a fair
reading needs. A cell that stands in several tables is run once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from moedd.networks import check_size, fitting_network
from moedd.papertables.cells import (
    Arithmetic,
    Cell,
    Evaluation,
    Facts,
    FullCell,
    RandomCell,
    SetCell,
    cell_address,
    set_config,
)
from moedd.papertables.cost import equal_fraction
from moedd.papertables.paper import NETWORKS
from moedd.papertables.rows import BUDGETS, DEFAULT_GROUPS, GROUPS, Row, table_rows
from moedd_loaders.errors import UsageError, unknown

FAMILIES = ("idc", "idm", "mtt", "rded")
FORMS = ("idc_i", "idm_plain")
FLOAT32 = Arithmetic("float32", "float32")


@dataclass(frozen=True)
class Options:
    """What was asked for.

    `budgets`: images per class; None: the paper's. `only`: the paper's methods (`idc`: both forms)
    or one form (`idc_i`); empty: all. `repeats`: networks per set, by network where it differs.
    `schedules`: fraction by family, under "" for the others. `settings`: overrides of all sets.
    """

    tables: tuple[int, ...]
    budgets: tuple[int, ...] | None = None
    only: tuple[str, ...] = ()
    groups: tuple[str, ...] = DEFAULT_GROUPS
    networks: tuple[str, ...] | None = None
    seeds: int = 3
    repeats: int = 3
    repeats_of: Mapping[str, int] = field(default_factory=dict)
    draws: int = 3
    schedules: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})
    settings: tuple[str, ...] = ()
    protocol: str = "common"
    epochs: int = 1000
    width: int = 128
    best: bool = False
    distilling: Arithmetic = FLOAT32
    evaluating: Arithmetic = FLOAT32

    def check(self) -> None:
        """Raise UsageError for what no table has."""
        for name in self.only:
            if name not in (*FAMILIES, *FORMS):
                raise unknown("method", name, (*FAMILIES, *FORMS))
        for group in self.groups:
            if group not in GROUPS:
                raise unknown("group of rows", group, GROUPS)
        for budget in self.budgets or ():
            if budget < 2 or budget % 2:
                raise UsageError(
                    f"a budget of {budget} images per class is given, and two experts share it: "
                    "give an even number, such as 10"
                )
        for family in self.schedules:
            if family not in ("", *FAMILIES):
                raise unknown("method of a schedule", family, FAMILIES)


@dataclass(frozen=True)
class Planned:
    """A cell, the row it is planned for, and its address."""

    row: Row
    cell: Cell
    address: str


def plan_cells(options: Options, facts: Sequence[Facts]) -> list[Planned]:
    """All cells on all data sets, each once, in their order.

    Raises UsageError: a network that does not fit the images, a setting that fits no method.
    """
    options.check()
    planned: dict[str, Planned] = {}
    for data in facts:
        networks = _networks(options, data)
        rows = _rows(options)
        _check_settings(options, rows, data)
        for seed in range(max(options.seeds, options.draws)):
            for group in options.groups:
                for row in rows:
                    if row.group == group:
                        for cell in _cells(row, seed, networks, options, data):
                            address = cell_address(cell, data)
                            planned.setdefault(address, Planned(row, cell, address))
    return list(planned.values())


def _networks(options: Options, data: Facts) -> tuple[str, ...]:
    networks = options.networks or NETWORKS
    for network in networks:
        check_size(network, data.shape[1:], data.shape[0])
    return networks


def _rows(options: Options) -> list[Row]:
    rows = []
    for table in options.tables:
        for budget in options.budgets or BUDGETS[table]:
            rows += [row for row in table_rows(table, budget) if _wanted(row, options)]
    return rows


def _wanted(row: Row, options: Options) -> bool:
    if row.group not in options.groups:
        return False
    if not options.only or not row.methods:
        return True
    # A hybrid needs all of its methods, so that `--only rded` does not train IDM's.
    return all(
        method in options.only or family in options.only
        for method, family in zip(row.methods, map(family_of, row.methods), strict=True)
    )


def family_of(method: str) -> str:
    """A method as the paper names it: `idc` of `idc_i`."""
    return {"idc_i": "idc", "idm_plain": "idm"}.get(method, method)


def _check_settings(options: Options, rows: Sequence[Row], data: Facts) -> None:
    """Every override must reach a set, and every set must resolve, before anything is run."""
    for text in options.settings:
        head, dot, _ = text.partition("=")[0].partition(".")
        methods = {method for row in rows for method in row.methods}
        if dot and head not in (*methods, "pool", "diversity", "evaluation", "rded"):
            raise UsageError(
                f"--set {text} reaches none of the sets of this plan (their methods are "
                f"{', '.join(sorted(methods)) or 'none'}): leave it out, or widen --only and --rows"
            )
    for row in rows:
        if row.methods:
            set_config(_set_cell(row, 0, options, data), data)


def _cells(
    row: Row, seed: int, networks: Sequence[str], options: Options, data: Facts
) -> Iterator[Cell]:
    on: SetCell | RandomCell | FullCell
    identity, limit = row.identity, options.seeds
    if identity.variant == "random":
        on, limit = RandomCell(identity.budget, identity.factor, seed), options.draws
    elif identity.variant == "full":
        on, limit = FullCell(), 1
    else:
        on = _set_cell(row, seed, options, data)
    if seed >= limit:
        return
    evaluation = Evaluation(
        options.protocol, options.epochs, options.width, options.best, options.evaluating,
        tuple(text for text in options.settings if text.startswith("rded.observer"))
        if options.protocol == "rded" else (),
    )  # fmt: skip
    fuse = identity.fuse
    if isinstance(on, SetCell) and on.experts > 1 and identity.experts == 1:
        fuse = "mixup"  # the pair's other side, cut down: see `_set_cell`
    for network in _of_row(row, networks, data):
        repeats = options.repeats_of.get(network, options.repeats)
        # Random draws take the place of repeats: one network each.
        for repeat in range(1 if isinstance(on, RandomCell) else repeats):
            yield Cell(data.data, on, fuse, network, repeat, evaluation)


def _of_row(row: Row, networks: Sequence[str], data: Facts) -> Sequence[str]:
    if not row.convnet:
        return networks
    chosen = [network for network in networks if network.startswith("convnet")]
    return chosen or [fitting_network(data.shape[1:], data.shape[0])]


def _set_cell(row: Row, seed: int, options: Options, data: Facts) -> SetCell:
    """The set of a row at the schedule asked for, or at the operations of another one.

    Where those would take more than the whole schedule, the other one is cut down instead.
    """
    identity = row.identity
    fraction = _fraction(identity.methods, options)
    cell = SetCell(
        identity.methods, identity.ipc, identity.experts, seed, fraction, identity.overrides,
        options.settings, options.distilling,
    )  # fmt: skip
    if not any(expert.steps for expert in set_config(cell, data).experts):
        # Made at once: no schedule makes another set of it.
        return replace(cell, fraction=1.0)
    if row.cost_of is None:
        return cell
    other = replace(cell, ipc=row.cost_of[0], experts=row.cost_of[1])
    fraction = equal_fraction(cell, other, data)
    if fraction <= 1:
        return replace(cell, fraction=fraction)
    return replace(other, fraction=equal_fraction(other, cell, data))


def _fraction(methods: str, options: Options) -> float:
    """Of the first of the methods that has a schedule of its own, else the general one."""
    for method in methods.split("+"):
        if family_of(method) in options.schedules:
            return options.schedules[family_of(method)]
    return options.schedules[""]
