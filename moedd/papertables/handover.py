"""Records on their way to whoever asked for them.

Who trains a network leaves its record in `$MOEDD_HOME/handed/ADDRESS.json`, whole or not at all;
who asked for it takes it from there into a folder of records. The two may be different machines:
only `$MOEDD_HOME` is shared. What was handed over and not yet taken, because the one who asked is
gone, is found by whoever comes next.
"""

from pathlib import Path

from moedd.papertables.alone import alone
from moedd.papertables.places import CellPlaces
from moedd.papertables.store import append_cell, find_cell
from moedd_loaders.errors import from_oserror
from moedd_loaders.files import put
from moedd_loaders.records import Record, record_in


def hand(home: Path, record: Record) -> None:
    """Leave a record for whoever asked for it.

    Raises DiskFullError and the like: nothing was left.
    """
    path = _path(home, record.config["cell"])
    try:
        put(path, record.model_dump_json().encode())
    except OSError as error:
        raise from_oserror(error, f"writing the record {path}") from error


def handed(home: Path, address: str) -> Record | None:
    """The record of a cell that nobody has taken yet."""
    path = _path(home, address)
    try:
        return record_in(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def take(places: CellPlaces, record: Record) -> None:
    """Keep a record in the folder of records, once, and count it as taken."""
    address = record.config["cell"]
    with alone(places.home, f"records-{record.set_name}"):
        if find_cell(places.records, record.set_name, address) is None:
            append_cell(places.records, record.set_name, record)
    _path(places.home, address).unlink(missing_ok=True)


def _path(home: Path, address: str) -> Path:
    return home / "handed" / f"{address}.json"
