"""One rank of a job that makes tiny runs: `ranks_worker.py CALLED,NAME,SETTING... ...`.

A run called `odd...` is made on noise of five classes of unequal sizes, the others on digits.
"""

from __future__ import annotations

import sys

from enginefactories import random_data
from runfactories import config_on, digits, tiny_config

from moedd.config import RunConfig
from moedd.distill import Effort, Places, distill
from moedd.launch import joined
from moedd.profile import choose_profile
from moedd.progress import Reporter
from moedd.ranks import world
from moedd.realdata import RealData
from moedd_loaders.names import parse_name
from moedd_loaders.resolve import home


def job(called: str, name: str, *settings: str) -> tuple[RunConfig, RealData]:
    """The configuration and the data of a run."""
    if called.startswith("odd"):
        real = random_data((12, 9, 10, 8, 11))
        parsed = parse_name(name)
        return config_on(real, parsed.methods, parsed.ipc), real
    return tiny_config(name, *settings), digits()


def make(called: str, name: str, *settings: str) -> None:
    """Distil it into `$MOEDD_HOME/sets/CALLED`, silently."""
    config, real = job(called, name, *settings)
    places = Places(home(), home() / "sets" / called, called)
    reporter = Reporter(quiet=not world().first)
    distill(config, real, places, Effort(), choose_profile(), reporter=reporter)


if __name__ == "__main__":
    with joined():
        for spec in sys.argv[1:]:
            make(*spec.split(","))
