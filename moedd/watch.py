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


@dataclass(frozen=True)
class Self:
    """This process: its number, how many there are, and where it runs (`host, process 123`)."""

    rank: int
    size: int
    where: str


class Watch(threading.Thread):
    """Listens from `start` to `end`; ends the process when a rank is lost or it is told to."""

    def __init__(self, store: dist.Store, me: Self) -> None:
        super().__init__(name="moedd-watch", daemon=True)
        self.store, self.me = store, me
        self.others = [rank for rank in range(me.size) if rank != me.rank]
        self.heard: dict[int, tuple[bytes, float]] = {}
        self.count, self.lost = 0, seconds_from("MOEDD_LOST_SECONDS", LOST_SECONDS)
        self.over = threading.Event()
        self._looking = threading.Lock()
        # A signal's number arrives at the pipe at once, even while the main thread is in C code.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def start(self) -> None:
        self.store.set(f"where/{self.me.rank}", self.me.where)
        self._was = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._beat()
        super().start()

    def end(self) -> None:
        """This rank leaves in an orderly way: nobody misses it."""
        self.over.set()
        with contextlib.suppress(RuntimeError), self._looking:
            self.store.set(f"beat/{self.me.rank}", _ENDED)
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGTERM, self._was)

    def may_speak(self) -> bool:
        """True for one rank of the run and once only: who says why it ends."""
        try:
            return bool(self.store.add("said", 1) == 1)
        except RuntimeError:
            return True  # nobody to agree with

    # -- the thread ------------------------------------------------------------------------
    def run(self) -> None:
        while not self.over.is_set():
            ready, _, _ = select.select([self._read], [], [], BEAT_SECONDS)
            if self.over.is_set():
                return
            if ready and signal.SIGTERM in os.read(self._read, 64):
                self.leave(self.explain("was asked to end (SIGTERM)"))
            try:
                with self._looking:
                    if self.over.is_set():
                        return
                    self._beat()
                    gone = self._silent(self.lost)
            except RuntimeError as error:
                self.leave(self._no_store(error))
            if gone:
                self.leave(self._sentence(gone, f"has not been heard of for {self.lost:g} seconds"))

    def _beat(self) -> None:
        self.count += 1
        self.store.set(f"beat/{self.me.rank}", str(self.count))
        now = time.monotonic()
        for rank in self.others:
            if self.store.check([f"beat/{rank}"]):
                count = self.store.get(f"beat/{rank}")
                if count != self.heard.get(rank, (b"", 0.0))[0]:
                    self.heard[rank] = (count, now)

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [
            rank
            for rank, (count, when) in self.heard.items()
            if count != _ENDED.encode() and now - when > seconds
        ]

    # -- what is said ----------------------------------------------------------------------
    def explain(self, otherwise: str) -> str:
        """Why this rank cannot go on: who is gone, found out in a few seconds; empty where another
        rank has said it. `otherwise`: what befell this rank, where nobody is."""
        ends = time.monotonic() + _LOOKING_SECONDS
        try:
            while time.monotonic() < ends:
                if self.store.check(["said"]):
                    return ""
                with self._looking:
                    self._beat()
                    gone = self._silent(SILENT_SECONDS)
                if gone:
                    return self._sentence(gone, "is gone (killed, or its host or network is down)")
                time.sleep(0.1)
        except RuntimeError as error:
            return self._no_store(error)
        return f"rank {self.me.rank} of {self.me.size} ({self.me.where}) {otherwise}: {_GO_ON}"

    def _sentence(self, gone: list[int], how: str) -> str:
        who = []
        for rank in gone:
            where = self.store.get(f"where/{rank}").decode()
            who.append(f"rank {rank} of {self.me.size} ({where})")
        return f"{' and '.join(who)} {how}, so the run ends: {_GO_ON}"

    def _no_store(self, error: Exception) -> str:
        return (
            f"rank {self.me.rank} of {self.me.size} ({self.me.where}) cannot reach the others any "
            f"more ({_first_line(error)}): look whether rank 0's host and the network between them "
            f"are up, then {_GO_ON}"
        )

    def leave(self, sentence: str, code: int = 6) -> NoReturn:
        """Say the sentence unless somebody has said one, and end this process now."""
        if sentence and self.may_speak():
            sys.stdout.flush()
            print(f"moedd: {sentence}", file=sys.stderr, flush=True)
        os._exit(code)


_GO_ON = "start it again with --resume, on as many ranks as you like"


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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
