"""What the command line says becomes options and places."""

from __future__ import annotations

from pathlib import Path

import pytest

from moedd.papertables.asked import Asked, data_paths
from moedd.papertables.rows import DEFAULT_GROUPS


def test_nothing_asked_for_is_all_of_the_paper(home: Path) -> None:
    asked = Asked()
    options = asked.options()
    assert options.tables == (1, 2, 3, 4)
    assert options.groups == DEFAULT_GROUPS
    assert (options.protocol, options.epochs, options.seeds) == ("common", 1000, 3)
    assert options.schedules == {"": 0.02}
    at = asked.places(options.tables)
    assert [(place.name, place.path) for place in at.data] == [
        ("cifar10", None),
        ("cifar100", None),
    ]
    assert at.records == home / "records" / "tables"


def test_options_by_network_and_by_method() -> None:
    asked = Asked(repeats="3,ResNet18=2,convnet3=5", schedule="0.01,idc=paper,mtt=0.5",
                  budget="10", only="IDC, idm_plain", rows="paper,fair",
                  networks="vgg11,alexnet", table="1,3", protocol="rded")  # fmt: skip
    options = asked.options()
    assert (options.repeats, options.repeats_of) == (3, {"resnet18": 2, "convnet3": 5})
    assert options.schedules == {"": 0.01, "idc": 1.0, "mtt": 0.5}
    assert (options.budgets, options.only) == ((10,), ("idc", "idm_plain"))
    assert (options.groups, options.tables) == (("paper", "fair"), (1, 3))
    assert options.networks == ("vgg11", "alexnet")
    assert options.epochs == 300


def test_profiles_of_distilling_and_of_evaluating() -> None:
    options = Asked(profile="float32", evaluation_profile="fast").options()
    assert options.distilling.profile == "float32"
    assert options.evaluating.profile == "fast"
    assert options.distilling.precision == "float32"
    assert Asked().options().distilling.profile == "float32"  # what auto means, not "auto"


@pytest.mark.parametrize(
    ("on", "given", "tables", "wanted"),
    [
        (None, [], (1,), {"cifar10": None, "cifar100": None}),
        (None, [], (3,), {"cifar10": None}),
        (None, ["here"], (1,), {"cifar10": "here"}),
        ("cifar100", ["here"], (1,), {"cifar100": "here"}),
        (None, ["cifar100=there"], (1,), {"cifar10": None, "cifar100": "there"}),
        ("birds", ["birds=here"], (3,), {"birds": "here"}),
        ("digits", [], (1, 2, 3, 4), {"digits": None}),
    ],
)
def test_which_data_lie_where(
    on: str | None, given: list[str], tables: tuple[int, ...], wanted: dict[str, str | None]
) -> None:
    assert data_paths(on, given, tables) == wanted


@pytest.mark.parametrize(("jobs", "threads", "wanted"), [(2, None, 2), (8, None, 1), (2, 3, 3)])
def test_threads_share_the_cores(
    jobs: int, threads: int | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert Asked(jobs=jobs, threads=threads).places((3,)).threads == wanted


def test_size_channels_and_validation_reach_every_data_set() -> None:
    asked = Asked(on="imagenette", size=(64, 64), channels=3, validation=True)
    (place,) = asked.places((1,)).data
    assert (place.size, place.channels, place.validation) == ((64, 64), 3, True)


def test_what_one_folder_leaves_out_is_known() -> None:
    assert Asked(data=("here",)).left_out((1,)) == ["cifar100"]
    assert Asked(data=("here",)).left_out((3,)) == []
    assert Asked(data=("here",), on="cifar10").left_out((1,)) == []
    assert Asked().left_out((1,)) == []
