"""Where cells find what they need and leave what they make: all that `run_cell` is given beside
the cell. Plain values, so that a cell can be run by any process on any machine."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from moedd.datatable import DATA
from moedd.papertables.cells import Facts
from moedd.realdata import RealData, load_real
from moedd.validation import with_validation_part
from moedd_loaders.errors import UsageError


@dataclass(frozen=True)
class DataPlace:
    """One data set: its name, where it lies (None: where moedd's table says), how it is read.

    `validation`: networks are tested on a part of training that distillation never sees.
    """

    name: str
    path: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    validation: bool = False


@dataclass(frozen=True)
class CellPlaces:
    """`home`: sets, runs, pools and trajectories; `records`: the folder of records; `data`: the
    data sets; `threads` of one cell (None: as torch has it); seconds between checkpoints."""

    home: Path
    records: Path
    data: tuple[DataPlace, ...]
    threads: int | None = None
    checkpoint_seconds: float = 60.0

    def of(self, name: str) -> DataPlace:
        """The place of a data set."""
        return next(place for place in self.data if place.name == name)


@lru_cache(maxsize=2)
def read_data(place: DataPlace) -> RealData:
    """The real data, read once per process."""
    real = load_real(place.name, path=place.path, size=place.size, channels=place.channels)
    return with_validation_part(real) if place.validation else real


def known_facts(place: DataPlace) -> Facts:
    """Facts of data without reading them, for a plan.

    Raises UsageError: only the data themselves can tell.
    """
    spec = DATA.get(place.name)
    size = place.size or (spec.size if spec is not None else None)
    if spec is None or size is None:
        raise UsageError(
            f"the size of the images of {place.name} is not known without reading them: say where "
            f"they are (--data {place.name}=DIR) or give --size"
        )
    return Facts.known(spec, size, place.channels or spec.channels)
