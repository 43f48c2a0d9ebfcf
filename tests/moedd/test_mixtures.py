"""Mixtures of very different methods: what each one is stays with its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runfactories import cli, tiny_run

from moedd.evaluate import distilled_images
from moedd_loaders import FUSE_MODES, load_distilled
from moedd_loaders.manifest import Manifest, NoDecode, TilesDecode, read_manifest
from moedd_loaders.read import StoredSet, read_tensors
from moedd_loaders.validate import validate_set

THREE = "digits-idc+mtt+dm-2x3"
FIVE = "digits-mtt+rded+herding+idm+kcenter-1x5"
WHITE_AND_SOFT = ("mtt.zca=true", "rded.labels=soft", "rded.temperature=2")
ALL_PAIRS = ("diversity.every=1", "diversity.pairs=all", "diversity.ratio=1")


@pytest.fixture(scope="module")
def mixed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `$MOEDD_HOME` with the mixtures `three`, `five` and `five` without diversity: read only."""
    home = tmp_path_factory.mktemp("mixtures") / "home"
    tiny_run(home, THREE, "mtt.most_loss=1000", "mtt.lr_img=10", called="three")
    five = (*WHITE_AND_SOFT, "mtt.most_loss=1000", "mtt.lr_img=0.1")
    tiny_run(home, FIVE, *five, *ALL_PAIRS, called="five")
    tiny_run(home, FIVE, *five, "diversity.every=0", called="apart")
    return home


def stored(home: Path, called: str) -> StoredSet:
    folder = home / "sets" / called
    return read_tensors(folder, read_manifest(folder))


def spaces(manifest: Manifest) -> list[str]:
    return [entry.trained_in.space for entry in manifest.experts]


def test_three_methods_keep_their_rules_spaces_and_step_sizes(mixed_home: Path) -> None:
    manifest = validate_set(mixed_home / "sets" / "three")
    idc, mtt, dm = manifest.experts
    assert [entry.method for entry in manifest.experts] == ["idc", "mtt", "dm"]
    assert idc.decode == TilesDecode(factor=2, order="row-major")
    assert (mtt.decode, dm.decode) == (NoDecode(), NoDecode())
    assert spaces(manifest) == ["unit", "normalized", "normalized"]
    assert dm.trained_in.mean == manifest.source.mean
    assert (idc.step_size, dm.step_size) == (None, None)
    assert mtt.step_size is not None
    assert mtt.step_size == pytest.approx(0.05, rel=0.4)
    assert [entry.decoded_per_class[0] for entry in manifest.experts] == [8, 2, 2]
    assert [entry.part.index for entry in manifest.experts] == [0, 1, 2]
    assert len({entry.part.fingerprint for entry in manifest.experts}) == 3
    assert manifest.labels.kind == "hard"
    assert manifest.evaluation["protocol"] == "common"
    assert manifest.diversity is not None
    assert [pair.experts for pair in manifest.diversity.pairs] == [(0, 1), (0, 2), (1, 2)]


def test_a_whitened_and_a_soft_expert_do_not_change_the_others(mixed_home: Path) -> None:
    folder = mixed_home / "sets" / "five"
    manifest = validate_set(folder)
    assert spaces(manifest) == ["zca", "unit", "unit", "normalized", "unit"]
    matrix = manifest.experts[0].trained_in.matrix
    assert matrix is not None
    assert (folder / matrix).is_file()
    assert [entry.decode.kind for entry in manifest.experts] == ["none"] * 3 + ["tiles", "none"]
    assert manifest.labels.kind == "soft"
    tensors = stored(mixed_home, "five")
    assert tensors.soft_labels is not None
    hard = F.one_hot(tensors.labels, 10).float()
    for entry in manifest.experts:
        rows = tensors.experts == entry.id
        one_hot = torch.equal(tensors.soft_labels[rows], hard[rows])
        assert one_hot is (entry.method != "rded")
    torch.testing.assert_close(tensors.soft_labels.sum(1), torch.ones(50))


def test_images_made_at_once_stay_while_all_their_partners_move(mixed_home: Path) -> None:
    together, apart = stored(mixed_home, "five"), stored(mixed_home, "apart")
    for entry in together.manifest.experts:
        rows = together.experts == entry.id
        same = torch.equal(together.images[rows], apart.images[rows])
        assert same is (entry.method in ("rded", "herding", "kcenter")), entry.method


@pytest.mark.parametrize("called", ["three", "five"])
@pytest.mark.parametrize("fuse", [None, *FUSE_MODES])
def test_every_fusion_loads_every_mixture(called: str, fuse: Any, mixed_home: Path) -> None:
    ds = load_distilled(mixed_home / "sets" / called, fuse=fuse)
    wanted = {"three": 10 * (8 + 2 + 2), "five": 10 * (1 + 1 + 1 + 4 + 1)}[called]
    assert len(ds) == wanted
    images, labels = next(iter(ds.batches(wanted, shuffle=False)))
    assert images.shape == (wanted, 1, 8, 8)
    assert images.isfinite().all()
    if fuse is None and called == "three":
        assert labels.dtype == torch.int64
        return
    assert (labels.shape, labels.dtype) == ((wanted, 10), torch.float32)
    torch.testing.assert_close(labels.sum(1), torch.ones(wanted))
    plain, _ = next(
        iter(load_distilled(mixed_home / "sets" / called).batches(wanted, shuffle=False))
    )
    assert torch.equal(images, plain) is (fuse in (None, "none"))


@pytest.mark.parametrize("called", ["three", "five"])
def test_loader_and_evaluation_see_the_same_images(called: str, mixed_home: Path) -> None:
    of = stored(mixed_home, called)
    images, labels, experts = distilled_images(of)
    ds = load_distilled(mixed_home / "sets" / called, fuse="none")
    loaded, targets = next(iter(ds.batches(len(ds), shuffle=False)))
    assert torch.equal(loaded, images)
    assert torch.equal(targets, labels if labels.dim() == 2 else F.one_hot(labels, 10).float())
    for entry in of.manifest.experts:
        alone = load_distilled(mixed_home / "sets" / called, experts=[entry.id])
        rows = experts == entry.id
        assert len(alone) == int(rows.sum()) == sum(entry.decoded_per_class)
        shown, _ = next(iter(alone.batches(len(alone), shuffle=False)))
        assert torch.equal(shown, images[rows])


def test_show_and_evaluate_take_a_mixture(mixed_home: Path, tmp_path: Path) -> None:
    out = cli("show", mixed_home / "sets" / "five").out
    for part in ("zca", "normalized", "tiles 2x2", "labels: soft", "mean over 10 pairs of experts"):
        assert part in out
    told = cli(
        *("evaluate", mixed_home / "sets" / "three", "--epochs", "1", "--repeats", "1"),
        *("--fuse", "none,mixup", "--width", "8"),
    )
    assert told.code == 0, told.err
    assert told.out.count("distilled") == 2
    # The learned step size of the one expert that has one serves them all.
    told = cli(
        *("evaluate", mixed_home / "sets" / "three", "--protocol", "mtt", "--epochs", "1"),
        *("--repeats", "1", "--fuse", "none", "--width", "8"),
    )
    assert told.code == 0, told.err
