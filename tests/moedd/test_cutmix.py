"""CutMix as IDC uses it: pasting pixel by pixel, the law of the boxes, the loss."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from moedd.augment import CutMixDraw, apply_cutmix, cutmix_targets, draw_cutmix


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(n, *shape, generator=seeded(7), dtype=torch.float64)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.floats(0.2, 5))
@settings(max_examples=60, deadline=None)
def test_cutmix_pastes_one_box_of_the_permuted_batch(
    seed: int, height: int, width: int, beta: float
) -> None:
    n = 4
    draw = draw_cutmix(seeded(seed), n, (height, width), beta)
    top, bottom, left, right = draw.box
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert sorted(draw.perm.tolist()) == list(range(n))
    x = torch.arange(n * 2 * height * width).view(n, 2, height, width).float()
    mixed = apply_cutmix(x, draw)
    kept = 0
    for i in range(n):
        for r in range(height):
            for c in range(width):
                inside = top <= r < bottom and left <= c < right
                source = int(draw.perm[i]) if inside else i
                assert torch.equal(mixed[i, :, r, c], x[source, :, r, c])
                kept += not inside
    assert draw.rho == pytest.approx(kept / (n * height * width))


@pytest.mark.parametrize("beta", [1.0, 60.0])
def test_cutmix_boxes_follow_their_law(beta: float) -> None:
    """With side ratio r = sqrt(1 - lambda) and a uniform centre, clipping leaves r - r^2/4 of a
    side on average, hence E[1 - rho] = E[(r - r^2/4)^2]: 0.3208 for lambda uniform."""
    generator = seeded()
    shares = [1 - draw_cutmix(generator, 1, (1000, 500), beta).rho for _ in range(4000)]
    moments = torch.distributions.Beta(beta, beta)
    u = torch.linspace(0.0005, 0.9995, 1000)
    density = moments.log_prob(u).exp()
    expected = ((u.sqrt() - u / 4).square() * density).sum() / density.sum()
    if beta == 1:
        assert expected.item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=1e-3)
    assert sum(shares) / len(shares) == pytest.approx(expected.item(), abs=0.015)


def test_cutmix_of_an_empty_box_changes_nothing() -> None:
    draw = CutMixDraw(torch.tensor([2, 0, 1]), (3, 3, 1, 5), 1.0)
    assert torch.equal(apply_cutmix(images(3, (3, 6, 8)), draw), images(3, (3, 6, 8)))


def test_cutmix_is_differentiable_also_inside_transforms() -> None:
    draw = CutMixDraw(torch.tensor([1, 0]), (0, 2, 1, 3), 1 - 4 / 20)
    x = images(2, (2, 5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply_cutmix(x, draw), (x,))

    def total(x: Tensor) -> Tensor:
        return apply_cutmix(x, draw).square().sum()

    (expected,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(grad(total)(x.detach()), expected)
    torch.testing.assert_close(vmap(grad(total))(x.detach()[None])[0], expected)


def test_cutmix_targets_weigh_both_labels() -> None:
    logits = torch.randn(4, 5, generator=seeded(), dtype=torch.float64)
    y = torch.tensor([0, 3, 2, 4])
    draw = CutMixDraw(torch.tensor([3, 0, 1, 2]), (0, 1, 0, 1), 0.7)
    logs = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    pairs = zip(range(4), [0, 3, 2, 4], [4, 0, 3, 2], strict=True)
    # IDC's form: a weighted sum of the two labels' losses.
    expected = sum(-0.7 * logs[i, a] - 0.3 * logs[i, b] for i, a, b in pairs) / 4
    targets = cutmix_targets(F.one_hot(y, 5).double(), draw)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected)
