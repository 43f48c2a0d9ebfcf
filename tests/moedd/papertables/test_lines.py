"""Records become lines: what belongs together stands together, and nothing else does."""

from __future__ import annotations

import pytest
from tablefactories import record

from moedd.papertables.lines import sections
from moedd.papertables.rows import FULL, Identity, random_identity

MULTI = Identity("distilled", "idc_i", 5, 2, fuse="mixup")
SINGLE = Identity("distilled", "idc_i", 10, 1)
HYBRID = Identity("distilled", "idm_plain+rded", 10, 2, fuse="mixup")


def test_networks_are_grouped_by_set_and_sets_by_line() -> None:
    records = [
        record(MULTI, accuracy, seed=seed, repeat=repeat)
        for seed, repeat, accuracy in ((0, 0, 50), (0, 1, 52), (1, 0, 54))
    ]
    records.append(record(MULTI, 40, network="vgg11"))
    records.append(record(SINGLE, 30))
    (section,) = sections(records)
    assert [key.identity for key in section.lines] == [MULTI, SINGLE]
    (line,) = section.of(MULTI)
    assert line.sets("convnet3") == {0: [50.0, 52.0], 1: [54.0]}
    assert line.sets("vgg11") == {0: [40.0]}
    assert line.sets("alexnet") == {}
    assert line.summary("alexnet") is None
    assert section.networks == ["convnet3", "vgg11"]
    assert (line.operations, line.steps) == (2e14, (400, 400))


def test_dependence_is_one_value_for_each_set_of_several_experts() -> None:
    """Not one for each network: 0.2 and 0.4, whatever number was trained on them."""
    made = [record(MULTI, 50, seed=0, repeat=n, dependence=0.2) for n in range(3)]
    made.append(record(MULTI, 50, seed=1, dependence=0.4))
    (section,) = sections([*made, record(SINGLE, 50), record(FULL, 80)])
    found = section.of(MULTI)[0].dependence
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert found.spread == pytest.approx(0.02**0.5)
    assert (found.sets, found.networks) == (2, 2)
    assert section.of(SINGLE)[0].dependence is None
    assert section.of(FULL)[0].dependence is None


def test_identities_survive_a_record() -> None:
    shared = MULTI._replace(overrides=("parts=all",))
    for identity in (MULTI, SINGLE, HYBRID, shared, random_identity(10, 2), FULL):
        (section,) = sections([record(identity, 50)])
        assert [key.identity for key in section.lines] == [identity]


def test_draws_of_random_images_count_as_sets() -> None:
    drawn = [record(random_identity(10), 40 + n, seed=n) for n in range(3)]
    (section,) = sections([record(MULTI, 50), *drawn])
    (line,) = section.of(random_identity(10))
    assert line.sets("convnet3") == {0: [40.0], 1: [41.0], 2: [42.0]}
    assert line.operations == 0
    assert line.steps == ()


def test_lines_at_several_schedules_are_several_lines() -> None:
    records = [record(SINGLE, 50, fraction=f) for f in (0.02, 0.002)]
    (section,) = sections(records)
    assert [line.key.fraction for line in section.of(SINGLE)] == [0.002, 0.02]


def test_what_is_not_comparable_stands_in_sections_of_its_own() -> None:
    others = [
        {"data_fingerprint": "sha256:other"},
        {"protocol": "idc-300"},
        {"protocol": "common-300-best"},
        {"protocol": "common", "epochs": 1000},
        {"data": "cifar100"},
        {"settings": ("width=64",)},
    ]
    records = [record(MULTI, 50), record(MULTI, 51)]
    records += [record(MULTI, 50, **other) for other in others]
    wide = record(MULTI, 50)
    wide.config["width"] = 64
    fast = record(MULTI, 50)
    fast.config["precision"] = "bfloat16"
    found = sections([*records, wide, fast])
    assert len(found) == len(others) + 3
    assert len(found[0].records) == 2


def test_real_images_stand_beside_every_kind_of_sets_of_their_recipe() -> None:
    random = record(random_identity(10), 40)
    sets = [record(MULTI, 50), record(MULTI, 51, settings=("pool.steps=100",))]
    other = record(MULTI, 52, protocol="idc-300")
    found = sections([*sets, other, random])
    with_random = [s for s in found if s.of(random_identity(10))]
    assert len(found) == 3
    assert {s.setting.settings for s in with_random} == {(), ("pool.steps=100",)}
    assert {s.setting.protocol for s in with_random} == {"common-300"}
    (alone,) = sections([random])
    assert alone.of(random_identity(10))


def test_networks_at_chance_are_counted() -> None:
    records = [record(MULTI, a, repeat=n) for n, a in enumerate((10.0, 10.4, 30.0))]
    (section,) = sections(records)
    assert section.of(MULTI)[0].at_chance("convnet3") == 2
    assert section.of(MULTI)[0].at_chance("vgg11") == 0
