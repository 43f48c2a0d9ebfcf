"""What a plan costs: how much of each kind of work is left, and how long it takes here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moedd.papertables.cells import Cell, Facts, SetCell
from moedd.papertables.cost import (
    Preparation,
    network_operations,
    preparations,
    set_cost,
)
from moedd.papertables.plan import Planned, family_of
from moedd.papertables.rates import Rates, matching
from moedd_loaders.records import Record


@dataclass(frozen=True)
class Estimate:
    """What is left to do of one kind of work: units, operations, seconds of one job."""

    left: int
    of: int
    operations: float
    seconds: float


@dataclass(frozen=True)
class PlanCost:
    """A plan's cost: by line and network, by set, and of what is made once."""

    networks: dict[tuple[str, str], Estimate]
    sets: dict[str, Estimate]
    shared: dict[Preparation, float]
    assumed: list[str]

    @property
    def seconds(self) -> float:
        """Of everything that is left, one job after another."""
        parts = [*self.networks.values(), *self.sets.values()]
        return sum(part.seconds for part in parts) + sum(self.shared.values())


def plan_cost(
    planned: Sequence[Planned],
    facts: Mapping[str, Facts],
    done: Mapping[str, Record],
    made: set[tuple[str, SetCell]],
    rates: Rates,
) -> PlanCost:
    """Estimates for what is left of a plan. `made`: sets that are there already, with
    the names of their data."""
    networks: dict[tuple[str, str], Estimate] = {}
    sets: dict[tuple[str, SetCell], bool] = {}
    for item in planned:
        cell, data = item.cell, facts[item.cell.data]
        left = item.address not in done
        operations = network_operations(cell, data)
        precision = cell.evaluation.arithmetic.precision
        seconds = rates.seconds(cell.network, precision, operations)
        key = (line_title(cell), cell.network)
        networks[key] = _plus(networks.get(key), left, operations, seconds)
        if isinstance(cell.on, SetCell):
            unit = (cell.data, cell.on)
            sets[unit] = sets.get(unit, False) or left
    by_set: dict[str, Estimate] = {}
    shared: dict[Preparation, float] = {}
    for (name, on), needed in sets.items():
        data, precision = facts[name], on.arithmetic.precision
        cost, left = set_cost(on, data), needed and (name, on) not in made
        seconds = rates.seconds(matching(on.methods), precision, cost.operations)
        seconds += rates.seconds("convnet3", precision, cost.observers)
        title = set_title(on, name, cost.steps)
        by_set[title] = _plus(by_set.get(title), left, cost.operations + cost.observers, seconds)
        for work in preparations(on, data) if left else []:
            shared[work] = rates.seconds("convnet3", precision, work.operations)
    return PlanCost(networks, by_set, _longest(shared), _assumed(planned, rates))


def _longest(shared: Mapping[Preparation, float]) -> dict[Preparation, float]:
    """Without what is the beginning of something else: trajectories are made longer, not anew."""
    return {
        work: seconds
        for work, seconds in shared.items()
        if not any(_begins(work, other) for other in shared if other != work)
    }


def _begins(work: Preparation, other: Preparation) -> bool:
    same = replace(work, count=other.count, epochs=other.epochs, operations=other.operations)
    return same == other and work.count <= other.count and work.epochs <= other.epochs


def fitting_schedule(
    planned: Sequence[Planned], facts: Mapping[str, Facts], rates: Rates, hours: float
) -> str:
    """`--schedule ...` at which making the most expensive set of each method takes `hours`."""
    found: dict[str, float] = {}
    for item in planned:
        on = item.cell.on
        if isinstance(on, SetCell) and item.row.cost_of is None:
            whole = set_cost(replace(on, fraction=1.0), facts[item.cell.data]).operations
            rate = rates.rate(matching(on.methods), on.arithmetic.precision)
            if whole:
                fraction = min(1.0, hours * 3600 * rate / whole)
                family = family_of(on.methods.split("+")[0])
                found[family] = min(fraction, found.get(family, 1.0))
    return ",".join(f"{family}={fraction:.2g}" for family, fraction in found.items())


def _plus(before: Estimate | None, left: bool, operations: float, seconds: float) -> Estimate:
    known = before or Estimate(0, 0, 0.0, 0.0)
    return Estimate(
        known.left + left, known.of + 1, known.operations + left * operations,
        known.seconds + left * seconds,
    )  # fmt: skip


def line_title(cell: Cell) -> str:
    """A line of the plan."""
    fraction = f" at {cell.on.fraction:.4g}" if isinstance(cell.on, SetCell) else ""
    return f"{cell.data}: {cell.identity.title}{fraction}"


def set_title(cell: SetCell, data: str, steps: Sequence[int]) -> str:
    """Sets that differ in their seed only."""
    more = "".join(f", {text}" for text in cell.row)
    name = f"{data}-{cell.methods}-{cell.ipc}x{cell.experts}"
    return f"{name}{more}: {cell.fraction:.4g} of the schedule, {max(steps)} steps"


def _assumed(planned: Sequence[Planned], rates: Rates) -> list[str]:
    """Kinds of work whose rate nobody has measured here."""
    kinds: dict[str, None] = {}
    for item in planned:
        cell = item.cell
        pairs = [(cell.network, cell.evaluation.arithmetic.precision)]
        if isinstance(cell.on, SetCell):
            pairs.append((matching(cell.on.methods), cell.on.arithmetic.precision))
        for kind, precision in pairs:
            if not rates.is_measured(kind, precision):
                kinds[kind] = None
    return list(kinds)
