"""Comparisons: which lines answer which question, and what the answer is."""

from __future__ import annotations

import pytest
from tablefactories import record

from moedd.papertables.compare import Answer, answers, fitted_to
from moedd.papertables.lines import Section, sections
from moedd.papertables.rows import NO_DIVERSITY, Identity, random_identity
from moedd_loaders.records import Record

MULTI = Identity("distilled", "idc_i", 5, 2, fuse="mixup")
SINGLE = Identity("distilled", "idc_i", 10, 1)
EQUAL = {"operations": 1.2e14, "steps": 400}
FITTED = {"operations": 2e14, "steps": 675, "fraction": 0.0034}


def over_sets(identity: Identity, *accuracies: float, **fields: object) -> list[Record]:
    """One network on each of several sets."""
    return [record(identity, a, seed=n, **fields) for n, a in enumerate(accuracies)]  # type: ignore[arg-type]


def section(*groups: list[Record]) -> Section:
    (made,) = sections([r for group in groups for r in group])
    return made


def by_title(found: list[Answer]) -> dict[str, Answer]:
    assert len({answer.question.title for answer in found}) == len(found)
    return {answer.question.title: answer for answer in found}


def test_two_experts_against_one_at_equal_schedule_and_at_equal_arithmetic() -> None:
    made = section(
        over_sets(MULTI, 52, 53, 54),
        over_sets(SINGLE, 50, 51, 52, **EQUAL),
        over_sets(SINGLE, 52, 52, 52, **FITTED),
        over_sets(SINGLE._replace(fuse="vanilla"), 53, 53, 53, **EQUAL),
        over_sets(random_identity(10), 40, 41, 42),
    )
    found = by_title(answers(made))
    assert set(found) == {
        "idc_i 5x2 - idc_i 10x1",
        "idc_i 5x2 - idc_i 10x1, equal arithmetic",
        "idc_i 5x2 - idc_i 10x1 with vanilla mixup",
        "idc_i 5x2 - random 10",
    }
    plain = found["idc_i 5x2 - idc_i 10x1"]
    gap = plain.gaps["convnet3"]
    assert gap.difference == pytest.approx(2.0)
    assert (gap.sets, gap.paired) == ((3, 3), False)
    assert plain.paper == {"convnet3": pytest.approx(53.32 - 52.73)}
    equal = found["idc_i 5x2 - idc_i 10x1, equal arithmetic"]
    assert equal.gaps["convnet3"].difference == pytest.approx(1.0)
    assert equal.paper == {}
    assert found["idc_i 5x2 - random 10"].gaps["convnet3"].difference == pytest.approx(12.0)
    assert [a.question.claim for a in found.values()].count(True) == 1


def test_ways_of_fusing_the_same_sets_are_compared_set_by_set() -> None:
    made = section(
        over_sets(MULTI, 52, 56, 60),
        over_sets(MULTI._replace(fuse="vanilla"), 51, 55, 59),
        over_sets(MULTI._replace(fuse="none"), 50, 55, 58.5),
    )
    found = by_title(answers(made))
    vanilla = found["idc_i 5x2: cross-expert - vanilla mixup"].gaps["convnet3"]
    assert vanilla.paired
    assert (vanilla.difference, vanilla.low, vanilla.high) == (1.0, 1.0, 1.0)
    none = found["idc_i 5x2: cross-expert mixup - none"]
    assert none.gaps["convnet3"].difference == pytest.approx(1.5)
    # Printed in Table 3, and differently in Table 4: the first one counts.
    assert none.paper["convnet3"] == pytest.approx(53.32 - 53.21)


def test_the_diversity_step_and_its_forms() -> None:
    plain = MULTI._replace(fuse="none")
    block = ("diversity.estimator=unbiased", "diversity.within=block")
    made = section(
        over_sets(plain, 50, 51),
        over_sets(plain._replace(overrides=NO_DIVERSITY), 49, 51),
        over_sets(plain._replace(overrides=block), 52, 52),
        over_sets(plain._replace(overrides=("parts=all",)), 50, 50),
    )
    found = by_title(answers(made))
    step = found["idc_i 5x2: diversity - none, without mixup"]
    assert step.gaps["convnet3"].difference == pytest.approx(0.5)
    assert step.gaps["convnet3"].paired
    assert step.paper["convnet3"] == pytest.approx(52.90 - 52.28)
    form = found["idc_i 5x2: diversity unbiased, within classes - default, without mixup"]
    assert form.gaps["convnet3"].difference == pytest.approx(1.5)
    assert "idc_i 5x2: disjoint parts - all data, without mixup" in found
    assert len(found) == 3


def test_other_schedules_are_not_compared() -> None:
    made = section(over_sets(MULTI, 52), over_sets(SINGLE, 50, fraction=0.02, operations=1.2e15))
    assert answers(made) == []


def test_a_hybrid_is_compared_with_each_of_its_methods() -> None:
    hybrid = Identity("distilled", "idm_plain+rded", 10, 2, fuse="mixup")
    made = section(
        over_sets(hybrid, 50),
        over_sets(Identity("distilled", "rded", 20, 1), 45, operations=0.0, fraction=1.0),
        over_sets(Identity("distilled", "idm_plain", 20, 1), 48),
    )
    found = by_title(answers(made))
    rded = found["idm_plain+rded 10x2 - rded 20x1"]
    assert rded.question.claim
    assert rded.paper["convnet3"] == pytest.approx(50.28 - 45.62)
    idm = found["idm_plain+rded 10x2 - idm_plain 20x1"]
    assert not idm.question.claim
    assert idm.paper == {}


def test_strong_forms_are_compared_with_random_mosaics() -> None:
    strong = Identity("distilled", "idc", 5, 2, fuse="mixup")
    made = section(
        over_sets(strong, 55), over_sets(random_identity(10, 2), 46),
        over_sets(random_identity(10), 40),
    )  # fmt: skip
    found = by_title(answers(made))
    assert found["idc 5x2 - random 10"].gaps["convnet3"].difference == pytest.approx(9.0)


def test_only_networks_that_both_have_are_compared() -> None:
    made = section(
        over_sets(MULTI, 52), over_sets(SINGLE, 50), over_sets(MULTI, 40, network="vgg11")
    )
    (answer,) = answers(made)
    assert list(answer.gaps) == ["convnet3"]
    assert answer.gaps["convnet3"].low is None


def test_a_fitted_line_knows_what_it_was_fitted_to() -> None:
    made = section(
        over_sets(MULTI, 52), over_sets(SINGLE, 50, **EQUAL), over_sets(SINGLE, 51, **FITTED)
    )
    same, fitted = made.of(SINGLE)
    assert fitted_to(made, same) is None
    pair = fitted_to(made, fitted)
    assert pair is not None
    assert pair.identity == MULTI
    assert fitted_to(made, made.of(MULTI)[0]) is None


def test_two_experts_cut_down_to_one_are_fitted_too() -> None:
    cut = {"fraction": 0.6, "operations": 1.2e14, "steps": 240}
    made = section(
        over_sets(MULTI, 52, fraction=1.0),
        over_sets(MULTI, 50, **cut),
        over_sets(SINGLE, 50, fraction=1.0, operations=1.2e14),
    )
    short, whole = made.of(MULTI)
    pair = fitted_to(made, short)
    assert pair is not None
    assert pair.identity == SINGLE
    assert fitted_to(made, whole) is None
    assert fitted_to(made, made.of(SINGLE)[0]) is None
    found = by_title(answers(made))
    assert found["idc_i 5x2 - idc_i 10x1, equal arithmetic"].a is short
