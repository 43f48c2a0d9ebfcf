"""Processes that take turns: each side of a comparison lives in a process of its own.

A worker is forked before anything was computed, sets itself up, and then waits for its turn; only
one of them runs at any time. So every side has its own allocator, its own peak of memory, and none
warms a cache for another.
"""

import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType

import torch

Timed = Callable[[], float]
"""Runs a job once and returns milliseconds."""


class Worker:
    """A process that holds jobs by name. `make(name)` runs in it and returns the job."""

    def __init__(self, make: Callable[[str], Timed]) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._asked = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Told to stop: closing is no sign, workers forked later hold this end open too.
        with suppress(OSError):
            self._connection.send(("stop", ""))
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()

    def begin(self, name: str) -> None:
        """Let the worker set a job up, without waiting for it."""
        self._connection.send(("set up", name))
        self._asked += 1

    def ready(self) -> None:
        """Wait until what `begin` asked for is done."""
        while self._asked:
            self._asked -= 1
            self._answer()

    def turn(self, name: str) -> float:
        """Let the worker run a job once; milliseconds. Sets it up first if nobody has."""
        return self._ask("turn", name)

    def forget_peak(self) -> None:
        """Count the peak of memory from now on (from what the process holds already)."""
        self._ask("forget")

    def peak_mb(self) -> float:
        """Peak resident memory of the worker (on CUDA: of the device), MB. Where code was compiled
        in it, the compiler's own memory counts."""
        return self._ask("peak")

    def _ask(self, what: str, name: str = "") -> float:
        self.ready()
        self._connection.send((what, name))
        return self._answer()

    def _answer(self) -> float:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("a timing process died, perhaps for want of memory") from None
        if isinstance(answer, str):
            raise RuntimeError(f"a timing process failed:\n{answer}")
        return float(answer)


class Here(Worker):
    """The same in this process, for a CUDA device: it is not the host's memory that counts there,
    and a process that has touched the device cannot be forked."""

    def __init__(self, make: Callable[[str], Timed]) -> None:
        self._make = make
        self._jobs: dict[str, Timed] = {}

    def __exit__(self, *error: object) -> None:
        self._jobs.clear()

    def begin(self, name: str) -> None:
        self._jobs[name] = self._make(name)

    def ready(self) -> None:
        pass

    def turn(self, name: str) -> float:
        if name not in self._jobs:
            self.begin(name)
        return self._jobs[name]()

    def forget_peak(self) -> None:
        _forget_peak()

    def peak_mb(self) -> float:
        return _peak_mb()


def _serve(make: Callable[[str], Timed], connection: Connection) -> None:
    jobs: dict[str, Timed] = {}
    try:
        while True:
            what, name = connection.recv()
            if what == "stop":
                return
            if name and name not in jobs:
                jobs[name] = make(name)
            if what == "forget":
                _forget_peak()
            connection.send(
                jobs[name]() if what == "turn" else _peak_mb() if what == "peak" else 0.0
            )
    except EOFError:
        return
    except BaseException:
        connection.send(traceback.format_exc())


def _forget_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _peak_mb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is inherited from the process that forked this one.
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
