"""The rows of the tables: forms of the methods, and what stands beside the paper's."""

from __future__ import annotations

import pytest

from moedd.papertables.paper import Printed
from moedd.papertables.rows import (
    DEFAULT_GROUPS,
    DIVERSITY_FORMS,
    GROUPS,
    TABLES,
    Identity,
    Row,
    table_rows,
)


def rows(table: int, budget: int = 10, group: str = "") -> list[Row]:
    return [row for row in table_rows(table, budget) if row.group in (group or GROUPS)]


def titles(table: int, group: str, budget: int = 10) -> list[str]:
    return [row.identity.title for row in rows(table, budget, group)]


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_rows_are_of_the_papers_forms(table: int) -> None:
    methods = {method for row in rows(table, group="paper") for method in row.methods}
    assert methods <= {"idc_i", "idm_plain", "mtt", "rded"}
    strong = {method for row in rows(table, group="strong") for method in row.methods}
    assert strong <= {"idc", "idm", "rded"}
    assert strong & {"idc", "idm"}
    for row in rows(table, group="paper"):
        assert row.paper is not None
        assert row.identity.budget == 10


def test_table_1() -> None:
    pairs = [(row.identity.title, row.paper) for row in rows(1, group="paper")]
    assert pairs[:2] == [
        ("idc_i 5x2, cross-expert mixup", Printed(1, "IDC", 5, 2)),
        ("idc_i 10x1, no mixup", Printed(1, "IDC", 10, 1)),
    ]
    assert len(pairs) == 6
    beside = titles(1, "fair")
    for title in (
        "idc_i 10x1, vanilla mixup",
        "idc_i 5x2, no diversity, cross-expert mixup",
        "idc_i 5x2, all data for both, cross-expert mixup",
        "random 10",
    ):
        assert title in beside
    # One expert once at the schedule of two, once at their arithmetic.
    fitted = [row for row in rows(1, group="fair") if row.cost_of]
    assert {row.cost_of for row in fitted} == {(5, 2)}
    assert {row.identity.methods for row in fitted} == {"idc_i", "idm_plain", "mtt"}
    assert "random 10 as 2x2 mosaics" in titles(1, "strong")


def test_table_2_is_a_hybrid_against_rded_alone() -> None:
    assert titles(2, "paper", 20) == [
        "idm_plain+rded 10x2, cross-expert mixup",
        "rded 20x1, no mixup",
    ]
    assert {"rded 20x1, vanilla mixup", "idm_plain 20x1, no mixup"} <= set(titles(2, "fair", 20))


def test_table_3_is_one_set_fused_in_three_ways() -> None:
    fused = [row.identity for row in rows(3, group="paper")]
    assert [identity.fuse for identity in fused] == ["mixup", "vanilla", "none"]
    assert len({identity._replace(fuse="") for identity in fused}) == 1


def test_table_4_adds_one_thing_after_another_on_the_convnet() -> None:
    idm = [row for row in rows(4, group="paper") if row.methods == ["idm_plain"]]
    assert [(row.identity.overrides, row.identity.fuse) for row in idm] == [
        (("diversity.every=0",), "none"),
        ((), "none"),
        ((), "mixup"),
    ]
    assert all(row.convnet for row in rows(4))
    assert not any(row.convnet for row in rows(1) if row.group != "full")
    forms = [row.identity for row in rows(4, group="diversity") if row.methods == ["mtt"]]
    assert len(forms) == 2 * len(DIVERSITY_FORMS)
    assert {identity.fuse for identity in forms} == {"none", "mixup"}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("budget", [4, 10, 20])
def test_no_row_stands_twice(table: int, budget: int) -> None:
    found = [(row.identity, row.cost_of) for row in table_rows(table, budget)]
    assert len(set(found)) == len(found)
    shown = [(row.identity.title, row.cost_of) for row in table_rows(table, budget)]
    assert len(set(shown)) == len(shown)


def test_families_are_the_papers_names() -> None:
    by_methods = {row.identity.methods: row.families for row in rows(2, 20)}
    assert by_methods["idm_plain+rded"] == {"idm", "rded"}
    assert by_methods["idm+rded"] == {"idm", "rded"}
    assert by_methods[""] == set()


def test_all_real_images_are_not_run_unless_asked_for() -> None:
    assert "full" not in DEFAULT_GROUPS
    (full,) = rows(1, group="full")
    assert full.identity == Identity("full", "", 0, 0)
    assert full.identity.title == "all real images"
