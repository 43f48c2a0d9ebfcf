"""`moedd tables --ray`: from what was asked for and what the cluster has to a way to run cells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from moedd.papertables.asked import Asked
from moedd.papertables.jobs import Outcome, Run, Told, run_on_this_machine
from moedd.papertables.places import CellPlaces
from moedd.papertables.plan import Planned
from moedd.papertables.raycluster import (
    AUTO,
    INSTALL,
    LOCAL,
    Machine,
    is_installed,
    joined,
    machines,
    where,
)
from moedd.papertables.rayjobs import Needs, amount, run_on_ray
from moedd.progress import Reporter
from moedd.tables import counted
from moedd_loaders.errors import NetworkError, UsageError


@contextmanager
def on_ray(asked: Asked, reporter: Reporter) -> Iterator[tuple[Asked, Run]]:
    """What was asked for with jobs, threads and GPUs settled, and the way to run it: on Ray, or
    here where Ray is not installed.

    Raises NetworkError: the Ray that was named cannot be reached. UsageError: no address, or a part
    of GPUs that Ray does not give.
    """
    assert asked.ray is not None
    share = asked.gpus_per_cell
    if share is not None and share > 1 and share != int(share):
        raise UsageError(
            f"--gpus-per-cell {share:g} given; expected a part of one GPU (0.5) or whole ones (2)"
        )
    if not is_installed():
        yield _without(asked, reporter)
        return
    at = where(asked.ray)
    with joined(at, asked.at_once * asked.threads_each):
        found = machines()
        needs = _needs(asked, found)
        settled = replace(
            asked, threads=needs.threads, gpus_per_cell=needs.gpus, jobs=_at_once(needs, found)
        )
        reporter.say(
            f"Ray {f'at {at.address}' if at.address else 'started on this machine'}: "
            f"{counted(len(found), 'machine')}, {counted(settled.at_once, 'cell')} at a time, "
            f"each with {amount(needs)}"
        )

        def run(
            planned: Sequence[Planned], places: CellPlaces, told: Told, reporter: Reporter
        ) -> Outcome:
            return run_on_ray(planned, places, told, needs, reporter)

        yield settled, run


def _without(asked: Asked, reporter: Reporter) -> tuple[Asked, Run]:
    """The same cells without Ray, where no particular one was meant."""
    if asked.ray not in (AUTO, LOCAL):
        raise NetworkError(
            f"--ray {asked.ray} cannot be reached without Ray, which is not installed here: "
            f"{INSTALL}, or give --ray alone to run the cells on this machine"
        )
    how = "one after another" if asked.at_once == 1 else f"in {asked.at_once} processes"
    reporter.say(f"Ray is not installed ({INSTALL}): the cells run {how} on this machine")
    return replace(asked, gpus_per_cell=None), run_on_this_machine(asked.at_once)


def _needs(asked: Asked, found: Sequence[Machine]) -> Needs:
    """What each cell gets, where it was not said: a GPU if there are any, and as many CPUs that
    the cells asked for use all, on each of the machines that can take one."""
    share = asked.gpus_per_cell
    gpus = float(any(machine.gpus >= 1 for machine in found)) if share is None else share
    threads = asked.threads or _threads_there(found, gpus, asked.jobs)
    return Needs(threads, gpus, asked.jobs)


def _threads_there(found: Sequence[Machine], gpus: float, jobs: int | None) -> int:
    fitting = [machine for machine in found if machine.cells(1, gpus)]
    each = [m.cpus // (m.cells_by_gpu(gpus) if gpus else 1) for m in fitting]
    if jobs is not None:
        each.append(sum(machine.cpus for machine in fitting) // jobs)
    return max(1, int(min(each, default=1)))


def _at_once(needs: Needs, found: Sequence[Machine]) -> int:
    fitting = sum(machine.cells(needs.threads, needs.gpus) for machine in found)
    return needs.jobs or max(1, fitting)
