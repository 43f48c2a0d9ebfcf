"""Shared by all tests: nobody writes to the person's own `$MOEDD_HOME` or asks the network."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def moedd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$MOEDD_HOME` of the test's own."""
    home = tmp_path / "moedd-home"
    monkeypatch.setenv("MOEDD_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test fails the run, unless it is skipped for want of hardware."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None or exitstatus != 0:
        return
    skipped = reporter.stats.get("skipped", [])
    if any("hardware" not in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
