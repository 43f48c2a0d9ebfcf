"""Sets to publish: fixtures of the tests of pushing."""

from __future__ import annotations

from pathlib import Path

import factories
import hubfactories
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / hubfactories.NAME
    hubfactories.make_set(path)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Other images of the same name, one shard less."""
    path = tmp_path / "other" / hubfactories.NAME
    hubfactories.make_set(path, seed=5, rules=(factories.ROW_TILES,))
    return path
