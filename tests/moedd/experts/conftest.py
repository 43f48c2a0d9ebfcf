"""What experts draw while they work, recorded, so that slow versions can replay it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from moedd.augment import Draw
from moedd.experts import dc, dm, idc, moving
from moedd.networks import Network
from moedd.parts import PartData


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The rows of every real batch that a part gives out, in order."""
    rows: list[Tensor] = []
    plain = PartData.unit

    def unit(self: PartData, index: Tensor) -> Tensor:
        rows.append(index.clone())
        return plain(self, index)

    monkeypatch.setattr(PartData, "unit", unit)
    return rows


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], Draw]]:
    """(families asked for, draw) of every matching augmentation, in order."""
    draws: list[tuple[tuple[str, ...], Draw]] = []

    def recording(plain: Any) -> Any:
        def draw(generator: Any, n: int, shape: Any, names: Any, shared: bool) -> Draw:
            draws.append((tuple(names), plain(generator, n, shape, names, shared)))
            return draws[-1][1]

        return draw

    monkeypatch.setattr(moving, "draw_dsa", recording(moving.draw_dsa))
    monkeypatch.setattr(idc, "draw_idc", recording(idc.draw_idc))
    return draws


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """Copies of the networks that DM, DC and DSA make, as they begin."""
    made: list[Network] = []
    plain = dm.fresh_network

    def fresh(like: Network, generator: torch.Generator) -> Network:
        network = plain(like, generator)
        made.append(deepcopy(network))
        return network

    for module in (dm, dc):
        monkeypatch.setattr(module, "fresh_network", fresh)
    return made
