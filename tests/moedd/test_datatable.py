"""The alias table: complete, consistent, and its constants where they can be recomputed."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from moedd.datatable import CONVERT_BRANCH, DATA, DataSpec, aliases, unknown_data
from moedd.realdata import load_real
from moedd_loaders.errors import UsageError

CLASS_COUNTS = dict.fromkeys(DATA, 10) | {"cifar100": 100}


def test_the_promised_names_are_there() -> None:
    promised = "digits cifar10 cifar100 mnist fashion_mnist svhn stl10 imagenette imagewoof"
    assert set(promised.split()) == set(aliases())


@pytest.mark.parametrize("spec", DATA.values(), ids=list(DATA))
def test_rows_are_consistent(spec: DataSpec) -> None:
    assert DATA[spec.name] is spec
    assert spec.channels in (1, 3)
    assert len(spec.mean) == len(spec.std) == spec.channels
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    assert len(set(spec.classes)) == len(spec.classes) == CLASS_COUNTS[spec.name]
    assert spec.license
    assert spec.size is None or min(spec.size) >= 8
    assert (spec.hub_id is None) == (spec.name == "digits")
    assert spec.hub_id is None or spec.hub_id.count("/") == 1


def test_script_based_repositories_are_read_through_the_parquet_branch() -> None:
    for name in ("imagenette", "imagewoof"):
        assert DATA[name].revision == CONVERT_BRANCH
        assert DATA[name].config


def test_digits_and_house_numbers_are_never_mirrored() -> None:
    assert [name for name, spec in DATA.items() if not spec.flip] == ["digits", "mnist", "svhn"]


def test_digits_constants_are_those_of_the_training_split() -> None:
    data = load_real("digits")
    unit = data.train.images.double() / 255
    assert unit.mean().item() == pytest.approx(DATA["digits"].mean[0], abs=5e-5)
    assert unit.std(correction=0).item() == pytest.approx(DATA["digits"].std[0], abs=5e-5)
    # Stored bytes are the original sixteenths to within half a level.
    whole = torch.cat([data.train.images, data.test.images]).double() / 255
    raw = torch.from_numpy(load_digits().images) / 16
    levels = torch.round(whole * 16) / 16
    assert (whole - levels).abs().max() <= 0.5 / 255
    assert torch.equal(levels.flatten().sort().values, raw.flatten().sort().values)


def test_unknown_data_lists_the_names_and_the_ways() -> None:
    error = unknown_data("cifar1O")
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    for part in ("cifar1O", "did you mean 'cifar10'", "imagewoof", "--data"):
        assert part in str(error)
