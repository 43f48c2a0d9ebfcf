"""Finding out that a rank is gone, and saying so once.

Every rank counts aloud in torch's store, once a second, and listens to the others. One that has not
counted for `LOST_SECONDS` is gone, however it went: killed, hung, its host switched off, its
network cut. torchrun notices a killed process of its own host at once and asks the others to end;
then, as after a failed collective, `SILENT_SECONDS` of silence are enough to name it.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

import torch.distributed as dist

from moedd_loaders.errors import UsageError

BEAT_SECONDS = 1.0
SILENT_SECONDS = 3.0
LOST_SECONDS = 30.0
_LOOKING_SECONDS = 8.0
_ENDED = "ended"
_GO_ON = "start it again with --resume, on as many ranks as you like"


@dataclass(frozen=True)
class Self:
    """This process: its number, how many there are, and where it runs (`host, process 123`)."""

    rank: int
    size: int
    where: str

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} ({self.where})"


class Pulse(threading.Thread):
    """Counts in the store and hears the others count. A thread of its own: where the network is
    cut, a store does not answer, and does not fail either."""

    def __init__(self, store: dist.Store, me: Self) -> None:
        super().__init__(name="moedd-pulse", daemon=True)
        self.store, self.me = store, me
        self.heard: dict[int, tuple[bytes, float]] = {}
        self.where: dict[int, str] = {me.rank: me.where}
        self.said = False
        self.over = threading.Event()
        self.answered = time.monotonic()
        self.failure: RuntimeError | None = None
        self._count = 0
        self._turn = threading.Lock()

    def run(self) -> None:
        try:
            while not self.over.wait(BEAT_SECONDS):
                self.beat()
        except RuntimeError as error:
            self.failure = error

    def beat(self) -> None:
        """Count once, and hear what the others count."""
        with self._turn:
            if self.over.is_set():
                return
            if self._count == 0:
                self.store.set(f"where/{self.me.rank}", self.me.where)
            self._count += 1
            self.store.set(f"beat/{self.me.rank}", str(self._count))
            for rank in range(self.me.size):
                if rank != self.me.rank and self.store.check([f"beat/{rank}"]):
                    self._hear(rank, self.store.get(f"beat/{rank}"))
            self.said = self.said or self.store.check(["said"])
            self.answered = time.monotonic()

    def _hear(self, rank: int, count: bytes) -> None:
        if rank not in self.where:
            self.where[rank] = self.store.get(f"where/{rank}").decode()
        if rank not in self.heard or count != self.heard[rank][0]:
            self.heard[rank] = (count, time.monotonic())

    def end(self) -> None:
        """This rank leaves in an orderly way: nobody misses it. Rank 0, whose process or host may
        hold the store, lets the others go first."""
        ends = time.monotonic() + _LOOKING_SECONDS
        while self.me.rank == 0 and not self._alone() and time.monotonic() < ends:
            time.sleep(0.05)
        with self._turn, contextlib.suppress(RuntimeError):
            self.over.set()
            self.store.set(f"beat/{self.me.rank}", _ENDED)

    def _alone(self) -> bool:
        ended = [count == _ENDED.encode() for count, _ in list(self.heard.values())]
        return bool(self.failure) or all(ended)

    def unheard(self) -> list[int]:
        """The ranks that have not counted once."""
        return [r for r in range(self.me.size) if r != self.me.rank and r not in self.heard]

    def silent(self, seconds: float) -> list[int]:
        """The ranks that had not counted for so long when this one last listened, and have not
        ended. (A busy machine may keep this rank from listening.)"""
        return [
            rank
            for rank, (count, when) in list(self.heard.items())
            if count != _ENDED.encode() and self.answered - when > seconds
        ]


class Watch(threading.Thread):
    """Looks after the ranks from `start` to `end`; ends the process when one is lost, or when it
    is told to."""

    def __init__(self, store: dist.Store, me: Self) -> None:
        super().__init__(name="moedd-watch", daemon=True)
        self.me, self.store = me, store
        self.pulse = Pulse(store, me)
        self.lost = seconds_from("MOEDD_LOST_SECONDS", LOST_SECONDS)
        self.over = self.pulse.over
        # A signal's number arrives at the pipe at once, even while the main thread is in C code.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def start(self) -> None:
        self._was = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self.pulse.beat()
        self.pulse.start()
        super().start()

    def end(self) -> None:
        """This rank leaves in an orderly way."""
        self.pulse.end()
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGTERM, self._was)

    def run(self) -> None:
        while not self.over.is_set():
            ready, _, _ = select.select([self._read], [], [], BEAT_SECONDS)
            if self.over.is_set():
                return
            if ready and signal.SIGTERM in os.read(self._read, 64):
                self.leave(self.explain("was asked to end (SIGTERM)"))
            if self._cut_off(self.lost):
                self.leave(self._no_store(), alone=True)
            if gone := self.pulse.silent(self.lost):
                self.leave(self._sentence(gone, f"has not been heard of for {self.lost:g} seconds"))

    def _cut_off(self, seconds: float) -> bool:
        return bool(self.pulse.failure) or time.monotonic() - self.pulse.answered > seconds

    # -- what is said ----------------------------------------------------------------------
    def explain(self, otherwise: str) -> str:
        """Why this rank cannot go on: who is gone, found out in a few seconds; empty where another
        rank has said it. `otherwise`: what befell this rank, where nobody is."""
        ends = time.monotonic() + _LOOKING_SECONDS
        while time.monotonic() < ends:
            if self.pulse.said:
                return ""
            if self._cut_off(2 * SILENT_SECONDS):
                return self._no_store()
            if gone := self.pulse.silent(SILENT_SECONDS):
                return self._sentence(gone, "is gone (killed, or its host or network is down)")
            time.sleep(0.1)
        if unheard := self.pulse.unheard():
            who = " and ".join(f"rank {rank}" for rank in unheard)
            return (
                f"{who} of {self.me.size} never came, or was killed while it started, so the run "
                f"ends: {_GO_ON}"
            )
        return f"{self.me} {otherwise}: {_GO_ON}"

    def _sentence(self, gone: list[int], how: str) -> str:
        who = " and ".join(str(Self(r, self.me.size, self.pulse.where[r])) for r in gone)
        return f"{who} {how}, so the run ends: {_GO_ON}"

    def _no_store(self) -> str:
        return (
            f"{self.me} cannot reach the others any more: look whether rank 0's host and the "
            f"network between them are up, then {_GO_ON}"
        )

    def may_speak(self) -> bool:
        """True for one rank of the run and once only: who says why it ends. A rank that is cut off
        speaks for itself."""
        try:
            return self._cut_off(2 * SILENT_SECONDS) or bool(self.store.add("said", 1) == 1)
        except RuntimeError:
            return True

    def leave(self, sentence: str, code: int = 6, alone: bool = False) -> NoReturn:
        """Say the sentence unless somebody has said one (`alone`: nobody can be asked), and end
        this process now."""
        if sentence and (alone or self.may_speak()):
            sys.stdout.flush()
            print(f"moedd: {sentence}", file=sys.stderr, flush=True)
        os._exit(code)


def seconds_from(variable: str, default: float) -> float:
    """The seconds that an environment variable says, or the default."""
    text = os.environ.get(variable, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"{variable}={text!r} is set, expected seconds above 0, for example 120")
    return seconds
