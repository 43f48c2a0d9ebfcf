"""The text that says how experts are mixed."""

from __future__ import annotations

import pytest

from moedd.fusion import fusion_of
from moedd_loaders.errors import UsageError


@pytest.mark.parametrize(
    ("fuse", "wanted"),
    [("none", ("none", 1.0)), ("mixup", ("mixup", 1.0)), ("vanilla:0.4", ("vanilla", 0.4))],
)
def test_mode_and_parameter(fuse: str, wanted: tuple[str, float]) -> None:
    assert fusion_of(fuse) == wanted


@pytest.mark.parametrize("fuse", ["mixup:", "mixup:0", "mixup:many", "mixup:inf", "none:1"])
def test_a_fusion_with_a_wrong_parameter_is_a_sentence(fuse: str) -> None:
    with pytest.raises(UsageError, match=rf"fuse={fuse} given; expected .*mixup:0\.4"):
        fusion_of(fuse)


def test_an_unknown_mode_is_named_beside_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown fuse 'mixed'.*vanilla"):
        fusion_of("mixed:0.4")
