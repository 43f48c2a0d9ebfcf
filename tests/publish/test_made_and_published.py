"""From real data to another person's training script: made, evaluated, published, loaded."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from hub_server import HubServer
from hubfactories import the_repo
from runfactories import cli, tiny_arguments

from moedd_loaders import load_distilled


def test_distil_evaluate_publish_load(moedd_home: Path, hub: HubServer) -> None:
    arguments = [a for a in tiny_arguments("digits-idm-1x2") if a != "--no-evaluate"]
    assert cli(*arguments, "--set", "evaluation.width=4").code == 0
    told = cli("push-to-hub", "digits-idm-1x2", "digits-idm-1x2")
    assert told.code == 2
    assert "the licence of digits" in told.sentence
    publish = ("push-to-hub", "digits-idm-1x2", "digits-idm-1x2", "--license", "cc-by-4.0")
    told = cli(*publish)
    assert told.code == 0, told.err
    loaded = load_distilled("someone/digits-idm-1x2@v1.0.0", fuse="mixup")
    assert loaded.origin == "hub"
    assert torch.equal(loaded.images, load_distilled("digits-idm-1x2").images)
    # Records made by `evaluate` have all that is asked of them, and a row for each kind.
    rows = datasets.load_dataset("someone/digits-idm-1x2", "benchmarks", split="train")
    assert {row["variant"] for row in rows} == {"distilled", "random", "full"}
    for key in ("set_hash", "protocol", "network", "data_fingerprint", "hardware", "versions"):
        assert all(row[key] for row in rows)
    card = the_repo(hub, "someone/digits-idm-1x2").resolve("main").files["README.md"].data.decode()
    for row in ("distilled, fuse=mixup", "random real images", "all real images"):
        assert f"| {row} |" in card
    # Evaluated anew by somebody else: the record lies at home, and the set as it was.
    told = cli("evaluate", "someone/digits-idm-1x2", "--epochs", "1", "--repeats", "1",
               "--width", "4", "--fuse", "none", "--seed", "5")  # fmt: skip
    assert told.code == 0, told.err
    assert len(list((moedd_home / "records").glob("*.jsonl"))) == 1
    told = cli(*publish)
    assert "3 sent" in told.out
    assert "tag v1.0.0 stays" in told.err


def test_a_bundled_set_by_its_name(hub: HubServer) -> None:
    told = cli("push-to-hub", "digits-idm-5x2", "lab/digits", "--license", "unknown", "--json")
    assert told.code == 0, told.err
    assert len(load_distilled("lab/digits")) == 400
