"""What a run was started with stays with it; settings are checked before data are read."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from runfactories import cli, tiny_arguments

from moedd_loaders.manifest import read_manifest
from moedd_loaders.records import read_records


@pytest.fixture
def unfinished(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run with a note that stopped between matching and its set."""

    def stop(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments = tiny_arguments("digits-idm-1x2")
    with monkeypatch.context() as patch:
        patch.setattr("moedd.distill.write_result", stop)
        assert cli(*arguments, "--note", "written on a napkin").code == 1
    return arguments


def test_another_schedule_is_refused_on_resuming(unfinished: list[str], home: Path) -> None:
    plain = [a for a in unfinished if a not in ("--schedule", "paper")]
    told = cli(*plain, "--max-hours", "3", "--resume")
    assert told.code == 2, told.err
    assert "--max-hours 3.0 is given now" in told.err
    assert not (home / "sets").exists() or not list((home / "sets").iterdir())


def test_notes_and_threads_survive_resuming(unfinished: list[str], home: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        told = cli(*unfinished, "--resume")
        assert told.code == 0, told.err
        assert torch.get_num_threads() == threads
        assert f"{threads} threads" in told.err
    finally:
        torch.set_num_threads(threads)
    notes = read_manifest(home / "sets" / "digits-idm-1x2").source.notes
    assert notes[-1] == "written on a napkin"


def test_settings_are_shown_and_refused_without_reading_data(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*given: object, **named: object) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr("moedd.commands.load_real", read)
    told = cli("distill", "cifar10-idc-5x2", "--print-config", "--schedule", "0.001")
    assert told.code == 0, told.err
    shown = json.loads(told.out)
    assert shown["shape"] == [3, 32, 32]
    assert shown["schedule"]["fraction"] == 0.001
    assert shown["schedule"]["steps"] == [200, 200]
    told = cli("distill", "cifar10-idc-5x2", "--set", "idc.learning=1")
    assert told.code == 2
    assert "idc.lr_img" in told.err


def test_a_killed_evaluation_trains_only_what_is_missing(home: Path) -> None:
    arguments = [a for a in tiny_arguments("digits-idm-1x2") if a != "--no-evaluate"]
    assert cli(*arguments).code == 0
    folder = home / "sets" / "digits-idm-1x2"
    results = folder / "benchmarks" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:2]))
    told = cli(*arguments, "--resume")
    assert told.code == 0, told.err
    assert "finished already" in told.err
    assert len(results.read_text().splitlines()) == len(lines)
    assert len(read_records(read_manifest(folder), folder)) == len(lines)
    assert "random real images" in told.out


def test_one_network_evaluated_twice_counts_once(home: Path) -> None:
    arguments = [a for a in tiny_arguments("digits-idm-1x2") if a != "--no-evaluate"]
    assert cli(*arguments).code == 0
    folder = home / "sets" / "digits-idm-1x2"
    before = read_records(read_manifest(folder), folder)
    told = cli("evaluate", folder, "--fuse", "none", "--repeats", "1")
    assert told.code == 0, told.err
    assert len(read_records(read_manifest(folder), folder)) == len(before)


def test_schedule_and_hours_exclude_each_other(home: Path) -> None:
    told = cli("distill", "--schedule", "smoke", "--max-hours", "1")
    assert told.code == 2
    assert "give one of them" in told.err
