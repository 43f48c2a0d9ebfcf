"""The own-recipe table on digits, in small."""

import json
from pathlib import Path

import pytest

from benchmarks import ownrecipe
from moedd_loaders.manifest import read_manifest

TINY = "pool.networks=1:pool.steps=2:pool.every=2:width=4"


def test_a_method_is_made_and_evaluated_beside_three_random_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(tmp_path / "home"))
    words = ["digits", "--methods", f"dm:{TINY}", "--ipc", "2", "--schedule", "0.0001"]
    words += ["--epochs", "2", "--repeats", "2", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert ownrecipe.main(words) == 0
    (found,) = [json.loads(line) for line in (tmp_path / "out" / "digits.jsonl").open()]
    assert (found["name"], found["protocol"]) == ("digits-dm-2x1", "common-2")
    assert found["steps"] == {"0.dm": 2}
    assert found["fraction"] == {"0.dm": 2 / 20_000}
    networks = found["distilled"]["accuracies"]
    assert len(networks) == 4
    assert found["sets"]["means"] == pytest.approx(
        [sum(networks[:2]) / 2, sum(networks[2:]) / 2], abs=0.01
    )
    first, second = (tmp_path / "home" / "sets" / f"digits-dm-2x1{end}" for end in ("", "-s1"))
    hashes = {read_manifest(folder).training_sha256 for folder in (first, second)}
    assert len(hashes) == 2, "two seeds, two sets"
    assert len(found["random"]["accuracies"]) == 3
    values = found["random"]["accuracies"]
    assert found["random"]["mean"] == pytest.approx(sum(values) / 3, abs=0.01)


def test_a_method_that_fails_is_reported_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(tmp_path / "home"))
    assert ownrecipe.main(["digits", "--methods", "dm:no=1", "--out", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
    assert "no" in (tmp_path / "digits-dm.log").read_text()
