"""What must be told, what is refused, and that nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import releasefactories as made
import torch

from moedd.datatable import DATA
from moedd.importers import Answers, Choice, Request, import_release, open_release
from moedd.importers.classes import name_classes
from moedd_loaders.errors import DataError, UsageError
from moedd_loaders.manifest import TilesDecode

NAMES = ",".join(made.CLASSES)


def ask(path: Path, **said: Any) -> list[str]:
    return [question.option for question in open_release(Request(str(path), Answers(**said))).asked]


def refused(tmp_path: Path, path: Path, message: str, **said: Any) -> None:
    request = Request(str(path), Answers(**said), Choice(), "taken")
    with pytest.raises((UsageError, DataError), match=message) as caught:
        import_release(request, tmp_path / "sets")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "sets").exists()


ALL = ["--method", "--space", "--decode", "--data NAME or --classes"]


def test_each_format_asks_for_what_its_files_do_not_say(tmp_path: Path) -> None:
    assert ask(made.make_dc(tmp_path)) == ALL
    assert ask(made.make_dc(tmp_path, method="DC")) == ["--space", "--data NAME or --classes"]
    assert ask(made.make_dc(tmp_path, method="MINE")) == ALL
    assert ask(made.make_idm(tmp_path)) == ALL[1:]
    assert ask(made.make_idc(tmp_path)) == ALL
    kip = [option for option in ALL[1:] if option != "--decode"]
    assert ask(made.make_kip(tmp_path)) == kip
    assert ask(made.make_mtt(tmp_path / "run")) == ["--method", *kip]
    assert ask(made.make_ddranking(tmp_path / "dd")) == ["--method", *kip]
    assert ask(made.make_folders(tmp_path / "f")) == ["--method", "--decode", ALL[3]]
    assert ask(made.make_parquet(tmp_path / "p")) == ["--method", "--decode"]


def test_what_is_told_is_not_asked_again(tmp_path: Path) -> None:
    path = made.make_dc(tmp_path)
    assert ask(path, method="dm") == ["--space", ALL[3]]
    assert ask(path, method="idm") == ALL[1:]
    assert ask(path, method="unknown") == ALL[1:]
    assert ask(path, method="unknown", decode="none", space="unit") == [ALL[3]]
    assert ask(path, method="dm", space="unit", classes=NAMES) == []


def test_the_refusal_is_one_sentence_with_all_options(tmp_path: Path) -> None:
    refused(
        tmp_path,
        made.make_dc(tmp_path),
        r"moedd does not guess: give --method dc, dsa, dm, idm or unknown; --space unit, "
        r"normalized \(.*\) or zca:PATH; --decode none, 2x2-row-major or 2x2-column-major; --data "
        r"NAME or --classes FILE\|A,B",
    )


def test_remarks_say_what_the_values_look_like(tmp_path: Path) -> None:
    def why(path: Path) -> str:
        asked = open_release(Request(str(path))).asked
        return next(question.why for question in asked if question.option == "--space")

    assert "looks normalised" in why(made.make_dc(tmp_path))
    assert "looks like unit space" in why(made.make_idc(tmp_path, made.pixels() * 0.05 + 0.5))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"method": "DM"}, "--method 'DM' given, expected a word"),
        ({"method": "a-b"}, "--method 'a-b' given"),
        ({"space": "rgb"}, "--space 'rgb' given, expected unit, normalized"),
        ({"space": "unit:cifar10"}, "--space 'unit:cifar10' given"),
        ({"space": "normalized"}, "normalized given without known constants"),
        ({"space": "normalized:cifar11"}, "normalized:cifar11 given without known constants"),
        ({"space": "normalized:mnist", "decode": "none"}, None),
        ({"space": "normalized", "mean": (0.5,)}, "--mean and --std together"),
        ({"space": "normalized", "mean": (0.5,), "std": (0.5,)}, "1 means and 1 standard"),
        ({"space": "normalized", "mean": (0.5,) * 3, "std": (0.0,) * 3}, "positive numbers"),
        ({"space": "unit", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "they are of normalized"),
        ({"space": "normalized:mnist", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "together, and w"),
        ({"decode": "2x3"}, "--decode '2x3' given, expected none"),
        ({"decode": "1"}, "--decode '1' given"),
        ({"decode": "2", "method": "unknown"}, "order of tiles is not known of unknown"),
        ({"decode": "5", "method": "idc"}, "leaves tiles of less than 2 pixels"),
        ({"decode": "2x2-row-major", "method": "dm"}, "dm stores its training images as they are"),
        ({"classes": "a,b"}, "labels are of 3 classes and 2 are named"),
        ({"classes": "a,b,a"}, "gives 'a' twice"),
        ({"classes": "a"}, "gives 1 name,"),
        ({"data": "CIFAR10"}, "did you mean cifar10"),
        ({"data": "cifar10", "classes": NAMES}, "3 names and cifar10 has 10 classes"),
        ({"soft_labels": "logits"}, "the labels are plain class numbers"),
    ],
)
def test_answers_that_do_not_fit(tmp_path: Path, said: dict[str, Any], message: str | None) -> None:
    whole = {"method": "idc", "space": "unit", "decode": "none", "classes": NAMES, **said}
    path = made.make_idc(tmp_path)
    if message is None:  # one-channel constants serve for three
        request = Request(str(path), Answers(**whole), Choice(), "taken")
        entry = import_release(request, tmp_path / "sets").manifest.experts[0]
        assert entry.trained_in.mean == [DATA["mnist"].mean[0]] * 3
        return
    refused(tmp_path, path, message, **whole)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("2x2-row-major", TilesDecode(factor=2, order="row-major")),
        ("2-column-major", TilesDecode(factor=2, order="column-major")),
        ("4x4-row-major", TilesDecode(factor=4, order="row-major")),
        ("3", TilesDecode(factor=3, order="row-major")),
    ],
)
def test_decode_rules(tmp_path: Path, text: str, rule: TilesDecode) -> None:
    said = Answers(method="idc", space="unit", decode=text, classes=NAMES)
    request = Request(str(made.make_idc(tmp_path)), said, Choice(), "taken")
    manifest = import_release(request, tmp_path / "sets").manifest
    assert manifest.experts[0].decode == rule
    padded = "tiles are padded with the source's mean here, with 0.5 in IDC's own code"
    assert (padded in manifest.source.notes) == (8 % rule.factor != 0)


def test_a_step_size_that_is_told_or_contradicts(tmp_path: Path) -> None:
    said: dict[str, Any] = {"method": "mtt", "space": "unit", "classes": NAMES, "step_size": 0.02}
    path = made.make_mtt(tmp_path / "a")
    request = Request(str(path), Answers(**said), Choice(), "taken")
    entry = import_release(request, tmp_path / "s").manifest.experts[0]
    assert entry.step_size == 0.02
    refused(tmp_path, made.make_mtt(tmp_path / "b", lr=0.5), "says 0.5: leave it out", **said)
    lr = tmp_path / "b" / "lr_best.pt"
    lr.write_bytes((tmp_path / "b" / "labels_best.pt").read_bytes())
    refused(tmp_path, tmp_path / "b", r"lr_best\.pt holds no single finite number", **said)


def test_a_known_name_gives_classes_constants_and_licence(tmp_path: Path) -> None:
    labels = made.by_class(10, 1)
    path = made.make_dc(tmp_path, [made.pixels(10)], labels, method="DC")
    request = Request(str(path), Answers(space="normalized", data="cifar10"))
    manifest = import_release(request, tmp_path / "sets").manifest
    assert manifest.name == "cifar10-dc-1x1"
    assert manifest.classes == list(DATA["cifar10"].classes)
    assert manifest.source.hub_id == "uoft-cs/cifar10"
    assert tuple(manifest.source.mean) == DATA["cifar10"].mean
    assert manifest.experts[0].trained_in.mean == list(DATA["cifar10"].mean)
    assert "cifar10 in moedd's table" in "".join(manifest.source.notes)


def test_cifar100_has_two_pairs_of_constants_in_use(tmp_path: Path) -> None:
    path = made.make_dc(tmp_path, [made.pixels(100)], made.by_class(100, 1), method="DC")
    refused(tmp_path, path, "two pairs of constants are in use", space="normalized",
            data="cifar100")  # fmt: skip
    for name in ("cifar10", "cifar100"):
        said = Answers(space=f"normalized:{name}", data="cifar100")
        request = Request(str(path), said, Choice(), name)
        entry = import_release(request, tmp_path / "s").manifest.experts[0]
        assert entry.trained_in.mean == list(DATA[name].mean)


def test_a_long_list_of_classes_is_no_path(tmp_path: Path) -> None:
    path = made.make_dc(tmp_path, [made.pixels(100)], made.by_class(100, 1), method="DC")
    names = DATA["cifar100"].classes
    request = Request(str(path), Answers(space="unit", classes=",".join(names)), Choice(), "x")
    manifest = import_release(request, tmp_path / "s").manifest
    assert manifest.classes == list(names)


def test_grey_data_do_not_fit_colour_names(tmp_path: Path) -> None:
    path = made.make_dc(tmp_path, [made.pixels(10, (1, 8, 8))], made.by_class(10, 1), method="DC")
    refused(tmp_path, path, "images have 3 channels, and these have 1", space="unit",
            data="cifar10")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("given", "x", "given"),
        (None, "Some Release (v2)", "some-release-v2"),
        (None, "___", None),
        ("Not A Slug", "x", None),
    ],
)
def test_names_of_sets(tmp_path: Path, name: str | None, path: str, expected: str | None) -> None:
    made.make_mtt(tmp_path / path)
    said = Answers(method="mtt", space="unit", classes=NAMES)
    request = Request(str(tmp_path / path), said, Choice(), name)
    if expected is None:
        with pytest.raises(UsageError, match="--name"):
            import_release(request, tmp_path / "sets")
    else:
        assert import_release(request, tmp_path / "sets").folder == tmp_path / "sets" / expected


@pytest.mark.parametrize(
    ("space", "images", "said"),
    [
        ("unit", made.pixels() * 3, "told to be in unit space, and go from"),
        ("normalized:cifar10", made.pixels() * 0.01 + 0.5, "all of them lie between 0 and 1"),
        ("normalized:cifar10", made.pixels() * 100, "far beyond black and white"),
        ("normalized:cifar10", made.pixels(), None),
        ("unit", made.pixels() * 0.1 + 0.5, None),
    ],
)
def test_answers_that_look_wrong_are_warned_about(
    tmp_path: Path, space: str, images: Any, said: str | None
) -> None:
    path = made.make_mtt(tmp_path / "run", images)
    request = Request(str(path), Answers(method="mtt", space=space, classes=NAMES))
    warnings = import_release(request, tmp_path / "sets").warnings
    assert (said in warnings[0]) if said else not warnings


def test_labels_beyond_the_names_of_the_files_are_refused_whatever_is_told() -> None:
    released = SimpleNamespace(
        folders=None, classes=("a", "b"), class_rule=None, labels=torch.tensor([0, 7])
    )
    with pytest.raises(DataError, match="8 classes and 2 are named"):
        name_classes(released, (("b", "a"), "as told"))  # type: ignore[arg-type]
