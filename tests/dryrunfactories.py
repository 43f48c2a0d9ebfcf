"""Estimates of a dry run, and what a real run took: in processes as people start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankfactories import environment

from moedd.dryrun.command import estimated
from moedd.dryrun.estimate import Estimate

Dry = Callable[..., Estimate]
"""`dry(NAME, *settings)`: the estimate of a tiny run (a fixture of `moedd/dryrun`)."""

_LAUNCHER = """
import resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.call([sys.executable, "-m", "moedd", *sys.argv[1:]], stdout=2)
print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)
"""


def arguments(name: str, *settings: str, **more: Any) -> dict[str, Any]:
    """What the command line hands over for `moedd distill NAME --set SETTING...`."""
    plain: dict[str, Any] = {
        "name": name,
        "data": None,
        "size": None,
        "channels": None,
        "skip_bad": False,
        "note": None,
        "set_name": None,
        "schedule": None,
        "max_hours": None,
        "overrides": list(settings),
        "seed": 0,
        "resume": False,
        "overwrite": False,
        "evaluate_after": None,
        "print_config": False,
        "checkpoint_seconds": 60.0,
        "profile_name": None,
        "validation": False,
    }
    assert set(more) <= set(plain)
    return {**plain, **more}


def command_line(asked: dict[str, Any]) -> list[str]:
    """The same as a person types it; only the options that these tests use."""
    line = ["distill", asked["name"]]
    for option in ("schedule", "size", "max_hours"):
        if asked[option] is not None:
            line += [f"--{option.replace('_', '-')}", str(asked[option])]
    if asked["evaluate_after"] is not None:
        line.append("--evaluate" if asked["evaluate_after"] else "--no-evaluate")
    for setting in asked["overrides"]:
        line += ["--set", setting]
    return line


def estimate_of(asked: dict[str, Any]) -> Estimate:
    """What the dry run says."""
    return estimated(asked)


def truth_of(home: Path, asked: dict[str, Any]) -> tuple[float, int]:
    """Seconds and peak resident bytes of the run itself.

    Started by a small process: a child's peak counts that of the process it was forked from.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, *command_line(asked)],
        env=environment(home, OMP_NUM_THREADS=threads),
        capture_output=True,
        check=True,
    )
    seconds, kilobytes, code = done.stdout.decode().split()
    assert code == "0", done.stderr.decode()
    return float(seconds), int(kilobytes) * 1024
