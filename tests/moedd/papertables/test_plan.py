"""From options to cells: which, how many, in which order, and what no plan can be made of."""

from __future__ import annotations

from typing import Any

import pytest
from tablefactories import cifar_facts, digits_facts, tiny_options

from moedd.papertables.cells import Cell, FullCell, RandomCell, SetCell
from moedd.papertables.cost import set_cost
from moedd.papertables.paper import NETWORKS
from moedd.papertables.plan import Options, Planned, plan_cells
from moedd_loaders.errors import UsageError


def planned(**given: Any) -> list[Planned]:
    plain: dict[str, Any] = {
        "tables": (1,), "budgets": (10,), "groups": ("paper",), "seeds": 1, "repeats": 1,
        "networks": ("convnet3",), "schedules": {"": 0.01},
    }  # fmt: skip
    return plan_cells(Options(**{**plain, **given}), [cifar_facts()])


def cells(**given: Any) -> list[Cell]:
    return [item.cell for item in planned(**given)]


def methods(found: list[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.identity.methods for cell in found))


def sets(found: list[Cell]) -> list[SetCell]:
    return list(dict.fromkeys(c.on for c in found if isinstance(c.on, SetCell)))


# ----------------------------------------------------------------------------- which cells


def test_table_1_at_one_budget() -> None:
    found = cells()
    assert [c.identity.title for c in found] == [
        "idc_i 5x2, cross-expert mixup",
        "idc_i 10x1, no mixup",
        "idm_plain 5x2, cross-expert mixup",
        "idm_plain 10x1, no mixup",
        "mtt 5x2, cross-expert mixup",
        "mtt 10x1, no mixup",
    ]
    assert {c.data for c in found} == {"cifar10"}


def test_the_papers_budgets_networks_and_more() -> None:
    found = cells(budgets=None, networks=None, repeats=3, repeats_of={"resnet18": 2}, seeds=2)
    assert {c.identity.budget for c in found} == {10, 20}
    assert {c.network for c in found} == set(NETWORKS)
    # 3 methods, 2 budgets, 2 rows; 2 sets of each; 3 + 3 + 2 + 3 networks.
    assert len(found) == 3 * 2 * 2 * 2 * 11
    assert {c.repeat for c in found if c.network == "resnet18"} == {0, 1}
    assert {c.repeat for c in found if c.network == "vgg11"} == {0, 1, 2}


def test_sets_are_shared_across_tables() -> None:
    """Table 3's three rows are one set; Table 1 trains on it too."""
    only = {"only": ("idc",), "groups": ("paper",)}
    assert len(sets(cells(tables=(3,), **only))) == 1
    together = cells(tables=(1, 3), **only)
    assert len(sets(together)) == 2
    assert len(together) == 4  # mixup on 5x2 is a row of both, and one cell


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        (("idc",), {"idc_i", "idc"}),
        (("idc_i",), {"idc_i"}),
        (("idm", "mtt"), {"idm_plain", "idm", "mtt"}),
    ],
)
def test_only_some_methods(only: tuple[str, ...], wanted: set[str]) -> None:
    found = cells(only=only, groups=("paper", "fair", "strong"))
    assert set(methods(found)) - {""} == wanted
    assert any(isinstance(c.on, RandomCell) for c in found)


def test_a_hybrid_needs_all_of_its_methods() -> None:
    given: dict[str, Any] = {"tables": (2,), "budgets": (20,)}
    assert methods(cells(only=("rded",), **given)) == ["rded"]
    assert methods(cells(only=("idm", "rded"), **given)) == ["idm_plain+rded", "rded"]


def test_random_images_are_drawn_and_trained_on_once_each() -> None:
    found = cells(tables=(3,), groups=("fair", "strong"), only=("idc",), draws=3, repeats=5)
    draws = [c for c in found if isinstance(c.on, RandomCell)]
    assert sorted((c.on.factor, c.on.draw, c.repeat) for c in draws) == [  # type: ignore[union-attr]
        (factor, draw, 0) for factor in (1, 2) for draw in (0, 1, 2)
    ]
    assert {c.fuse for c in draws} == {"none"}


def test_table_4_is_on_the_convnet() -> None:
    found = cells(tables=(4,), networks=None)
    assert {c.network for c in found} == {"convnet3"}
    assert {c.network for c in cells(tables=(4,), networks=("vgg11",))} == {"convnet3"}
    on_digits = plan_cells(tiny_options(tables=(4,), networks=("convnet1",)), [digits_facts()])
    assert {item.cell.network for item in on_digits} == {"convnet1"}


def test_all_real_images_once_with_repeats() -> None:
    found = cells(groups=("full",), seeds=3, draws=3, repeats=2)
    assert [(c.on, c.repeat) for c in found] == [(FullCell(), 0), (FullCell(), 1)]


def test_a_schedule_for_each_method() -> None:
    found = sets(cells(schedules={"": 0.5, "idc": 0.002}))
    assert {s.methods: s.fraction for s in found} == {
        "idc_i": 0.002,
        "idm_plain": 0.5,
        "mtt": 0.5,
    }
    hybrid = sets(cells(tables=(2,), budgets=(20,), schedules={"": 0.5, "idm": 0.1}))
    # RDED is made at once: whatever the schedule, it is the same set.
    assert {s.methods: s.fraction for s in hybrid} == {"idm_plain+rded": 0.1, "rded": 1.0}


# --------------------------------------------------------------------- equal arithmetic


def test_one_expert_gets_the_arithmetic_of_two_beside_their_schedule() -> None:
    found = sets(cells(only=("idc_i",), groups=("paper", "fair"), schedules={"": 0.002}))
    singles = [s for s in found if s.experts == 1]
    multi = next(s for s in found if s.experts == 2 and not s.row)
    same, fitted = sorted(singles, key=lambda s: s.fraction)
    assert same.fraction == multi.fraction
    cost = [set_cost(s, cifar_facts()).operations for s in (fitted, multi)]
    assert cost[0] == pytest.approx(cost[1], rel=0.01)


def test_where_the_whole_schedule_is_not_enough_two_experts_get_less() -> None:
    """At all of the schedule one expert has nothing to catch up with: two are cut down to it."""
    found = sets(cells(only=("idc_i",), groups=("paper", "fair"), schedules={"": 1.0}))
    assert max(s.fraction for s in found) == 1.0
    (cut,) = [s for s in found if s.fraction < 1]
    assert (cut.ipc, cut.experts) == (5, 2)
    whole = next(s for s in found if s.experts == 1)
    cost = [set_cost(s, cifar_facts()).operations for s in (cut, whole)]
    assert cost[0] == pytest.approx(cost[1], rel=0.01)
    fused = [c.fuse for c in cells(only=("idc_i",), groups=("fair",), schedules={"": 1.0})
             if c.on == cut]  # fmt: skip
    assert fused == ["mixup"]


# ------------------------------------------------------------------------------- order


def test_one_seed_after_the_other_the_papers_rows_first() -> None:
    found = planned(groups=("paper", "fair"), only=("idc",), seeds=2, draws=2)
    order = [(item.cell.seed, item.row.group) for item in found if item.row.methods]
    assert order == sorted(order, key=lambda pair: (pair[0], pair[1] == "fair"))
    assert {seed for seed, _ in order} == {0, 1}
    first = [item.row.group for item in found[: len(found) // 2]]
    assert first[0] == "paper"


def test_every_cell_has_an_address_of_its_own() -> None:
    found = planned(tables=(1, 2, 3, 4), budgets=(10, 20), groups=("paper", "fair", "strong"))
    assert len({item.address for item in found}) == len(found)
    assert len({item.cell for item in found}) == len(found)


# ----------------------------------------------------------------- what cannot be planned


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"only": ("idk",)}, r"unknown method 'idk'; known: idc, .*"),
        ({"groups": ("papers",)}, r"unknown group of rows 'papers'.*did you mean 'paper'"),
        ({"budgets": (5,)}, "two experts share it"),
        ({"schedules": {"": 0.1, "idcc": 0.1}}, "unknown method of a schedule 'idcc'"),
        ({"networks": ("convnet9",)}, "unknown network 'convnet9'"),
        ({"settings": ("idc.lr_img=1",), "only": ("idm",)}, "reaches none of the sets"),
        ({"settings": ("idm_plain.lrr=1",)}, "unknown setting 'idm_plain.lrr'"),
        ({"settings": ("wide=1",)}, "unknown setting 'wide'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_run(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        planned(**given)


def test_networks_must_fit_the_images() -> None:
    with pytest.raises(UsageError, match="vgg11 needs images of at least 28x28"):
        plan_cells(tiny_options(networks=("vgg11",)), [digits_facts()])
