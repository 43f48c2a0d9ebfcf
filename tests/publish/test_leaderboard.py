"""Boards: what stands beside what, in which order, from which sets."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import boardfactories
import factories
import hubfactories
import pytest
from hub_server import HubServer
from hub_store import File
from hubfactories import the_repo
from runfactories import cli

from moedd_loaders.errors import InvalidSetError, NetworkError, UsageError
from moedd_loaders.records import append_records, records_in
from moedd_publish.boardfiles import boards_csv, boards_rows
from moedd_publish.hub import PushOptions, push_to_hub
from moedd_publish.leaderboard import Board, boards, gather_hub, gather_local


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    boardfactories.make_shelf(folder)
    return folder


@pytest.fixture
def made(shelf: Path) -> list[Board]:
    return boards(gather_local(shelf))


def titles(board: Board) -> list[tuple[str, str]]:
    return [(line.title, line.fuse) for line in board.lines]


def test_recipes_never_share_a_board(made: list[Board]) -> None:
    recipes = [(board.recipe.data, board.recipe.title, board.recipe.fingerprint) for board in made]
    assert recipes == [
        ("toy", "common-300", "sha256:00"),
        ("others", "common-300", "sha256:00"),
        ("toy", "common-300", "sha256:other"),
        ("toy", "idc, 1000 epochs", "sha256:00"),
    ]
    accuracies = [line.scores["convnet3"].mean for line in made[3].lines]
    assert accuracies == pytest.approx([95.0])


def test_lines_best_first_with_what_to_compare_with(made: list[Board]) -> None:
    assert titles(made[0]) == [
        ("all real images", "none"),
        ("toy-large", "mixup"),
        ("toy-large", "none"),
        ("toy-small", "mixup"),
        ("random real images, budget of toy-large", "none"),
        ("toy-small", "none"),
        ("random real images, budget of toy-small", "none"),
    ]
    assert made[0].networks[:2] == ["convnet3", "vgg11"]


def test_numbers_are_those_of_the_records(made: list[Board], shelf: Path) -> None:
    """Mean and deviation from the files, computed apart."""
    records = records_in(shelf / "toy-large" / "benchmarks" / "results.jsonl")
    values = [
        100 * r.accuracy
        for r in records
        if (r.variant, r.fuse, r.network, r.protocol, r.data_fingerprint)
        == ("distilled", "mixup", "convnet3", "common-300", "sha256:00")
    ]
    (row,) = [
        row
        for row in boards_rows(made)
        if (row["set"], row["fuse"], row["network"]) == ("toy-large", "mixup", "convnet3")
    ]
    assert row["accuracy"] == pytest.approx(sum(values) / 3, abs=1e-3)
    assert row["std"] == pytest.approx(statistics.stdev(values), abs=1e-3)
    assert (row["n"], row["images_per_class"], row["images"]) == (3, 4, 12)
    # All real images were trained beside both sets: the same networks, counted once.
    full = [row for row in boards_rows(made) if row["trained_on"] == "full"]
    assert [(row["set"], row["n"]) for row in full] == [(None, 3)]


def test_nobody_replaces_what_others_measured_on_all_real_images(tmp_path: Path) -> None:
    """Two sets trained on all of the same real images, and a stranger who says otherwise."""

    def add(name: str, seed: int, accuracies: list[float], **changes: Any) -> None:
        manifest = factories.make_set(tmp_path / name, seed=seed)
        config = {"width": 128, "profile": "float32", "draw": 0}
        records = [hubfactories.make_record(manifest, accuracy=0.5)] + [
            hubfactories.make_record(
                manifest, variant="full", accuracy=a, config={**config, "repeat": n}, **changes
            )
            for n, a in enumerate(accuracies)
        ]
        append_records(tmp_path / name, records, manifest.training_sha256)

    def shown() -> tuple[int, float]:
        (board,) = boards(gather_local(tmp_path))
        (line,) = [line for line in board.lines if line.variant == "full"]
        score = line.scores["convnet3"]
        return score.n, score.mean

    add("a-one", 0, [0.90, 0.92])
    add("b-two", 1, [0.90, 0.92])  # the very same networks
    assert shown() == (2, pytest.approx(91.0))
    add("c-stranger", 2, [0.10], created="2099-01-01T00:00:00Z")
    assert shown() == (3, pytest.approx((90 + 92 + 10) / 3))
    add("d-other-data", 3, [0.99], data_fingerprint="sha256:11")
    add("e-other-network", 4, [0.99], network="vgg11")
    add("f-other-recipe", 5, [0.99], protocol="idc", epochs=1000)
    board = next(b for b in boards(gather_local(tmp_path)) if b.recipe.protocol == "common-300")
    (line,) = [line for line in board.lines if line.variant == "full"]
    assert (line.scores["convnet3"].n, line.scores["vgg11"].n) == (3, 1)


def test_filters_and_orders(shelf: Path) -> None:
    entries = gather_local(shelf)
    assert [board.recipe.data for board in boards(entries, data="others")] == ["others"]
    small = boards(entries, budget=2)
    assert {line.entry.name for board in small for line in board.lines if line.entry} == {
        "toy-small"
    }
    assert boards(entries, budget=99) == []
    by_name = boards(entries, sort="name")[0]
    assert titles(by_name)[1][0] == "toy-large"
    by_budget = boards(entries, sort="budget")[0]
    assert [t[0] for t in titles(by_budget)][-1] == "all real images"
    by_network = boards(entries, sort="convnet3")[0]
    means = [line.scores["convnet3"].mean for line in by_network.lines if line.entry]
    assert means == sorted(means, reverse=True)
    for wrong in ({"data": "toys"}, {"sort": "convnet"}):
        with pytest.raises(UsageError, match="did you mean"):
            boards(entries, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there is no folder"):
        gather_local(shelf / "nowhere")


def test_csv_and_json(shelf: Path, made: list[Board]) -> None:
    rows = list(csv.DictReader(io.StringIO(boards_csv(made))))
    assert len(rows) == len(list(boards_rows(made)))
    assert {row["network"] for row in rows} == {"convnet3", "vgg11", boardfactories.ODD}
    told = cli("leaderboard", "--local", shelf, "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out) == list(boards_rows(made))
    told = cli("leaderboard", "--local", shelf, "--csv", "--data", "others")
    assert told.out.splitlines()[1].startswith("others,common-300,300,sha256:00,others-one,")
    assert cli("leaderboard", "--csv", "--json").code == 2
    assert cli("leaderboard", "--hub", "--local", shelf).code == 2
    assert cli("leaderboard", "--local", shelf / "no").code == 2


def test_a_cell_is_no_formula(made: list[Board]) -> None:
    for board in made:
        for line in board.lines:
            if line.entry is not None:
                object.__setattr__(line.entry, "name", "=1+1")
    assert ",=1+1," not in boards_csv(made)
    assert ",'=1+1," in boards_csv(made)


def test_the_table(shelf: Path) -> None:
    told = cli("leaderboard", "--local", shelf)
    assert told.code == 0, told.err
    assert "toy: common-300 (real data sha256:00)" in told.out
    assert "52.0" not in told.out
    (row,) = [line for line in told.out.splitlines() if "toy-large" in line and "mixup" in line]
    assert "50.0 ± 2.0 (3)" in row
    assert told.out.index("others: common-300") < told.out.index("toy: idc, 1000 epochs")


def test_of_this_machine(moedd_home: Path) -> None:
    """Without arguments: one's own sets and the bundled ones; a broken one hides none."""
    manifest = factories.make_set(moedd_home / "sets" / "mine")
    record = hubfactories.make_record(manifest, accuracy=0.99)
    results = moedd_home / "sets" / "mine" / "benchmarks" / "results.jsonl"
    results.parent.mkdir()
    results.write_text(record.model_dump_json() + "\n")
    broken = moedd_home / "sets" / "broken"
    broken.mkdir()
    (broken / "moedd.json").write_text("{}")
    names = [entry.name for entry in gather_local()]
    assert names[0] == "mine"
    assert "cifar10-idm-5x2" in names
    assert "broken" not in names
    assert "mine" in cli("leaderboard").out
    with pytest.raises(InvalidSetError):
        gather_local(moedd_home / "sets")


def publish(folder: Path, repo_id: str, **options: Any) -> None:
    push_to_hub(folder, repo_id, PushOptions(**options), say=lambda _: None)


def test_on_the_hub(shelf: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sets than one page of the search holds, a private one, a stranger's, a broken one."""
    for name in ("toy-small", "toy-large", "others-one"):
        publish(shelf / name, f"someone/{name}")
    publish(shelf / "toy-small", "someone/hidden", private=True)
    publish(shelf / "toy-small", "someone/gated")
    the_repo(hub, "someone/gated").gated = True
    publish(shelf / "toy-small", "someone/broken")
    broken = the_repo(hub, "someone/broken")
    head = broken.resolve("main")
    files = {**head.files, "moedd.json": File(b"{}")}
    broken.branches["main"] = broken.add("broken", files, head).oid
    foreign = the_repo(hub, "someone/others-one")
    head = foreign.resolve("main")
    other = the_repo(hub, "someone/toy-large").resolve("main").files["benchmarks/results.jsonl"]
    files = {**head.files, "benchmarks/results.jsonl": other}
    foreign.branches["main"] = foreign.add("records of another set", files, head).oid
    told: list[str] = []
    entries = gather_hub(say=told.append)  # as their owner, who may open all of them
    assert [entry.where for entry in entries] == [
        "someone/others-one",
        "someone/toy-large",
        "someone/toy-small",
    ]
    assert [len(entry.records) for entry in entries] == [0, 24, 15]
    assert entries[1].link == f"{hub.url}/datasets/someone/toy-large"
    assert entries[1].preview is not None
    assert told == ["left out: someone/gated is gated", "left out: someone/hidden is private"] * 2
    hubfactories.log_in(monkeypatch, None)
    assert [entry.where for entry in gather_hub(say=told.append)] == [e.where for e in entries]
    local = boards(gather_local(shelf), data="toy")
    here, there = (
        {(row["set"], row["fuse"], row["network"]): row["accuracy"] for row in boards_rows(made)}
        for made in (local, boards(entries))
    )
    assert here == there
    # By the library alone, too.
    card = the_repo(hub, "someone/toy-small").resolve("main")
    readme = card.files["README.md"].data.replace(b"- moedd\n", b"")
    repo = the_repo(hub, "someone/toy-small")
    repo.branches["main"] = repo.add("c", {**card.files, "README.md": File(readme)}, card).oid
    assert "someone/toy-small" in [entry.where for entry in gather_hub(say=told.append)]
    out = cli("leaderboard", "--hub", "--csv").out
    assert "someone/toy-large" in out
    hub.faults.add("search", "503", None)
    with pytest.raises(NetworkError):
        gather_hub(say=told.append)


def test_what_strangers_write_is_shown_as_it_is(tmp_path: Path) -> None:
    made = factories.make_set(tmp_path / "toy")
    record = hubfactories.make_record(made, network=boardfactories.MARKUP)
    odd = record.model_copy(update={"variant": "full", "config": {"repeat": [1], "draw": {}}})
    append_records(tmp_path / "toy", [record, odd], made.training_sha256)
    told = cli("leaderboard", "--local", tmp_path)
    assert told.code == 0, told.err
    assert "\x1b" not in told.out
    shown = "".join(told.out.split())
    for part in ("a[/x]", "[bold]b"):
        assert part in shown
