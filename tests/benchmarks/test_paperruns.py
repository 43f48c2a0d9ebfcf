"""Lines of a file of runs: what they ask for, and the cells that follow."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.paperruns import asked_of, choices_of, planned_of
from moedd_loaders.errors import UsageError


def given(records: Path) -> argparse.Namespace:
    return argparse.Namespace(
        data=["digits=digits"], records=records, threads=1, checkpoint_seconds=30.0,
        profile="float32", protocol="idc", epochs=3, networks="convnet2", fuse="none,mixup:0.4",
        repeats=2, seed=0,
    )  # fmt: skip


def test_a_line_is_read_as_the_command_reads_it(tmp_path: Path) -> None:
    line = "--table 3 --on digits --size 16 --only idc_i --seeds 1 --set idc_i.lr_img=0.1"
    asked = asked_of(line, given(tmp_path))
    assert (asked.table, asked.on, asked.only, asked.seeds) == ("3", "digits", "idc_i", 1)
    assert (asked.size, asked.settings) == ((16, 16), ("idc_i.lr_img=0.1",))
    assert (asked.data, asked.records, asked.threads) == (("digits=digits",), str(tmp_path), 1)
    with pytest.raises(Exception, match="No such option: --tabel"):
        asked_of("--tabel 3", given(tmp_path))


def test_cells_of_a_line(tmp_path: Path) -> None:
    line = "--table 3 --on digits --rows paper --budget 4 --networks convnet2 --seeds 2 --repeats 1"
    planned, places = planned_of(line, given(tmp_path))
    assert {item.cell.fuse for item in planned} == {"mixup", "vanilla", "none"}
    assert len(planned) == 6  # three ways of fusing, two sets
    assert places.records == tmp_path
    with pytest.raises(SystemExit, match=r"give --data cifar10=DIR \(given: digits=digits\)"):
        planned_of("--table 3", given(tmp_path))


def test_a_choice_is_scored_on_the_validation_part(tmp_path: Path) -> None:
    usual, places = choices_of("choose digits-idm+dm-1x2 0.5", given(tmp_path))
    other, _ = choices_of("choose digits-idm+dm-1x2 0.5 diversity.every=0", given(tmp_path))
    assert [item.cell.fuse for item in usual] == ["none", "none", "mixup:0.4", "mixup:0.4"]
    assert len({item.address for item in [*usual, *other]}) == 8
    assert places.data[0].validation
    assert places.records == tmp_path / "choices"
    with pytest.raises(UsageError):
        choices_of("choose digits-nothing-1x2 0.5", given(tmp_path))
