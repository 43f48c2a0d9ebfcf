"""What is left of a plan, in units, operations and seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tablefactories import cifar_facts, record

from moedd.papertables.cells import SetCell
from moedd.papertables.cost import Preparation, network_operations, preparations, set_cost
from moedd.papertables.estimate import PlanCost, fitting_schedule, plan_cost
from moedd.papertables.jobs import set_of
from moedd.papertables.plan import Options, Planned, plan_cells
from moedd.papertables.rates import Machine, Rates, matching
from moedd.papertables.rows import Identity
from moedd_loaders.records import Record

FACTS = {"cifar10": cifar_facts(), "cifar100": cifar_facts(data="cifar100", classes=100)}
SPEEDS = {("convnet3", "float32"): 1e11, (matching("idc_i"), "float32"): 2e11}
RATES = Rates(Machine("here", 2), dict(SPEEDS))


def planned(**given: Any) -> list[Planned]:
    plain: dict[str, Any] = {
        "tables": (1,), "budgets": (10,), "groups": ("paper",), "only": ("idc",), "seeds": 2,
        "repeats": 3, "networks": ("convnet3",), "schedules": {"": 0.002}, "epochs": 300,
    }  # fmt: skip
    return plan_cells(Options(**{**plain, **given}), list(FACTS.values()))


def cost(items: list[Planned], done: int = 0, made: int = 0, rates: Rates = RATES) -> PlanCost:
    """With the first `done` cells done and the first `made` sets made."""
    any_record: Record = record(Identity("distilled", "idc_i", 5, 2), 50)
    units = list(dict.fromkeys(u for item in items if (u := set_of(item.cell)) is not None))
    known = {item.address: any_record for item in items[:done]}
    return plan_cost(items, FACTS, known, set(units[:made]), rates)


def test_everything_is_counted_once() -> None:
    items = planned()
    found = cost(items)
    # Two data sets x (5x2, 10x1); two sets and 2 x 3 networks each.
    assert {e.of for e in found.sets.values()} == {2}
    assert {e.left for e in found.networks.values()} == {6}
    assert len(found.sets) == len(found.networks) == 4
    assert sum(e.operations for e in found.networks.values()) == pytest.approx(
        sum(network_operations(i.cell, FACTS[i.cell.data]) for i in items)
    )


def test_seconds_are_operations_over_rates() -> None:
    items = planned()
    found = cost(items)
    networks = sum(network_operations(i.cell, FACTS[i.cell.data]) for i in items) / 1e11
    units = {u for item in items if (u := set_of(item.cell)) is not None}
    sets = sum(set_cost(on, FACTS[data]).operations for data, on in units) / 2e11
    pools = {work for data, on in units for work in preparations(on, FACTS[data])}
    assert len(pools) == 2
    shared = sum(work.operations for work in pools) / 1e11
    assert found.seconds == pytest.approx(networks + sets + shared)


def test_what_is_done_costs_nothing() -> None:
    items = planned()
    whole, some = cost(items), cost(items, done=3, made=1)
    assert sum(e.left for e in some.networks.values()) == len(items) - 3
    assert sum(e.left for e in some.sets.values()) == 7
    assert some.seconds < whole.seconds
    nothing = cost(items, done=len(items))
    # Sets are made for networks: with all networks done nobody needs them, nor their pools.
    assert nothing.seconds == 0
    assert nothing.shared == {}


def test_assumed_rates_are_named() -> None:
    items = planned(networks=("convnet3", "vgg11"), only=("idc", "idm"))
    assert cost(items).assumed == ["vgg11", "matching idm_plain"]
    assert cost(planned()).assumed == []


def test_a_schedule_that_fits_the_hours() -> None:
    items = planned(only=("idc", "idm"), groups=("paper", "fair"))
    text = fitting_schedule(items, FACTS, RATES, 0.5)
    fractions = dict(part.split("=") for part in text.split(","))
    assert set(fractions) == {"idc", "idm"}
    units = [u for item in items if (u := set_of(item.cell)) is not None and not u[1].row]
    for data, on in units:
        if isinstance(on, SetCell) and on.methods == "idc_i":
            fitted = replace(on, fraction=float(fractions["idc"]))
            assert set_cost(fitted, FACTS[data]).operations / 2e11 < 0.52 * 3600
    longest = max(
        set_cost(replace(on, fraction=float(fractions["idc"])), FACTS[data]).operations / 2e11
        for data, on in units
        if on.methods == "idc_i"
    )
    assert longest > 0.45 * 3600


def test_trajectories_that_others_lengthen_are_counted_once() -> None:
    """On CIFAR-10, MTT's 10x1 needs more epochs of the very trajectories that its 5x2 needs."""
    items = planned(only=("mtt",), seeds=1)
    assert len({p.epochs for i in items for p in _prepared(i, "cifar10") if p.epochs}) == 2
    found = [work for work in cost(items).shared if work.epochs]
    assert [work.data for work in found] == ["cifar10", "cifar100"]
    for work in found:
        assert work.epochs == max(p.epochs for i in items for p in _prepared(i, work.data))
    assert len(cost(items).shared) == 4  # and a pool for each


def _prepared(item: Planned, data: str = "") -> list[Preparation]:
    on = item.cell.on
    assert isinstance(on, SetCell)
    found = preparations(on, FACTS[item.cell.data])
    return [work for work in found if data in ("", work.data)]
