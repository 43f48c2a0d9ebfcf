"""ExpertMix: the laws of section "reference tests", on images constant = their own row number."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import FUSE_MODES, ExpertMix, Pool

CLASSES = 5
Batch = tuple[Tensor, Tensor, Tensor]


def batch(
    n: int, experts: int = 2, classes: int = CLASSES, size: tuple[int, int] = (4, 6)
) -> Batch:
    """n images of constant value = row number, labels and experts mixed over the rows."""
    rows = torch.arange(n)
    images = rows.float().view(-1, 1, 1, 1).expand(n, 2, *size).contiguous()
    return images, (rows // experts) % classes, rows % experts


def mix(**settings: Any) -> ExpertMix:
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    return ExpertMix(settings.pop("classes", CLASSES), generator=generator, **settings)


def test_images_and_labels_follow_the_formula_with_one_lam() -> None:
    images, labels, experts = batch(64, experts=3)
    mixed, targets, info = mix(alpha=0.7)(images, labels, experts, return_info=True)
    lam, q = info.lam.double(), info.partner
    want = lam * torch.arange(64) + (1 - lam) * q
    torch.testing.assert_close(mixed.double(), want.view(-1, 1, 1, 1).expand_as(mixed))
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[labels]
    torch.testing.assert_close(
        targets.double(), lam[:, None] * one_hot + (1 - lam)[:, None] * one_hot[q]
    )
    assert targets.dtype == torch.float32
    assert mixed.dtype == images.dtype
    assert (targets.sum(1) == 1).all()


def test_image_and_label_lam_are_tied() -> None:
    # Images are constant = class number: the mean pixel is then the mean class of the label row.
    _, labels, experts = batch(500)
    images = labels.double().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    for op in ("mixup", "dirichlet", "cutmix"):
        mixed, targets = mix(op=op)(images, labels, experts)
        classes = torch.arange(CLASSES).double()
        torch.testing.assert_close(
            mixed.mean((1, 2, 3)), targets.double() @ classes, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("mode", ["cross", "vanilla", "same"])
def test_alpha_zero_is_the_identity(mode: str) -> None:
    images, labels, experts = batch(9)
    mixed, targets, info = mix(mode=mode, alpha=0.0)(images, labels, experts, return_info=True)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, F.one_hot(labels, CLASSES).float())
    assert (info.lam == 1).all()


@pytest.mark.parametrize("partner", ["expert", "sample"])
@pytest.mark.parametrize("pooled", [True, False])
def test_partners_always_come_from_another_expert(partner: str, pooled: bool) -> None:
    n = 10_000
    images, labels, experts = batch(n, experts=3, size=(1, 1))
    pool = Pool(*batch(77, experts=3, size=(1, 1))) if pooled else None
    source = experts if pool is None else pool.experts
    _, _, info = mix(partner=partner)(images, labels, experts, pool, return_info=True)
    assert (source[info.partner] != experts).all()
    assert info.mixed.all()


def test_same_mode_stays_inside_and_vanilla_share_is_one_over_k() -> None:
    images, labels, experts = batch(9000, experts=3, size=(1, 1))
    _, _, same = mix(mode="same")(images, labels, experts, return_info=True)
    assert (experts[same.partner] == experts).all()
    _, _, vanilla = mix(mode="vanilla")(images, labels, experts, return_info=True)
    share = (experts[vanilla.partner] == experts).float().mean()
    assert share == pytest.approx(1 / 3, abs=0.02)


def test_partner_rule_with_unequal_experts() -> None:
    # Pool: expert 0 has 10 rows, 1 has 3, 2 has 30. Anchors are of expert 0.
    owner = torch.tensor([0] * 10 + [1] * 3 + [2] * 30)
    pool = Pool(torch.zeros(43, 1, 1, 1), torch.zeros(43, dtype=torch.long), owner)
    n = 12_000
    anchors = (torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.long))
    experts = torch.zeros(n, dtype=torch.long)
    for partner, share in (("expert", 1 / 2), ("sample", 3 / 33)):
        _, _, info = mix(partner=partner)(*anchors, experts, pool, return_info=True)
        assert (owner[info.partner] == 1).float().mean() == pytest.approx(share, abs=0.02)
        # Inside an expert every row is equally likely.
        counts = torch.bincount(info.partner, minlength=43)[13:].numpy()
        assert stats.chisquare(counts).pvalue > 1e-3
        assert (torch.bincount(info.partner, minlength=43)[:10] == 0).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lam_is_beta_not_uniform_for_every_alpha(alpha: float) -> None:
    images, labels, experts = batch(20_000, size=(1, 1))
    _, _, info = mix(alpha=alpha)(images, labels, experts, return_info=True)
    lam = info.lam.double()
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_repeatable_from_its_seed_and_different_at_every_call() -> None:
    data = batch(16)
    first, second = mix(seed=3), mix(seed=3)
    a, b = first(*data), second(*data)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(first(*data)[0], a[0])
    assert not torch.equal(mix(seed=4)(*data)[0], a[0])


def test_global_state_is_neither_read_nor_advanced() -> None:
    data = batch(16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = mix()(*data)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(mix()(*data)[0], a)


def test_streams_stay_aligned_between_settings() -> None:
    # Switching prob, op or mode leaves the numbers that the others see as they were.
    data = batch(200, experts=3)
    full, part = mix(), mix(prob=0.3)
    for _ in range(2):
        _, _, a = full(*data, return_info=True)
        _, _, b = part(*data, return_info=True)
        assert torch.equal(a.partner, b.partner)
        assert torch.equal(a.lam[b.mixed], b.lam[b.mixed])
    nothing = mix(mode="none")
    nothing(*data)
    nothing(*data)
    assert nothing.generator.get_state().equal(full.generator.get_state())


def test_choices_do_not_depend_on_where_the_images_are() -> None:
    # The plan comes from the host, so a GPU (where there is one) sees the same choices.
    images, labels, experts = batch(33)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, _, a = mix()(images, labels, experts, return_info=True)
    moved = (images.double().to(device), labels.to(device), experts.to(device))
    _, targets, b = mix()(*moved, return_info=True)
    assert torch.equal(a.partner, b.partner.cpu())
    assert torch.equal(a.lam, b.lam.cpu())
    assert targets.device.type == device


def test_prob_mixes_its_share() -> None:
    images, labels, experts = batch(10_000, size=(1, 1))
    mixed, targets, info = mix(prob=0.3)(images, labels, experts, return_info=True)
    assert info.mixed.float().mean() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(mixed[~info.mixed], images[~info.mixed])
    assert (targets[~info.mixed].max(1).values == 1).all()


def test_mode_none_and_prob_zero_give_one_hot_floats() -> None:
    images, labels, experts = batch(7, experts=1)
    for transform in (mix(mode="none"), mix(mode="vanilla", prob=0.0)):
        mixed, targets = transform(images, labels, experts)
        assert torch.equal(mixed, images)
        assert targets.dtype == torch.float32
        assert torch.equal(targets, F.one_hot(labels, CLASSES).float())


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    "settings", [{"mode": "none"}, {"prob": 0.0}, {"off_epoch": 0}, {"alpha": 0.0}, {}]
)
def test_what_is_returned_is_never_the_callers_own(settings: dict[str, Any], pooled: bool) -> None:
    images, labels, experts = batch(8)
    rows = F.one_hot(labels, CLASSES).float()
    pool = Pool(images, rows, experts) if pooled else None
    transform = mix(**settings)
    transform.set_epoch(0)
    mixed, targets = transform(images, rows, experts, pool)
    before = images.clone(), rows.clone()
    mixed.zero_()
    targets.zero_()
    assert torch.equal(images, before[0])
    assert torch.equal(rows, before[1])


@pytest.mark.parametrize("op", ["mixup", "cutmix", "dirichlet"])
def test_same_class_keeps_labels(op: str) -> None:
    images, labels, experts = batch(60, experts=3)
    mixed, targets, info = mix(op=op, same_class=True)(images, labels, experts, return_info=True)
    assert torch.equal(targets, F.one_hot(labels, CLASSES).float())
    partners = info.partner.view(60, -1)
    assert (labels[partners] == labels[:, None]).all()
    assert (experts[partners] != experts[:, None]).all()
    assert not torch.equal(mixed, images)


def test_same_class_without_a_partner_names_the_way_out() -> None:
    images, experts = torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])
    labels = torch.tensor([0, 1, 0, 2])
    with pytest.raises(UsageError, match="of the same class"):
        mix(same_class=True)(images, labels, experts)
    _, _, info = mix(same_class=True, fallback="none")(images, labels, experts, return_info=True)
    assert info.mixed.tolist() == [True, False, True, False]
    _, _, info = mix(same_class=True, fallback="vanilla")(images, labels, experts, return_info=True)
    assert info.mixed.all()
    assert (labels[info.partner] == labels).all()


@pytest.mark.parametrize("op", ["mixup", "cutmix", "dirichlet"])
def test_one_expert_raises_and_falls_back_only_when_told(op: str) -> None:
    images, labels, experts = batch(6, experts=1)
    with pytest.raises(ValueError, match=r"vanilla.*none"):
        mix(op=op)(images, labels, experts)
    mixed, _, info = mix(op=op, fallback="vanilla")(images, labels, experts, return_info=True)
    assert info.mixed.all()
    mixed, targets, info = mix(op=op, fallback="none")(images, labels, experts, return_info=True)
    assert torch.equal(mixed, images)
    assert (targets.max(1).values == 1).all()
    assert not info.mixed.any()


@given(
    n=st.integers(1, 9),
    fuse=st.sampled_from(sorted(FUSE_MODES)),
    lam=st.sampled_from(["sample", "batch"]),
    alpha=st.floats(0, 3),
    soft=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_batch_size_with_a_pool(n: int, fuse: str, lam: str, alpha: float, soft: bool) -> None:
    pool_images, pool_labels, pool_experts = batch(21, experts=3)
    images, labels, experts = batch(n, experts=3)
    before = [part.clone() for part in (images, labels, experts, pool_images)]
    transform = ExpertMix.named(fuse, CLASSES, lam=lam, alpha=alpha)
    pool = F.one_hot(pool_labels, CLASSES).float() if soft else pool_labels
    mixed, targets = transform(images, labels, experts, (pool_images, pool, pool_experts))
    assert mixed.shape == images.shape
    assert targets.shape == (n, CLASSES)
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    assert mixed.isfinite().all()
    assert mixed.max() <= 20 + 1e-4
    assert mixed.min() >= -1e-6
    for part, copied in zip((images, labels, experts, pool_images), before, strict=True):
        assert torch.equal(part, copied)


def test_soft_labels_equal_integers() -> None:
    images, labels, experts = batch(40)
    soft = F.one_hot(labels, CLASSES).double()
    a = mix()(images, labels, experts)
    b = mix(classes=None)(images, soft, experts)
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1])
    assert b[1].dtype == torch.float32


def test_soft_cross_entropy_is_the_two_term_loss() -> None:
    images, labels, experts = batch(64)
    _, targets, info = mix()(images, labels, experts, return_info=True)
    logits = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
    lam, q = info.lam, info.partner
    per_row = {"reduction": "none"}
    two = lam * F.cross_entropy(logits, labels, **per_row) + (1 - lam) * F.cross_entropy(
        logits, labels[q], **per_row
    )
    torch.testing.assert_close(F.cross_entropy(logits, targets), two.mean())


def test_batch_lam_is_shared() -> None:
    images, labels, experts = batch(32, experts=3)
    for op in ("mixup", "dirichlet", "cutmix"):
        _, _, info = mix(op=op, lam="batch")(images, labels, experts, return_info=True)
        assert (info.weights == info.weights[0]).all()
    _, _, info = mix(op="mixup")(images, labels, experts, return_info=True)
    assert len(info.lam.unique()) > 20


def test_cutmix_pastes_a_box_and_weighs_labels_by_the_kept_area() -> None:
    images, labels, experts = batch(400, size=(7, 10))
    mixed, targets, info = mix(op="cutmix")(images, labels, experts, return_info=True)
    rows = torch.arange(400).view(-1, 1, 1)
    pasted = mixed[:, 0] != rows
    partners = info.partner.view(-1, 1, 1).expand(400, 7, 10)
    assert torch.equal(mixed[:, 0][pasted], partners[pasted].float())
    torch.testing.assert_close(info.lam, 1 - pasted.float().mean((1, 2)))
    # A box: as many pixels as rows touched x columns touched.
    area = pasted.any(2).sum(1) * pasted.any(1).sum(1)
    assert torch.equal(area, pasted.sum((1, 2)))
    # Side ratio sqrt(1 - lam) with lam uniform: before clipping the mean area is 1/2, after about
    # a third (1 - 1/2 of half sides cut at the rim); it must be far from none and from all.
    assert 0.2 < pasted.float().mean() < 0.4
    kept = torch.eye(CLASSES)[labels] * info.lam[:, None]
    torch.testing.assert_close(
        targets, kept + torch.eye(CLASSES)[labels[info.partner]] * (1 - info.lam)[:, None]
    )


def test_dirichlet_takes_one_image_of_every_expert() -> None:
    images, labels, experts = batch(3000, experts=4, size=(1, 1))
    mixed, _, info = mix(op="dirichlet")(images, labels, experts, return_info=True)
    taken = torch.cat([experts[:, None], experts[info.partner]], dim=1)
    assert torch.equal(taken.sort(1).values, torch.arange(4).expand(3000, 4))
    rows = torch.cat([torch.arange(3000)[:, None], info.partner], dim=1).double()
    want = (rows * info.weights).sum(1)
    torch.testing.assert_close(mixed[:, 0, 0, 0].double(), want, rtol=1e-6, atol=0)
    # Each weight of Dirichlet(1, 1, 1, 1) is Beta(1, 3): mean 1/4, variance 3/80.
    np.testing.assert_allclose(info.weights.mean(0), 0.25, atol=0.015)
    np.testing.assert_allclose(info.weights.var(0), 3 / 80, rtol=0.1)


def test_dirichlet_of_two_experts_is_mixup() -> None:
    images, labels, experts = batch(4000, size=(1, 1))
    _, _, info = mix(op="dirichlet", alpha=0.4)(images, labels, experts, return_info=True)
    assert info.lam.var() == pytest.approx(1 / (4 * 1.8), rel=0.05)
    assert info.partner.shape == (4000, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_stay_what_they_are(dtype: torch.dtype) -> None:
    images, labels, experts = batch(12)
    reference, _ = mix()(images.double(), labels, experts)
    mixed, targets = mix()(images.to(dtype), labels, experts)
    assert mixed.dtype == dtype
    assert targets.dtype == torch.float32
    # One rounding of the result, none of lam.
    assert torch.equal(mixed, mix()(images, labels, experts)[0].to(dtype)) or dtype == torch.float64
    torch.testing.assert_close(mixed.double(), reference, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_copies_and_pickles_continue_the_same_stream() -> None:
    data = batch(20)
    first = mix(seed=8)
    first(*data)
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    want = first(*data)[0]
    for other in copies:
        assert torch.equal(other(*data)[0], want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "crss"}, "did you mean 'cross'"),
        ({"op": "blend"}, "known: cutmix, dirichlet, mixup"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"prob": 1.5}, "prob is 1.5"),
        ({"op": "dirichlet", "mode": "same"}, 'use mode="cross"'),
        ({"fallback": "warn"}, "unknown fallback"),
        ({"classes": 0}, "num_classes is 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mix(**settings)


def test_inputs_that_cannot_be_meant() -> None:
    images, labels, experts = batch(6)
    cases: list[tuple[ExpertMix, tuple[Any, ...], str]] = [
        (mix(), ((images * 10).to(torch.uint8), labels, experts), r"floats in \[0, 1\]"),
        (mix(), (images, labels + 5, experts), "labels from 5"),
        (mix(), (images, labels - 1, experts), "labels from -1"),
        (mix(classes=None), (images, labels, experts), "num_classes"),
        (mix(classes=3), (images, torch.rand(6, 4), experts), "shape"),
        (mix(), (images, labels[:5], experts), "labels have shape"),
        (mix(), (images, labels, experts.float()), "expert ids"),
        (mix(), (images[:0], labels[:0], experts[:0]), "B >= 1"),
        (mix(), (images[:, 0], labels, experts), "shape"),
        (mix(), (images, labels, experts, (images[:, :1], labels, experts)), "the same shape"),
        (mix(op="dirichlet"), (images, labels, experts + 1, (images, labels, experts)), "expert 2"),
    ]
    for transform, args, message in cases:
        with pytest.raises(UsageError, match=message):
            transform(*args)


def test_unknown_public_string_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown fuse 'mixap'.*did you mean 'mixup'"):
        ExpertMix.named("mixap", 10)
    assert ExpertMix.named("cutmix", 10).settings()["op"] == "cutmix"
