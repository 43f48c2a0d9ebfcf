"""The plots show every network of a board."""

from __future__ import annotations

from pathlib import Path

import factories
import hubfactories
import pytest

from moedd_loaders.records import append_records
from moedd_publish.boardplots import board_plot
from moedd_publish.leaderboard import boards, gather_local


@pytest.mark.parametrize("number", [1, 4, 7])
def test_every_network_has_a_panel(number: int, tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "toy")
    networks = [f"network{n}" for n in range(number)]
    records = [
        hubfactories.make_record(manifest, network=name, variant=variant)
        for name in networks
        for variant in ("distilled", "full")
    ]
    append_records(tmp_path / "toy", records, manifest.training_sha256)
    (board,) = boards(gather_local(tmp_path))
    svg = board_plot(board)
    for name in networks:
        assert svg.count(f">{name}<") == 1
    assert svg.count(">images per class<") == number
    assert svg.count(">all real images<") == 1  # in the legend, once
    assert svg == board_plot(board)
