"""Shared by all tests: nobody writes to the person's own `$MOEDD_HOME` or asks the network."""

import os
from collections.abc import Iterator
from pathlib import Path

import hubfactories
import pytest
from hub_server import HubServer

# The Hub's clients read where the Hub is when they are imported, so it is said here, before any
# test is. Until a test starts it, connections to it are refused.
HUB = HubServer()
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def moedd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$MOEDD_HOME` of the test's own."""
    home = tmp_path / "moedd-home"
    monkeypatch.setenv("MOEDD_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture(scope="session")
def running_hub() -> Iterator[HubServer]:
    """The one Hub of the session; use `hub`, which is empty."""
    with HUB:
        yield HUB


@pytest.fixture
def hub(
    running_hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """An empty Hub; the clients are logged in as someone, with caches of their own, and do not
    wait between tries."""
    running_hub.reset()
    hubfactories.fresh_client(monkeypatch, tmp_path / "hf")
    hubfactories.log_in(monkeypatch, "hf_writer")
    yield running_hub
    running_hub.reset()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test fails the run, unless it is skipped for want of hardware."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None or exitstatus != 0:
        return
    skipped = reporter.stats.get("skipped", [])
    if any("hardware" not in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
