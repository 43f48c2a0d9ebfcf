"""What the command `moedd tables` was asked for, from text to `Options` and `CellPlaces`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moedd.config import schedule_fraction
from moedd.datatable import DATA
from moedd.papertables.cells import Arithmetic
from moedd.papertables.paper import data_sets
from moedd.papertables.places import CellPlaces, DataPlace
from moedd.papertables.plan import Options
from moedd.papertables.rows import DEFAULT_GROUPS, TABLES
from moedd.profile import choose_profile
from moedd.protocols import own_epochs, protocol_recipe
from moedd_loaders.errors import UsageError
from moedd_loaders.resolve import home


@dataclass(frozen=True)
class Asked:
    """The options of the command line, as they were given; None where they were not."""

    table: str | None = None
    on: str | None = None
    data: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    budget: str | None = None
    only: str | None = None
    rows: str | None = None
    networks: str | None = None
    seeds: int = 3
    repeats: str = "3"
    draws: int = 3
    schedule: str = "short"
    settings: tuple[str, ...] = ()
    protocol: str = "common"
    epochs: int | None = None
    width: int = 128
    best: bool = False
    validation: bool = False
    profile: str | None = None
    evaluation_profile: str | None = None
    records: str | None = None
    jobs: int | None = None
    threads: int | None = None
    checkpoint_seconds: float = 60.0
    ray: str | None = None
    gpus_per_cell: float | None = None

    @property
    def at_once(self) -> int:
        """Cells at the same time."""
        return self.jobs or 1

    @property
    def threads_each(self) -> int:
        """Threads of each cell on this machine, where it was not said: those that torch has, or a
        share of the cores."""
        if self.threads or self.at_once == 1:
            return self.threads or torch.get_num_threads()
        return max(1, (os.cpu_count() or 1) // self.at_once)

    def options(self) -> Options:
        """Checked as far as no data are needed.

        Raises UsageError: anything that is no table, schedule, protocol, number.
        """
        protocol_recipe(self.protocol, self.epochs, self.best)
        distilling = self._arithmetic(self.profile)
        repeats, repeats_of = _repeats(self.repeats)
        made = Options(
            tables=_tables(self.table),
            budgets=_numbers("--budget", self.budget),
            only=_words(self.only),
            groups=_words(self.rows) or DEFAULT_GROUPS,
            networks=_words(self.networks) or None,
            seeds=self.seeds,
            repeats=repeats,
            repeats_of=repeats_of,
            draws=self.draws,
            schedules=_schedules(self.schedule),
            settings=self.settings,
            protocol=self.protocol,
            epochs=self.epochs or own_epochs(self.protocol),
            width=self.width,
            best=self.best,
            distilling=distilling,
            evaluating=self._arithmetic(self.evaluation_profile or self.profile),
        )
        made.check()
        return made

    def places(self, tables: Sequence[int]) -> CellPlaces:
        """Where the cells find and leave things."""
        data = tuple(
            DataPlace(name, path, self.size, self.channels, self.validation)
            for name, path in data_paths(self.on, self.data, tables).items()
        )
        return CellPlaces(
            home(), self.records_folder(), data, self.threads_each, self.checkpoint_seconds
        )

    def _arithmetic(self, profile: str | None) -> Arithmetic:
        """On this machine, or where it is known whether cells have a GPU, there."""
        gpus = self.gpus_per_cell
        return arithmetic(profile, None if gpus is None else gpus > 0)

    def left_out(self, tables: Sequence[int]) -> list[str]:
        """The paper's data sets that one `--data DIR` leaves out."""
        chosen = data_paths(self.on, self.data, tables)
        return [] if self.on else [name for name in _of_the_paper(tables) if name not in chosen]

    def records_folder(self) -> Path:
        """Where records lie: a folder of the caller's, else one under `$MOEDD_HOME`."""
        own = home() / "records" / "tables"
        return Path(self.records).expanduser() if self.records else own


def arithmetic(profile: str | None, on_gpu: bool | None = None) -> Arithmetic:
    """A profile, resolved, with what it computes in on this machine, or on a GPU or CPU like that
    of this machine."""
    if on_gpu:
        name = choose_profile(profile or "auto").name
        return Arithmetic(name, "bfloat16" if name == "fast" else "float32")
    chosen = choose_profile(profile or "auto", None if on_gpu is None else "cpu")
    return Arithmetic(chosen.name, chosen.precision)


def data_paths(
    on: str | None, given: Sequence[str], tables: Sequence[int]
) -> dict[str, str | None]:
    """Data sets by name, and where they lie.

    `on`: names with commas; else those of the paper's tables. `given`: `NAME=PATH`, or one PATH,
    which is that of the one data set there is, or of CIFAR-10: then the tables are of it alone.
    """
    named = dict(text.split("=", 1) for text in given if "=" in text)
    bare = [text for text in given if "=" not in text]
    names = list(_words(on)) or _of_the_paper(tables)
    if len(bare) > 1 or (bare and named):
        raise UsageError(
            f"--data is given {len(given)} times: say which data set each is, for example "
            "--data cifar10=DIR --data cifar100=DIR"
        )
    if bare:
        if on is None:
            names = names[:1]
        if len(names) > 1:
            raise UsageError(
                f"--data {bare[0]} is given for {' and '.join(names)}: say which it is, "
                f"--data {names[0]}={bare[0]}"
            )
        named = {names[0]: bare[0]}
    for name in named:
        if name not in names:
            raise UsageError(
                f"--data {name}=... is given and the tables are on {', '.join(names)}: add --on "
                f"{','.join([*names, name])}"
            )
    for name in names:
        if name not in named and name not in DATA:
            raise UsageError(
                f"{name} is no data set that moedd knows by name: say where it is, "
                f"--data {name}=DIR"
            )
    return {name: named.get(name) for name in names}


def _of_the_paper(tables: Sequence[int]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in data_sets(table)))


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in (text or "").split(",") if word.strip())


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    words = _words(text)
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"{option} {text} given; expected numbers with commas, such as 10,20")
    return tuple(int(word) for word in words) or None


def _tables(text: str | None) -> tuple[int, ...]:
    numbers = _numbers("--table", text) or TABLES
    wrong = [number for number in numbers if number not in TABLES]
    if wrong:
        raise UsageError(f"--table {wrong[0]} given; the paper's tables are 1, 2, 3 and 4")
    return numbers


def _repeats(text: str) -> tuple[int, dict[str, int]]:
    """`3,resnet18=2`: of all networks, and of some."""
    usual, special = 3, {}
    for word in _words(text):
        network, equal, number = word.rpartition("=")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise UsageError(
                f"--repeats {text} given; expected networks per set, such as 3 or 3,resnet18=2"
            )
        if equal:
            special[network] = int(number)
        else:
            usual = int(number)
    return usual, special


def _schedules(text: str) -> dict[str, float]:
    """`0.02,idc=0.002`: of all methods, and of some."""
    found = {"": schedule_fraction("short")}
    for word in _words(text):
        family, _, schedule = word.rpartition("=")
        found[family] = schedule_fraction(schedule)
    return found
