"""The folder of records: found by address, appended whole, half lines survived."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from tablefactories import record

from moedd.papertables.rows import Identity
from moedd.papertables.store import append_cell, read_cells
from moedd_loaders.errors import InvalidSetError, MoeddWarning
from moedd_loaders.records import Record, records_in

LINE = Identity("distilled", "idc_i", 5, 2)


def cells(count: int, start: int = 0) -> list[Record]:
    return [record(LINE, n / 10, seed=n) for n in range(start, start + count)]


def test_records_are_found_by_address(tmp_path: Path) -> None:
    assert read_cells(tmp_path / "nowhere") == {}
    for made in cells(3):
        path = append_cell(tmp_path / "records", "cifar10-idc_i-5x2", made)
    assert path == tmp_path / "records" / "tables-cifar10-idc_i-5x2.jsonl"
    append_cell(tmp_path / "records", "cifar10-random-10x1", cells(1, 7)[0])
    found = read_cells(tmp_path / "records")
    assert list(found.values()) == [*cells(3), *cells(1, 7)]
    assert all(made.config["cell"] == address for address, made in found.items())
    # The very same schema as everywhere: one JSON line per network.
    assert records_in(path) == cells(3)


def test_other_files_and_records_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    plain = record(LINE, 50.0)
    plain.config.pop("cell")
    (tmp_path / "tables-x.jsonl").write_text(plain.model_dump_json() + "\n")
    (tmp_path / "cifar10-idc-5x2.jsonl").write_text(record(LINE, 50.0).model_dump_json() + "\n")
    (tmp_path / "other.jsonl").write_text('{"not": "a record"}\n')
    assert read_cells(tmp_path) == {}


def test_the_first_record_of_a_cell_counts(tmp_path: Path) -> None:
    first, second = record(LINE, 50.0), record(LINE, 50.0, created="2027-01-01T00:00:00Z")
    for made in (first, second):
        append_cell(tmp_path, "x", made)
    assert list(read_cells(tmp_path).values()) == [first]


def test_half_a_line_is_skipped_and_written_after(tmp_path: Path) -> None:
    one, two, three = cells(3)
    path = append_cell(tmp_path, "x", one)
    append_cell(tmp_path, "x", two)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(MoeddWarning, match="line 2 is half a line"):
        assert list(read_cells(tmp_path).values()) == [one]
    append_cell(tmp_path, "x", three)
    with pytest.warns(MoeddWarning, match="line 2 is half a line"):
        assert list(read_cells(tmp_path).values()) == [one, three]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = append_cell(tmp_path, "x", cells(1)[0])
    with path.open("a") as file:
        file.write('{"data": "cifar10"}\n')
    with pytest.raises(InvalidSetError, match=r"tables-x.jsonl, line 2 is not a record"):
        read_cells(tmp_path)


def _append_many(folder: Path, start: int) -> None:
    for made in cells(50, start):
        append_cell(folder, "x", made)


def test_processes_append_to_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(tmp_path, 50 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = read_cells(tmp_path)
    assert sorted(made.seed for made in found.values()) == list(range(150))
