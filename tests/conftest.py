"""Shared by all tests: nobody writes to the person's own `$MOEDD_HOME` or asks the network."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def moedd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$MOEDD_HOME` of the test's own."""
    home = tmp_path / "moedd-home"
    monkeypatch.setenv("MOEDD_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home
