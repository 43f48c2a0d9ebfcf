"""What experts whose images move share: optimisers, siamese batches, steps taken back."""

import pytest
import torch
from enginefactories import make_expert, random_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moedd.experts.moving import ClasswiseSGD, ImageSGD
from moedd_loaders.errors import NonFiniteError


def pull(x: Tensor, c: int) -> Tensor:
    """A gradient that depends on the place, so that a class visited at a wrong place shows."""
    return (3 * x + c).sin() + 0.1 * c


# -- the optimiser ---------------------------------------------------------------------------
@given(
    classes=st.integers(1, 5),
    ipc=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    lr=st.floats(0.01, 1),
    rounds=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_classwise_sgd_is_sgd_over_the_whole_tensor_stepped_once_per_class(
    classes: int, ipc: int, momentum: float, lr: float, rounds: int
) -> None:
    generator = torch.Generator().manual_seed(classes * 10 + ipc)
    start = torch.randn(classes * ipc, 2, 3, generator=generator, dtype=torch.float64)
    whole_tensor = start.clone().requires_grad_()
    reference = torch.optim.SGD([whole_tensor], lr=lr, momentum=momentum)
    images = start.clone()
    ours = ClasswiseSGD(images, classes, lr, momentum)
    for _ in range(rounds):
        for c in range(classes):
            rows = slice(c * ipc, (c + 1) * ipc)
            ours.before([c], rows)
            torch.testing.assert_close(images[rows], whole_tensor.detach()[rows])
            ours.step([c], rows, pull(images[rows], c))
            whole_tensor.grad = torch.zeros_like(whole_tensor)
            whole_tensor.grad[rows] = pull(whole_tensor.detach()[rows], c)
            reference.step()
        torch.testing.assert_close(images, whole_tensor.detach())
    if momentum:
        buffer = reference.state[whole_tensor]["momentum_buffer"]
        torch.testing.assert_close(ours.velocity, buffer)


def test_a_class_halves_its_movement_with_every_class_step_after_its_own() -> None:
    images = torch.zeros(3, 1, dtype=torch.float64)
    optimizer = ClasswiseSGD(images, 3, lr=1.0, momentum=0.5)
    for c in range(3):
        optimizer.before([c], slice(c, c + 1))
        optimizer.step([c], slice(c, c + 1), torch.ones(1, 1, dtype=torch.float64))
    assert images.flatten().tolist() == [-1.75, -1.5, -1.0]


def test_classes_together_are_moved_as_one_after_another() -> None:
    start = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    apart, together = start.clone(), start.clone()
    one, many = (ClasswiseSGD(images, 4, 0.3, 0.5) for images in (apart, together))
    # The pull must not depend on where the images are: those of a group move at the same time.
    gradient = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for group in ([0], [1, 2, 3]):
        rows = slice(2 * group[0], 2 * group[-1] + 2)
        many.before(group, rows)
        many.step(group, rows, gradient[rows])
        for c in group:
            own = slice(2 * c, 2 * c + 2)
            one.before([c], own)
            one.step([c], own, gradient[own])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(many.velocity, one.velocity)


def test_image_sgd_is_torchs_and_can_go_back() -> None:
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf, images = start.clone().requires_grad_(), start.clone()
    reference = torch.optim.SGD([leaf], lr=0.3, momentum=0.5)
    ours = ImageSGD(images, 0.3, 0.5)
    for c in range(3):
        ours.begin()
        before, velocity = images.clone(), ours.velocity.clone()
        ours.step(pull(images, c))
        leaf.grad = pull(leaf.detach(), c)
        reference.step()
        torch.testing.assert_close(images, leaf.detach())
        assert ours.moved() == pytest.approx(float((images - before).norm()))
    ours.undo()
    assert torch.equal(images, before)
    assert torch.equal(ours.velocity, velocity)


@pytest.mark.parametrize("method", ["idm", "idc", "dm", "dc"])
def test_a_step_that_leaves_the_finite_numbers_is_taken_back(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = make_expert(method, random_data((6, 5)), ipc=2)
    expert.step()
    start = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    monkeypatch.setattr(type(expert.optimizer), "moved", lambda self: float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=rf"image step of expert 0 \({method}\) is nan"):
        expert.step()
    for name in ("images", "velocity", "done"):
        assert torch.equal(expert.state_dict()[name], start[name])
