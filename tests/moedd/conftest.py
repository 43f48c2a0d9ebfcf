"""Fixtures of the engine's tests: a private `$MOEDD_HOME` with shared pools, one finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
from runfactories import make_home, tiny_run


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny pools are kept for the whole session."""
    return tmp_path_factory.mktemp("pools")


@pytest.fixture
def home(moedd_home: Path, pools: Path) -> Path:
    """The test's own `$MOEDD_HOME`, empty but for the shared pools."""
    return make_home(moedd_home, pools)


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> Path:
    """A `$MOEDD_HOME` with the finished runs `pair` (two experts) and `single`: read only."""
    folder = make_home(tmp_path_factory.mktemp("finished") / "home", pools)
    tiny_run(folder, "digits-idm-1x2", called="pair")
    tiny_run(folder, "digits-idm-1x1", called="single")
    return folder
