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
"""Runs the job once and returns milliseconds."""


class Worker:
    """A process that holds one job. `make()` runs in it and returns the job."""

    def __init__(self, make: Callable[[], Timed]) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()

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
            self._connection.send("stop")
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()

    def begin(self) -> None:
        """Let the worker set its job up, without waiting for it."""
        self._connection.send("set up")

    def ready(self) -> None:
        """Wait until what `begin` asked for is done."""
        self._answer()

    def turn(self) -> float:
        """Let the worker run its job once; milliseconds. Sets it up first if nobody has."""
        return self._ask("turn")

    def peak_mb(self) -> float:
        """Peak resident memory of the worker so far (on CUDA: of the device), MB. Where code was
        compiled in it, the compiler's own memory counts."""
        return self._ask("peak")

    def _ask(self, what: str) -> float:
        self._connection.send(what)
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

    def __init__(self, make: Callable[[], Timed]) -> None:
        self._make = make
        self._job: Timed | None = None
        self._peak = 0.0

    def __exit__(self, *error: object) -> None:
        self._job = None
        torch.cuda.empty_cache()

    def begin(self) -> None:
        pass

    def ready(self) -> None:
        self._job = self._job or self._make()

    def turn(self) -> float:
        self.ready()
        assert self._job is not None
        torch.cuda.reset_peak_memory_stats()
        milliseconds = self._job()
        self._peak = max(self._peak, _peak_mb())
        return milliseconds

    def peak_mb(self) -> float:
        return self._peak


def _serve(make: Callable[[], Timed], connection: Connection) -> None:
    job: Timed | None = None
    try:
        while True:
            what = connection.recv()
            if what == "stop":
                return
            if what == "peak":
                connection.send(_peak_mb())
                continue
            job = job or make()
            connection.send(0.0 if what == "set up" else job())
    except EOFError:
        return
    except BaseException:
        connection.send(traceback.format_exc())


def _peak_mb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is inherited from the process that forked this one.
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
