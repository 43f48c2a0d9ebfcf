"""A record goes from who made it to who asked for it, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tablefactories import places, record

from moedd.papertables.handover import hand, handed, take
from moedd.papertables.rows import Identity
from moedd.papertables.store import read_cells
from moedd_loaders.errors import InvalidSetError

ONE = record(Identity("distilled", "idc_i", 5, 2), 50)
ONE.config["cell"] = address = "0123456789abcdef0123"


def test_what_is_left_is_found_and_taken_once(tmp_path: Path) -> None:
    at = places(tmp_path / "home", tmp_path / "records")
    assert handed(at.home, address) is None
    hand(at.home, ONE)
    assert handed(at.home, address) == ONE
    for _ in range(2):
        take(at, ONE)
        assert read_cells(at.records) == {address: ONE}
        assert handed(at.home, address) is None
    assert [path.read_text().count("\n") for path in at.records.iterdir()] == [1]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "handed").mkdir()
    (tmp_path / "handed" / "a.json").write_text("{}")
    with pytest.raises(InvalidSetError, match=r"handed/a\.json is not a record"):
        handed(tmp_path, "a")
