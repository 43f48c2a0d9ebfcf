"""Dry runs in this process: a second instead of the start of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from dryrunfactories import Dry, arguments
from runfactories import tiny_settings

from moedd import timing
from moedd.commands import run_distill
from moedd.dryrun.command import mirror
from moedd.dryrun.estimate import Estimate
from moedd.dryrun.measure import Measurement


@pytest.fixture
def home(moedd_home: Path) -> Path:
    """The test's own `$MOEDD_HOME`, with pools of its own."""
    moedd_home.mkdir()
    return moedd_home


@pytest.fixture
def dry(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dry:
    """`dry(NAME, *settings)`: the estimate of a tiny run over what `home` holds."""
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    calls: list[Path] = []

    def run(name: str, *settings: str, evaluate: bool = False, **more: object) -> Estimate:
        folder = tmp_path / f"dry-{len(calls)}"
        folder.mkdir()
        calls.append(folder)
        mirror(home, folder / "home")
        found: list[Estimate] = []
        asked = arguments(name, *tiny_settings(name, *settings), evaluate_after=evaluate)
        asked |= {"schedule": "paper", **more}
        with monkeypatch.context() as patch:
            patch.setenv("MOEDD_HOME", str(folder / "home"))
            run_distill(
                **asked, instead=lambda work: found.append(Measurement(work, folder).estimate([]))
            )
        return found[0]

    return run
