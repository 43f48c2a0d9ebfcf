"""Names to folders: the order of the places, and what is said on a miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from moedd_loaders import resolve as module
from moedd_loaders.errors import SetNotFoundError, UsageError
from moedd_loaders.resolve import bundled_names, home, known_names, resolve


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, an own MOEDD_HOME and own bundled sets."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MOEDD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "_BUNDLED", tmp_path / "bundled")
    return tmp_path


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "moedd.json").write_text("{}")
    return folder


def test_home_is_the_variable_or_the_users_data_folder(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home() == places / "home"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("MOEDD_HOME")
        else:
            monkeypatch.setenv("MOEDD_HOME", unset)
        assert home() == Path.home() / ".local" / "share" / "moedd"


def test_folder_then_home_then_bundled(places: Path) -> None:
    bundled = put(places / "bundled" / "toy-idm-1x2")
    found = resolve("toy-idm-1x2")
    assert (found.folder, found.origin, found.name) == (bundled, "bundled", "toy-idm-1x2")
    mine = put(places / "home" / "sets" / "toy-idm-1x2")
    assert resolve("toy-idm-1x2").folder == mine
    assert resolve("toy-idm-1x2").origin == "home"
    # An unfinished folder of that name here does not hide it; a whole set does.
    unfinished = places / "here" / "toy-idm-1x2"
    unfinished.mkdir()
    assert resolve("toy-idm-1x2").origin == "home"
    (unfinished / "moedd.json").write_text("{}")
    found = resolve("toy-idm-1x2")
    assert found.origin == "folder"
    assert found.folder.resolve() == places / "here" / "toy-idm-1x2"
    assert str(found) == "folder toy-idm-1x2"


def test_paths_of_every_form(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(places / "here" / "some" / "Set")
    for given in (str(folder), folder, "some/Set", "./some/Set", "./some/Set/", "../here/some/Set"):
        assert resolve(given).folder.resolve() == folder
        assert resolve(given).origin == "folder"
    monkeypatch.setenv("HOME", str(places / "here"))
    assert resolve("~/some/Set").folder == folder
    monkeypatch.chdir(folder)
    assert resolve(".").folder.resolve() == folder


def test_known_names(places: Path) -> None:
    for name in ("b-idm-1x1", "a-idm-1x1"):
        put(places / "bundled" / name)
    put(places / "home" / "sets" / "a-idm-1x1")
    (places / "home" / "sets" / "unfinished").mkdir()
    assert bundled_names() == ["a-idm-1x1", "b-idm-1x1"]
    assert known_names() == ["a-idm-1x1", "b-idm-1x1"]


def test_a_miss_lists_the_places_and_the_nearest_names(places: Path) -> None:
    with pytest.raises(SetNotFoundError, match="there are no sets yet"):
        resolve("cifar10-idc-5x2")
    put(places / "bundled" / "cifar10-idc-5x2")
    put(places / "home" / "sets" / "digits-idm-5x2")
    with pytest.raises(FileNotFoundError) as caught:
        resolve("cifar10-idc-5x3")
    message = str(caught.value)
    for part in ("./cifar10-idc-5x3", str(places / "home" / "sets"), "bundled"):
        assert part in message
    assert "did you mean cifar10-idc-5x2?" in message
    assert "\n" not in message
    with pytest.raises(SetNotFoundError, match="known sets: cifar10-idc-5x2, digits-idm-5x2"):
        resolve("zzz")
    with pytest.raises(SetNotFoundError, match="did you mean cifar10-idc-5x2"):
        resolve("CIFAR10-IDC-5x2")


def test_wrong_folders(places: Path) -> None:
    (places / "here" / "empty").mkdir()
    (places / "here" / "a" / "b").mkdir(parents=True)
    (places / "here" / "file").write_text("x")
    cases = {
        "empty": "exists, but holds no moedd.json",
        "./empty": "never finished",
        "a/b": "holds no moedd.json",
        str(places / "missing"): "there is no folder",
        "./missing": "there is no folder",
        "file": "is a file",
        "a/b/c": "there is no folder",
        "..": "holds no moedd.json",
    }
    for given, message in cases.items():
        with pytest.raises(SetNotFoundError, match=message):
            resolve(given)
    with pytest.raises(SetNotFoundError, match="there is no folder"):
        resolve(Path("no") / "where")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/cifar10-idc-5x2@", "expected NAMESPACE/NAME"),
        ("nothing://bucket/set", "cannot be read here"),
        ("", "empty"),
        ("  ", "empty"),
    ],
)
def test_what_this_version_does_not_read(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve(name)
    assert caught.value.exit_code == 2


def test_a_name_cannot_leave_the_sets_folder(places: Path) -> None:
    put(places / "home" / "secret")
    (places / "home" / "sets").mkdir()
    with pytest.raises(UsageError):
        resolve("../secret")
