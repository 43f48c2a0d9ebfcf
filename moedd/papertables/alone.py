"""One at a time: locks between processes, and between machines that share `$MOEDD_HOME`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

LOCKS = "locks"


@contextmanager
def alone(home: Path, what: str, leave: bool = True) -> Iterator[None]:
    """Nobody else does `what` at the same time; the system gives up the lock of a killed process.

    With `leave` False the lock's file goes when `what` is done: only for what is found done by who
    waited for it and by who comes later.
    """
    folder = home / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}.lock"
    with FileLock(path):
        yield
        if not leave:
            path.unlink(missing_ok=True)
