"""Seconds from what was measured before, on this machine and no other."""

from __future__ import annotations

import pytest
from tablefactories import record

from moedd.papertables.rates import Machine, Rates, matching
from moedd.papertables.rows import Identity
from moedd_loaders.records import Record

LINE = Identity("distilled", "idc_i", 5, 2)
HERE = Machine("two cores", 2)


def timed(seconds: float, seed: int = 0, matched: float = 1800.0, **config: object) -> Record:
    made = record(LINE, 50, seed=seed, seconds=seconds)
    made.config.update(config)
    made.config["set"]["seconds"] = matched
    return made


def test_rates_are_medians_of_networks_and_of_sets() -> None:
    """1e13 operations in 50, 100 and 400 s; sets of 2e14 in 1,000 and 2,000 s, once each."""
    records = [timed(50, 0, 1000.0), timed(100, 0, 1000.0), timed(400, 1, 2000.0)]
    rates = Rates.of(records, HERE)
    assert rates.rate("convnet3", "float32") == pytest.approx(1e11)
    assert rates.rate(matching("idc_i"), "float32") == pytest.approx((2e11 + 1e11) / 2)
    assert rates.seconds("convnet3", "float32", 5e12) == pytest.approx(50)
    assert rates.is_measured("convnet3", "float32")


@pytest.mark.parametrize(
    ("machine", "kind", "precision"),
    [
        (Machine("another", 2), "convnet3", "float32"),
        (Machine("two cores", 1), "convnet3", "float32"),
        (HERE, "vgg11", "float32"),
        (HERE, "convnet3", "bfloat16"),
        (HERE, matching("idm"), "float32"),
    ],
)
def test_what_was_not_measured_here_is_assumed(machine: Machine, kind: str, precision: str) -> None:
    rates = Rates.of([timed(50)], machine)
    assert not rates.is_measured(kind, precision)
    assert rates.rate(kind, precision) == Rates(machine).rate(kind, precision)


def test_assumed_rates_are_those_of_the_performance_page() -> None:
    """Two threads: ResNet18 193 GFLOP/s in float32, 337 in bfloat16; one thread half of it."""
    assert Rates(HERE).rate("resnet18", "float32") == 1.93e11
    assert Rates(HERE).rate("resnet18_bn", "bfloat16") == 3.37e11
    assert Rates(Machine("x", 1)).rate("resnet18", "float32") == 1.93e11 / 2
    assert Rates(Machine("x", 64)).rate("resnet18", "float32") == 1.93e11
    assert Rates(Machine("x", 1, "cuda")).rate("resnet18", "float32") > 1e12


def test_records_without_times_are_no_measurements() -> None:
    for broken in (timed(0.0, matched=0.0), timed(50, operations=None)):
        rates = Rates.of([broken], HERE)
        assert not rates.is_measured("convnet3", "float32")
