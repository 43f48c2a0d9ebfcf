"""Runs with MTT from the command line: trajectories made before or on the way, sets, evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runfactories import cli, digits, payload, tiny_arguments, tiny_run, tiny_settings

from moedd.evaluate import train_network
from moedd.experts.mtt import MTT
from moedd.zca import Whitening, space_of
from moedd_loaders.records import read_records
from moedd_loaders.validate import validate_set

SETTINGS = [
    f"--set={setting}"
    for setting in tiny_settings("digits-mtt-1x1")
    if setting.startswith(("width", "mtt."))
]


def keys(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "trajectories").iterdir())


def files(home: Path) -> dict[str, int]:
    """Trajectory files and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in home.glob("trajectories/*/*.safetensors")}


def test_the_command_makes_what_a_run_then_uses(home: Path) -> None:
    told = cli("trajectories", "digits", "--count", "2", "--epochs", "2", *SETTINGS)
    assert told.code == 0, told.err
    (key,) = keys(home)
    assert f"trajectories: {home / 'trajectories' / key}" in told.out
    assert "2 x 2 epochs of" in told.out
    assert "2 x 2 epochs of convnet2 (width 8) on 1438 images of digits" in told.err
    before = files(home)
    assert sorted(before) == ["trajectory-000.safetensors", "trajectory-001.safetensors"]
    tiny_run(home, "digits-mtt-1x2")
    assert files(home) == before
    recipe = json.loads((home / "sets" / "run" / "recipe" / "config.json").read_text())
    assert recipe["made_with"] == [{"trajectories": key, "epochs": 2}] * 2


def test_without_numbers_it_makes_what_mtt_needs(home: Path) -> None:
    told = cli("trajectories", "digits", *SETTINGS)
    assert told.code == 0, told.err
    assert "2 x 2 epochs of" in told.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch"], "nosuch"),
        (["digits", "--set", "mtt.train_on=part"], "mtt.train_on=part given"),
        (["digits", "--set", "mtt.trajectory_lr=-1"], "mtt.trajectory_lr=-1"),
        (["digits", "--set", "mtt.step_size=-0.01"], "mtt.step_size=-0.01"),
        (["digits", "--set", "network=convnet2_bn"], "batch norm"),
        (["digits", "--set", "mtt.lr=1"], "mtt.lr_img"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    arguments: list[str], sentence: str, home: Path
) -> None:
    told = cli("trajectories", *arguments)
    assert told.code == 2, told.err
    assert sentence in told.sentence
    assert not (home / "trajectories").exists()


def test_a_run_makes_its_trajectories_and_stores_the_learned_step_sizes(home: Path) -> None:
    manifest = tiny_run(home, "digits-mtt-1x2", "mtt.lr_lr=0.001")
    folder = home / "sets" / "run"
    assert validate_set(folder) == manifest
    assert len(keys(home)) == 1
    first, second = (entry.step_size for entry in manifest.experts)
    assert first is not None
    assert second is not None
    assert first != second
    assert min(first, second) > 0
    assert [entry.trained_in.space for entry in manifest.experts] == ["normalized"] * 2
    assert {"0.match", "0.step_size", "0.left_out"} <= set(manifest.provenance.losses)


def test_each_expert_can_have_trajectories_of_its_own(home: Path) -> None:
    tiny_run(home, "digits-mtt-1x2", "mtt.train_on=part", "mtt.trajectories=1")
    assert len(keys(home)) == 2


def test_a_class_with_too_few_images_is_an_error_of_the_data(home: Path) -> None:
    told = cli(*tiny_arguments("digits-mtt-100x2"))
    assert told.code == 2
    assert "200 per class" in told.sentence


def test_a_killed_run_resumes_to_identical_bytes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "digits-mtt-1x2"
    arguments = [*tiny_arguments(name), "--checkpoint-seconds", "0"]
    assert cli(*arguments, "--name", "straight").code == 0
    plain = MTT.step
    calls = 0

    def step(self: MTT) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(MTT, "step", step)
        assert cli(*arguments, "--name", "killed").code != 0
    told = cli(*arguments, "--name", "killed", "--resume")
    assert told.code == 0, told.err
    assert "resuming at tick 2" in told.err
    one, other = (payload(home / "sets" / n) for n in ("straight", "killed"))
    named = {"webdataset/_info.json", "assets/preview.png"}  # the set's name stands in them
    assert {n for n in one if one[n] != other.get(n)} <= named


# -- evaluation ------------------------------------------------------------------------------
def evaluate(name: str, *more: str) -> Any:
    return cli("evaluate", name, "--protocol", "mtt", "--epochs", "1", "--repeats", "1", *more)


def test_mtts_own_evaluation_trains_with_the_learned_step_size(home: Path) -> None:
    manifest = tiny_run(home, "digits-mtt-1x2", "mtt.lr_lr=0.001")
    told = evaluate("run", "--width", "4", "--fuse", "none,cutmix")
    assert told.code == 0, told.err
    sizes = [entry.step_size for entry in manifest.experts]
    records = read_records(manifest, home / "sets" / "run")
    assert [record.protocol for record in records] == ["mtt-1"] * 2
    expected = math.sqrt(math.prod(size for size in sizes if size is not None))
    assert records[0].config["lr"] == pytest.approx(expected)


def test_sets_without_a_step_size_are_refused(finished_home: Path, home: Path) -> None:
    told = evaluate(str(finished_home / "sets" / "pair"))
    assert told.code == 2
    assert "no expert of pair learned one" in told.sentence
    assert not home.exists() or not (home / "records").exists()


def test_a_whitened_set_is_seen_in_its_space_by_its_own_protocol_only(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tiny_run(home, "digits-mtt-1x2", "mtt.zca=true")
    folder = home / "sets" / "run"
    assert validate_set(folder) == manifest
    assert [entry.trained_in.space for entry in manifest.experts] == ["zca"] * 2
    space = space_of(manifest, folder)
    assert isinstance(space, Whitening)
    seen: list[torch.Tensor] = []
    tested: list[torch.Tensor] = []
    plain = train_network

    def recording(data: Any, *given: Any, **named: Any) -> Any:
        rows = torch.arange(len(data))
        seen.append(data.fetch(rows, 0)(lambda x: x, True)[0])
        return plain(data, *given, **named)

    def accuracy(network: Any, images: Any, labels: Any, prepare: Any, **named: Any) -> float:
        tested.append(prepare(images[:5]))
        return 0.5

    monkeypatch.setattr("moedd.evaluate.train_network", recording)
    monkeypatch.setattr("moedd.evaluate.accuracy", accuracy)
    told = evaluate("run", "--width", "4", "--fuse", "none")
    assert told.code == 0, told.err
    from moedd_loaders.read import read_tensors

    stored = read_tensors(folder, manifest).images
    torch.testing.assert_close(seen[0], space.whiten(stored), rtol=1e-4, atol=1e-5)
    first = digits().test.images[:5].float() / 255
    torch.testing.assert_close(tested[0], space.whiten(first), rtol=1e-4, atol=1e-5)
    common = cli("evaluate", "run", "--epochs", "1", "--repeats", "1", "--width", "4")
    assert common.code == 0, common.err
    torch.testing.assert_close(tested[-1], digits().normalized(digits().test.images[:5]))
    told = evaluate("run", "--fuse", "cutmix")
    assert told.code == 2
    assert "fuse=mixup" in told.sentence
