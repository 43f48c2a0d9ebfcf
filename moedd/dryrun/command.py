"""`moedd distill --dry-run`: a process of its own times the run in a folder that is thrown away."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moedd.dryrun.book import STAGE_FILE
from moedd.dryrun.estimate import Estimate, Stage
from moedd.dryrun.shown import print_estimate
from moedd.dryrun.worker import ARGUMENTS, FOUND
from moedd.pixels import scratch_folder
from moedd.ranks import world
from moedd_loaders import errors
from moedd_loaders.errors import MoeddError, UsageError
from moedd_loaders.resolve import home

_WORKER = ("-m", "moedd.dryrun.worker")
# The peak that the kernel tells of a process counts that of the one it was forked from: this one is
# small. Leaving torch takes memory too, so the peak is known only when the process has ended.
_WAITING = """
import os, subprocess, sys, threading
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
def end_with_parent():
    sys.stdin.read()  # its end is that of the process which holds the other side
    process.kill()
threading.Thread(target=end_with_parent, daemon=True).start()
_, status, used = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
"""
_CACHES = ("pools", "trajectories", "compiled")
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


def run_dry(**arguments: Any) -> None:
    """Print what `moedd distill` with these arguments of `run_distill` would take.

    Raises UsageError: under torchrun, or with an option that has no meaning here. What the run
    itself would refuse is refused alike.
    """
    if world().size > 1:
        raise UsageError(
            "--dry-run times a run of one process and was started by torchrun: start it without, "
            "on a machine of the same kind"
        )
    for option in ("resume", "print_config"):
        if arguments[option]:
            raise UsageError(
                f"--dry-run and --{option.replace('_', '-')} are both given: a dry run is about a "
                "run from its start and ends when it has been timed; leave one of them out"
            )
    estimate = estimated(arguments)
    called = arguments["set_name"] or arguments["name"]
    if (home() / "sets" / called).exists() and not arguments["overwrite"]:
        estimate.notes.append(
            f"{home() / 'sets' / called} exists already: the run needs --overwrite, or a --name"
        )
    print_estimate(estimate)


def estimated(arguments: dict[str, Any]) -> Estimate:
    """What the timing process finds. Whatever it writes is gone afterwards."""
    with TemporaryDirectory(prefix="moedd-dry-run-") as name:
        folder = Path(name)
        mirror(home(), folder / "home")
        # Decoded images go where the run would put them: they can be many.
        own = {"MOEDD_HOME": str(folder / "home"), "MOEDD_SCRATCH": str(scratch_folder())}
        environment = {**os.environ, **own}
        if _COMPILED in os.environ:
            _mirror_folder(Path(os.environ[_COMPILED]), folder / "compiled")
            environment[_COMPILED] = str(folder / "compiled")
        asked = {"arguments": arguments, "started": time.time()}
        (folder / ARGUMENTS).write_text(json.dumps(asked), encoding="utf-8")
        code, peak = _timed(folder, environment)
        ended = time.time()
        found = folder / FOUND
        if code or not found.exists():
            raise _broken(code, folder)
        said = json.loads(found.read_text("utf-8"))
        if "error" in said:
            raise getattr(errors, said["error"], MoeddError)(said["message"])
        estimate = Estimate.model_validate(said["estimate"])
        end = Stage(title="end", amount="1 process", covers="leaving Python and torch")
        end.seconds = ended - found.stat().st_mtime
        end.peak = peak if sys.platform == "darwin" else peak * 1024
        estimate.stages.append(end)
        return estimate


def _timed(folder: Path, environment: dict[str, str]) -> tuple[int, int]:
    """Exit code and `ru_maxrss` of the timing process, which ends when this one does."""
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING, sys.executable, *_WORKER, str(folder)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as waiting:  # fmt: skip
        assert waiting.stdout is not None
        code, peak = map(int, waiting.stdout.read().split())
    return code, peak


def _broken(code: int, folder: Path) -> MoeddError:
    stage = folder / STAGE_FILE
    where = f"timing {stage.read_text('utf-8')}" if stage.exists() else "reading the data"
    if code < 0:
        return MoeddError(
            f"the process that timed the run was killed by signal {-code} while {where}: if the "
            "machine ran out of memory there, the run would do so too"
        )
    return MoeddError(f"the process that timed the run failed while {where}; see above")


def mirror(real: Path, folder: Path) -> None:
    """A `$MOEDD_HOME` in which everything that runs share can be read, and nothing be changed:
    links to its files, in folders of its own, with locks of its own."""
    folder.mkdir()
    for name in _CACHES:
        if (real / name).is_dir():
            _mirror_folder(real / name, folder / name)


def _mirror_folder(real: Path, folder: Path) -> None:
    for parent, _, names in os.walk(real):
        place = folder / os.path.relpath(parent, real)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name != "lock" and not name.endswith(".lock"):
                (place / name).symlink_to(Path(os.path.abspath(parent)) / name)
