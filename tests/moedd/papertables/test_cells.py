"""Addresses: equal for what gives the same result, different for whatever changes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tablefactories import (
    cell,
    cifar_facts,
    digits_facts,
    evaluation,
    method_settings,
    set_cell,
)

from moedd.papertables import cells
from moedd.papertables.cells import (
    Arithmetic,
    Facts,
    FullCell,
    RandomCell,
    cell_address,
    set_address,
    set_config,
    teacher_config,
)
from moedd.papertables.places import DataPlace, known_facts, read_data
from moedd_loaders.errors import UsageError

FAST = Arithmetic("fast", "bfloat16")


@pytest.mark.parametrize(
    "change",
    [
        {"methods": "idc"},
        {"ipc": 4},
        {"experts": 1},
        {"seed": 1},
        {"fraction": 0.5},
        {"row": ("parts=all",)},
        {"settings": ("width=16",)},
        {"arithmetic": FAST},
    ],
)
def test_everything_that_decides_a_set_is_in_its_address(change: dict[str, Any]) -> None:
    facts = cifar_facts()
    assert set_address(set_cell(**change), facts) != set_address(set_cell(), facts)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "sha256:other"},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.3, 0.2, 0.2)},
        {"flip": False},
        {"shape": (3, 64, 64)},
    ],
)
def test_the_real_data_are_in_every_address(change: dict[str, Any]) -> None:
    facts, other = cifar_facts(), cifar_facts(**change)
    assert set_address(set_cell(), facts) != set_address(set_cell(), other)
    for on in (set_cell(), RandomCell(4, 1, 0), FullCell()):
        if "shape" not in change or isinstance(on, type(set_cell())):
            one = cell(on, data="cifar10")
            assert cell_address(one, facts) != cell_address(one, other)


def test_settings_said_in_other_words_have_the_same_address() -> None:
    facts = cifar_facts()
    plain = set_cell(settings=("width=16",))
    # What the defaults are anyway, the same number, and settings of a method that is not there.
    for settings in (
        ("width=16", "diversity.every=10"),
        ("width=8", "width=16"),
        ("width=16", "idm.lr=3", "mtt.zca=true"),
        ("width=16", "idc_i.lr_img=0.0050"),
    ):
        assert set_address(set_cell(settings=settings), facts) == set_address(plain, facts)
    # Of two profiles that compute alike, the sets are alike.
    named = set_cell(settings=("width=16",), arithmetic=Arithmetic("fast", "float32"))
    assert set_address(named, facts) == set_address(plain, facts)


def test_the_row_has_the_last_word() -> None:
    made = set_config(set_cell(row=("diversity.every=0",)), cifar_facts())
    assert made.diversity.every == 0
    assert made.width == 8


@pytest.mark.parametrize(
    "change",
    [
        {"fuse": "mixup"},
        {"network": "convnet2"},
        {"repeat": 1},
        {"on": set_cell(seed=1)},
        {"on": set_cell(fraction=0.5)},
        {"on": RandomCell(4, 1, 0)},
        {"on": RandomCell(4, 2, 0)},
        {"on": RandomCell(4, 1, 1)},
        {"on": RandomCell(6, 1, 0)},
        {"on": FullCell()},
        {"evaluation": evaluation(protocol="idc")},
        {"evaluation": evaluation(protocol="idm")},
        {"evaluation": evaluation(epochs=2)},
        {"evaluation": evaluation(width=8)},
        {"evaluation": evaluation(protocol="rded")},
        {"evaluation": evaluation(protocol="rded", teacher=("rded.observer_steps=7",))},
        {"evaluation": evaluation(protocol="idc", best=True)},
        {"evaluation": evaluation(arithmetic=FAST)},
    ],
)
def test_everything_that_decides_a_network_is_in_its_address(
    change: dict[str, Any], seen: set[str]
) -> None:
    facts = digits_facts()
    address = cell_address(cell(**change), facts)
    assert len(address) == 20
    assert address != cell_address(cell(), facts)
    # All of these differ from each other too.
    assert address not in seen
    seen.add(address)


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Addresses of the parametrised test so far."""
    return set()


def test_the_code_s_own_form_is_in_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = digits_facts()
    before = set_address(set_cell(), facts), cell_address(cell(), facts)
    set_address.cache_clear()
    cell_address.cache_clear()
    monkeypatch.setattr(cells, "FORM", 2)
    after = set_address(set_cell(), facts), cell_address(cell(), facts)
    set_address.cache_clear()
    cell_address.cache_clear()
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_networks_of_two_sets_have_nothing_in_common() -> None:
    assert cell(set_cell(seed=4)).seed == 4
    assert cell(RandomCell(4, 1, 3)).seed == 0


def test_the_teacher_takes_the_overrides_of_rded() -> None:
    facts = digits_facts()
    assert teacher_config(evaluation(protocol="rded"), facts).observer_steps == 300
    given = evaluation(protocol="rded", teacher=("rded.observer_steps=7",))
    assert teacher_config(given, facts).observer_steps == 7


def test_facts_of_the_table_agree_with_the_data() -> None:
    place = DataPlace("digits")
    real, known = Facts.of(read_data(place)), known_facts(place)
    assert replace(known, fingerprint=real.fingerprint, train=real.train, test=real.test) == real


def test_facts_without_reading() -> None:
    grey = known_facts(DataPlace("mnist", channels=3))
    assert grey.shape == (3, 28, 28)
    assert len(grey.mean) == len(grey.std) == 3
    assert known_facts(DataPlace("imagenette", size=(64, 64))).shape == (3, 64, 64)
    for place in (DataPlace("imagenette"), DataPlace("birds")):
        with pytest.raises(UsageError, match=r"size of the images of .* is not known"):
            known_facts(place)


def test_method_settings_are_those_of_the_factories() -> None:
    """Guards the other tests: the settings reach the method."""
    made = set_config(set_cell(settings=method_settings("idc_i")), cifar_facts())
    assert made.experts[0].steps == 4
