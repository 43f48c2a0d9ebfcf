"""Images cut into batches that memory has room for: the numbers of all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from enginefactories import make_expert, make_pool, random_data
from torch import Tensor

import moedd.profile
from moedd.arithmetic import arithmetic
from moedd.diversify import diversity_step, features
from moedd.diversity import DiversityConfig
from moedd.parts import split_parts
from moedd.pool import Pool, StoredNetwork
from moedd.profile import Profile
from moedd.streams import Streams
from moedd.train import test_batch as most_at_once

REAL = random_data([30, 30], (3, 16, 16))


def few_at_once(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """So many images of 16x16."""
    monkeypatch.setattr(moedd.profile, "_PIXELS_AT_ONCE", {"cpu": images * 256, "cuda": 2**30})


def exact(pool: Pool) -> Pool:
    """The pool in float64."""
    stored = [
        replace(s, parameters={n: p.double() for n, p in s.parameters.items()}) for s in pool.stored
    ]
    return replace(pool, stored=tuple(stored))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_how_many_go_through_at_once() -> None:
    profile = Profile()
    sizes = {8: 4000, 32: 250, 64: 62, 224: 5, 1024: 1}
    assert {side: profile.images_at_once((side, side)) for side in sizes} == sizes
    assert replace(profile, device="cuda").images_at_once((64, 64)) == 1000
    network = make_pool(random_data([4, 4], (3, 64, 64)), 1).network
    assert most_at_once(network, profile) == 62
    assert most_at_once(network, replace(profile, device="cuda")) == 250


def test_features_and_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, images = exact(make_pool(REAL)), noise(11, 3, 16, 16)

    def both(network: StoredNetwork, layer: str) -> tuple[Tensor, Tensor]:
        leaf = images.clone().requires_grad_()
        found = features(pool, network, leaf, layer)
        # Neither linear nor a sum over rows, as the loss on them is neither.
        (gradient,) = torch.autograd.grad(found.square().sum().sqrt() + found[0] @ found[-1], leaf)
        return found.detach(), gradient

    for layer in ("embedding", "logits"):
        whole = both(pool.stored[0], layer)
        with monkeypatch.context() as patch:
            few_at_once(patch, 4)
            cut = both(pool.stored[0], layer)
            plain = features(pool, pool.stored[0], images, layer)
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(plain, whole[0], rtol=1e-12, atol=1e-14)


def test_a_diversity_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def stepped() -> list[Tensor]:
        parts = split_parts(REAL, 2, "stratified", Streams(0), 4)
        pool = make_pool(REAL)
        pair = [make_expert("idm", part, pool=pool, ipc=4, index=part.index) for part in parts]
        for expert in pair:
            expert.step()  # a diversity step is as long as a share of the last one
        before = [expert.images.clone() for expert in pair]
        assert diversity_step(pair, DiversityConfig(every=1), Streams(0))
        after = [expert.images for expert in pair]
        assert not any(torch.equal(*sides) for sides in zip(before, after, strict=True))
        return after

    whole = stepped()
    few_at_once(monkeypatch, 5)
    torch.testing.assert_close(stepped(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2])
def test_mean_features_of_real_images(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = exact(make_pool(REAL))
    real, made = noise(classes, 23, 3, 16, 16), noise(classes, 3, 3, 16, 16, seed=1)
    functions = arithmetic(pool.network, Profile())

    def matched() -> tuple[Tensor, ...]:
        return functions.feature_match(
            pool.stored[0].parameters, real, made, torch.arange(classes), 0.5
        )

    whole = matched()
    few_at_once(monkeypatch, 6)
    torch.testing.assert_close(matched(), whole, rtol=1e-10, atol=1e-12)
