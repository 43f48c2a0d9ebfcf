"""Hybrids of methods with and without gradients, hard and soft labels: from the run to the set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runfactories import cli, digits, payload, profile, tiny_arguments, tiny_run
from torch import Tensor

from moedd.distill import Effort
from moedd.evaluate import Job, Row, TrainingData, distilled_images, evaluate
from moedd.mixture import Mixture
from moedd.protocols import protocol_recipe
from moedd_loaders import load_distilled
from moedd_loaders.decode import decode_labels
from moedd_loaders.errors import DataError
from moedd_loaders.manifest import NoDecode, TilesDecode, read_manifest
from moedd_loaders.read import StoredSet, read_tensors
from moedd_loaders.validate import validate_set

HYBRID = "digits-idm+rded-1x2"
SOFT = ("rded.labels=soft", "rded.temperature=2")


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `$MOEDD_HOME` with the hybrid `hard`, the same one with soft labels `soft`: read only."""
    home = tmp_path_factory.mktemp("hybrids") / "home"
    tiny_run(home, HYBRID, called="hard")
    tiny_run(home, HYBRID, *SOFT, called="soft")
    return home


def stored(home: Path, called: str) -> StoredSet:
    folder = home / "sets" / called
    return read_tensors(folder, read_manifest(folder))


def rows(of: StoredSet, expert: int) -> Tensor:
    return of.images[of.experts == expert]


def test_every_expert_keeps_its_own_decode_rule_and_training_space(module_home: Path) -> None:
    manifest = validate_set(module_home / "sets" / "hard")
    idm, rded = manifest.experts
    assert (idm.method, rded.method) == ("idm", "rded")
    assert idm.decode == TilesDecode(factor=2, order="column-major")
    assert rded.decode == NoDecode()
    assert (idm.decoded_per_class, rded.decoded_per_class) == ([4] * 10, [1] * 10)
    assert (idm.trained_in.space, rded.trained_in.space) == ("normalized", "unit")
    assert rded.config["observer_steps"] == 60
    assert manifest.labels.kind == "hard"
    assert manifest.provenance.iterations == {"0.idm": 4, "1.rded": 0}
    assert manifest.provenance.schedule_fraction == {"0.idm": 1.0, "1.rded": 1.0}
    assert 0.3 < manifest.provenance.losses["1.observer_accuracy"] <= 1
    assert manifest.diversity is not None
    pixels = rows(stored(module_home, "hard"), 1)
    assert torch.equal(pixels, (pixels * 255).round() / 255)
    assert len(load_distilled(module_home / "sets" / "hard")) == 50


def test_the_diversity_step_moves_the_partner_alone(home: Path, module_home: Path) -> None:
    tiny_run(home, HYBRID, "diversity.every=0", called="apart")
    apart, together = stored(home, "apart"), stored(module_home, "hard")
    assert torch.equal(rows(apart, 1), rows(together, 1))
    assert not torch.equal(rows(apart, 0), rows(together, 0))


@pytest.mark.parametrize("method", ["random", "herding", "kcenter", "rded"])
def test_images_without_gradients_stay_fixed_in_every_pair(method: str, home: Path) -> None:
    name = f"digits-{method}+idc-1x2"
    tiny_run(home, name, "diversity.every=1", "diversity.ratio=1", called="made")
    tiny_run(home, name, "diversity.every=0", called="alone")
    made, alone = stored(home, "made"), stored(home, "alone")
    assert torch.equal(rows(made, 0), rows(alone, 0))
    assert not torch.equal(rows(made, 1), rows(alone, 1))
    validate_set(home / "sets" / "made")


@pytest.mark.parametrize("name", ["digits-rded-2x1", "digits-random+kcenter-1x2"])
def test_a_run_in_which_nothing_is_optimised(name: str, home: Path) -> None:
    manifest = tiny_run(home, name, called="one", effort=Effort(max_hours=1))
    assert set(manifest.provenance.schedule_fraction.values()) == {1.0}
    other = tiny_run(home, name, called="two")
    assert other.content_sha256 == manifest.content_sha256
    validate_set(home / "sets" / "one")


# -- soft labels -------------------------------------------------------------------------------
def test_soft_labels_are_stored_and_hard_rows_are_one_hot(module_home: Path) -> None:
    manifest = validate_set(module_home / "sets" / "soft")
    hard, soft = stored(module_home, "hard"), stored(module_home, "soft")
    assert manifest.labels.kind == "soft"
    assert manifest.budget.label_bytes == 20 * 8 + 20 * 10 * 4
    assert hard.soft_labels is None
    assert soft.soft_labels is not None
    assert torch.equal(soft.soft_labels[:10], F.one_hot(soft.labels[:10], 10).float())
    own = soft.soft_labels[10:]
    torch.testing.assert_close(own.sum(1), torch.ones(10))
    assert ((own > 0) & (own < 1)).all()
    assert (own.argmax(1) == soft.labels[10:]).float().mean() >= 0.5
    # The pixels are the same, what they train is not.
    other = read_manifest(module_home / "sets" / "hard")
    assert manifest.content_sha256 == other.content_sha256
    assert manifest.training_sha256 != other.training_sha256


@pytest.mark.parametrize("fuse", [None, "none", "mixup", "cutmix", "same"])
def test_the_loader_hands_soft_labels_out(fuse: Any, module_home: Path) -> None:
    set_of = stored(module_home, "soft")
    ds = load_distilled(module_home / "sets" / "soft", fuse=fuse)
    images, labels = next(iter(ds.batches(50, shuffle=False)))
    assert images.shape == (50, 1, 8, 8)
    assert (labels.shape, labels.dtype) == ((50, 10), torch.float32)
    torch.testing.assert_close(labels.sum(1), torch.ones(50))
    if fuse in (None, "none"):
        assert set_of.soft_labels is not None
        tiled = decode_labels(set_of.soft_labels[:10], set_of.manifest.experts[0].decode)
        assert torch.equal(labels, torch.cat([tiled, set_of.soft_labels[10:]]))
    assert ds.targets == [*list(range(10)) * 4, *range(10)]


def test_evaluation_trains_on_the_soft_labels(module_home: Path) -> None:
    set_of = stored(module_home, "soft")
    data = TrainingData(Row("distilled", "mixup"), distilled_images(set_of), digits(), 0)
    index = torch.arange(50)
    _, targets = data.fetch(index, 0)(lambda x: x, True)
    assert set_of.soft_labels is not None
    assert torch.equal(targets[40:], set_of.soft_labels[10:])
    recipe = protocol_recipe("common", 2)
    jobs = [Job(Row("distilled", "mixup"), "convnet1", 0), Job(Row("random"), "convnet1", 0)]
    records = list(evaluate(set_of, digits(), recipe, jobs, profile(), epochs=2, width=8))
    assert [record.n_train for record in records] == [50, 50]
    assert records[0].methods == ["idm", "rded"]
    assert records[0].set_hash == set_of.manifest.training_sha256


# -- resuming ----------------------------------------------------------------------------------
class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


@pytest.mark.parametrize("lost", [False, True])
def test_a_killed_hybrid_goes_on_to_the_same_bytes(
    lost: bool, home: Path, tmp_path: Path, module_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the trained observer is `lost` in between."""
    own = tmp_path / "own"
    plain, ticks = Mixture.tick, []

    def tick(self: Mixture, number: int, steps: Any) -> Any:
        if len(ticks) == 3:
            raise Killed
        ticks.append(number)
        return plain(self, number, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "tick", tick)
        with pytest.raises(Killed):
            tiny_run(own, HYBRID, *SOFT, called="soft", effort=Effort(checkpoint_seconds=0))
    assert ticks == [1, 2, 3]
    observers = list((own / "pools" / "observers").glob("*.safetensors"))
    assert len(observers) == 1
    if lost:
        observers[0].unlink()
    tiny_run(own, HYBRID, *SOFT, called="soft", resume=True)
    assert payload(own / "sets" / "soft") == payload(module_home / "sets" / "soft")


# -- the command line --------------------------------------------------------------------------
def test_a_hybrid_by_its_name_from_the_command_line(home: Path) -> None:
    name = "digits-idm+rded-2x2"
    told = cli(*tiny_arguments(name, *SOFT))
    assert told.code == 0, told.err
    manifest = validate_set(home / "sets" / name)
    assert manifest.labels.kind == "soft"
    assert "soft" in (home / "sets" / name / "README.md").read_text()


def test_an_observer_that_learned_nothing_is_one_sentence_and_leaves_no_set(home: Path) -> None:
    told = cli(*tiny_arguments(HYBRID, "rded.observer_lr=1e-9"))
    assert told.code == 2
    assert "observer of expert 1 (rded) recognises" in told.sentence
    assert not (home / "sets").exists() or not list((home / "sets").iterdir())


def test_too_few_images_for_the_mosaics_are_one_sentence(home: Path) -> None:
    arguments = tiny_arguments("digits-rded-30x1", "rded.mosaic=3", "rded.images_per_class=300")
    told = cli(*arguments)
    assert told.code == 2
    assert "30 stored images of 3x3 crops per class need at least 270" in told.sentence
    assert DataError.exit_code == 2
