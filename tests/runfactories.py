"""Tiny runs on scikit-learn's digits: seconds become tenths of a second, the path stays whole."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moedd.cli import main
from moedd.config import RunConfig, resolve_config
from moedd.distill import Effort, Places, distill
from moedd.diversity import DiversityConfig
from moedd.experts import expert_class
from moedd.networks import fitting_network
from moedd.pool import PoolConfig
from moedd.profile import Profile, choose_profile
from moedd.progress import Reporter
from moedd.realdata import RealData, load_real
from moedd_loaders.manifest import Manifest
from moedd_loaders.names import parse_name

TINY = (
    *("width=8", "pool.networks=1", "pool.steps=2", "pool.every=1", "pool.batch=8"),
    *("diversity.every=2", "evaluation.epochs=1", "evaluation.repeats=1"),
)
"""Settings of every tiny run."""
TINY_METHODS = {
    "idm": ("idm.batch_real=8", "idm.steps=4"),
    "idm_plain": ("idm_plain.batch_real=8", "idm_plain.steps=4"),
    "idc": ("idc.batch_real=8", "idc.steps=4"),
    "idc_i": ("idc_i.batch_real=8", "idc_i.steps=4"),
    "dm": ("dm.batch_real=8", "dm.steps=4"),
    "dc": ("dc.batch_real=8", "dc.steps=4", "dc.outer=2", "dc.inner=1"),
    "dsa": ("dsa.batch_real=8", "dsa.steps=4", "dsa.outer=2", "dsa.inner=1"),
    "rded": ("rded.observer_steps=60", "rded.observer_lr=0.1", "rded.images_per_class=20"),
    "mtt": (
        *("mtt.steps=4", "mtt.syn_steps=3", "mtt.expert_epochs=1", "mtt.max_start_epoch=2"),
        *("mtt.trajectories=2", "mtt.trajectory_batch=256"),
    ),
}
"""Settings of the experts of a tiny run, by method."""
MOVING = ("idc", "idc_i", "idm", "idm_plain", "dm", "dsa", "dc", "mtt")
"""Methods that move images step by step."""
AT_ONCE = ("rded", "random", "herding", "kcenter")
"""Methods that make their images at once."""
VARIABLE = ("moedd.json", "README.md", "checksums.sha256")
"""Files of a set that hold times: they differ between two runs of the same configuration."""


@functools.cache
def digits() -> RealData:
    """The digits, read once."""
    return load_real("digits")


@functools.cache
def profile() -> Profile:
    """The device profile, probed once."""
    return choose_profile()


def tiny_settings(name: str, *more: str) -> list[str]:
    """`key=value` settings that make the run `name` tiny; `more` comes last and wins."""
    methods = [setting for m in parse_name(name).methods for setting in TINY_METHODS.get(m, ())]
    return [*TINY, *methods, *more]


def tiny_config(name: str = "digits-idm-1x2", *more: str, seed: int = 0) -> RunConfig:
    """The resolved configuration of a tiny run on digits."""
    parsed = parse_name(name)
    return resolve_config(parsed, (1, 8, 8), seed=seed, overrides=tiny_settings(name, *more))


def config_on(real: RealData, methods: Sequence[str], ipc: int) -> RunConfig:
    """A tiny run on any data: three steps of each method, a diversity step after each."""
    experts = tuple(expert_class(m).config_class(ipc=ipc, steps=3) for m in methods)
    return RunConfig(
        data=real.data,
        shape=real.shape,
        methods=tuple(methods),
        ipc=ipc,
        network=fitting_network(real.shape[1:], real.shape[0]),
        width=8,
        pool=PoolConfig(networks=1, steps=2, every=1, batch=8),
        diversity=DiversityConfig(every=1),
        experts=experts,
    )


def tiny_run(
    home: Path,
    name: str = "digits-idm-1x2",
    *more: str,
    called: str = "run",
    seed: int = 0,
    real: RealData | None = None,
    effort: Effort | None = None,
    **given: Any,
) -> Manifest:
    """Distil on digits (or `real`) into `home/sets/CALLED`, silently."""
    return distill(
        tiny_config(name, *more, seed=seed),
        real or digits(),
        Places(home, home / "sets" / called, called),
        effort or Effort(),
        profile(),
        reporter=Reporter(quiet=True),
        **given,
    )


def tiny_arguments(name: str = "digits-idm-1x2", *more: str) -> list[str]:
    """Command-line arguments of a tiny run."""
    arguments = ["distill", name, "--schedule", "paper", "--no-evaluate"]
    for setting in tiny_settings(name, *more):
        arguments += ["--set", setting]
    return arguments


def payload(folder: Path) -> dict[str, bytes]:
    """Every file of a set that must be the same whenever it is made, by relative path."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert set(VARIABLE) <= set(files)
    return {name: path.read_bytes() for name, path in files.items() if name not in VARIABLE}


def tree(folder: Path) -> dict[str, int]:
    """Everything under a folder with its size (folders: -1), to see whether anything was left."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }


@dataclass(frozen=True)
class Told:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error, which must be the last line, one sentence, and no traceback."""
        assert "Traceback" not in self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("moedd: "), self.err
        assert not re.search(r"[.!?] +[A-Z]", line), f"more than one sentence: {line}"
        return line


def cli(*arguments: str | Path) -> Told:
    """`moedd ARGUMENTS` in this process: an import of torch less than a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _argv(["moedd", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Told(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def make_home(folder: Path, pools: Path) -> Path:
    """An empty `$MOEDD_HOME` whose pools are the shared ones: trained once per test session."""
    folder.mkdir(parents=True)
    os.symlink(pools, folder / "pools", target_is_directory=True)
    return folder
