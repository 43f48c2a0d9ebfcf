"""Training one network: plain SGD where nothing is asked for, and what a recipe adds to it."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from enginefactories import WIDTH, digits
from torch import Tensor

from moedd import train
from moedd.augment import CutMixDraw
from moedd.networks import Network, build_network
from moedd.parts import whole
from moedd.streams import Streams
from moedd.train import Augment, Fetch, Recipe, Trainer, accuracy, shuffled_batches

PLAIN = Recipe(name="plain", passes=3, batch=8)
PART = whole(digits(2, 16))


def network() -> Network:
    generator = torch.Generator().manual_seed(1)
    return build_network(
        "convnet2", channels=1, classes=2, size=(8, 8), width=WIDTH, generator=generator
    )


def trainer(recipe: Recipe = PLAIN, *, seed: int = 0, flip: bool = False) -> Trainer:
    return Trainer(network(), recipe, Streams(seed), flip)


def batch(rows: slice = slice(8, 24), seen: list[bool] | None = None) -> Fetch:
    index = torch.arange(len(PART.labels))[rows]

    def fetch(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
        if seen is not None:
            seen.append(plain)
        return augment(PART.normalized(index)), PART.labels[index]

    return fetch


def parameters(made: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


# -- one step --------------------------------------------------------------------------------
def test_without_augmentation_it_is_torchs_sgd_on_the_cross_entropy() -> None:
    ours, reference = trainer(), network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for step in range(3):
        rows = slice(8 * step, 8 * step + 8)
        images, labels = PART.normalized(torch.arange(32)[rows]), PART.labels[rows]
        loss = F.cross_entropy(reference(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = ours.step(batch(rows))
        assert not found.requires_grad
        assert torch.equal(found, loss.detach())
    for p, q in zip(ours.network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)
    assert ours.steps == 3


def test_labels_may_be_distributions() -> None:
    hard, soft = trainer(), trainer()
    fetch = batch()

    def distributions(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
        images, labels = fetch(augment, plain)
        return images, F.one_hot(labels, 2).float()

    torch.testing.assert_close(hard.step(fetch), soft.step(distributions))
    torch.testing.assert_close(parameters(hard), parameters(soft))


def test_a_teachers_labels_are_those_of_the_mixed_images_at_its_temperature() -> None:
    """RDED: KL(q || softmax(student / T)), q = softmax(teacher / T), mean over images, no T^2."""
    recipe = replace(PLAIN, temperature=20.0, cutmix=1.0, optimizer="adamw", weight_decay=0.01)
    asked: list[Tensor] = []
    teaching, reference = network().double(), network().double()
    with torch.no_grad():
        for parameter in teaching.parameters():
            parameter.mul_(2)

    def teacher(images: Tensor) -> Tensor:
        asked.append(images)
        with torch.no_grad():
            return teaching(images)

    def precise(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
        images, labels = batch()(augment, plain)
        return images.double(), labels

    # AdamW makes steps of one size of gradients of any: rounding would show in float32.
    ours = Trainer(network().double(), recipe, Streams(0), flip=False, teacher=teacher)
    groups = [
        {"params": [p for n, p in reference.named_parameters() if p.ndim > 1], "weight_decay": 0.01}
    ]
    groups += [{"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999))
    for _ in range(3):
        found = ours.step(precise)
        images = asked[-1]
        q = (teacher(images) / 20).softmax(1)
        given = (reference(images) / 20).softmax(1)
        loss = (q * (q.log() - given.log())).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(found) == pytest.approx(float(loss.detach()), rel=1e-9)
    wanted = torch.cat([p.detach().flatten() for p in reference.parameters()])
    torch.testing.assert_close(parameters(ours), wanted, atol=1e-9, rtol=0)
    # It was asked about images that CutMix had put together.
    assert not torch.equal(asked[0].float(), PART.normalized(torch.arange(32)[8:24]))


def test_cutmix_comes_with_its_probability_and_asks_for_an_unfused_batch() -> None:
    for probability, low, high in ((0.0, 0, 0), (0.5, 12, 28), (1.0, 40, 40)):
        seen: list[bool] = []
        made = trainer(Recipe(name="c", passes=1, batch=8, cutmix=probability))
        for _ in range(40):
            made.step(batch(slice(0, 2), seen))
        assert low <= sum(seen) <= high


def test_cutmix_is_done_with_the_paste_and_the_loss_of_one_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws: list[CutMixDraw] = []
    plain = train.draw_cutmix

    def recording(generator: torch.Generator, n: int, size: tuple[int, int]) -> CutMixDraw:
        draws.append(plain(generator, n, size))
        return draws[-1]

    monkeypatch.setattr(train, "draw_cutmix", recording)
    made = trainer(Recipe(name="c", passes=1, batch=8, cutmix=1.0))
    before = deepcopy(made.network)
    losses = [made.step(batch())]
    images, labels = PART.normalized(torch.arange(8, 24)), PART.labels[8:24]
    (draw,) = draws
    top, bottom, left, right = draw.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[draw.perm][:, :, top:bottom, left:right]
    logits = before(mixed)
    share = (bottom - top) * (right - left) / 64
    expected = (1 - share) * F.cross_entropy(logits, labels)
    expected = expected + share * F.cross_entropy(logits, labels[draw.perm])
    torch.testing.assert_close(losses[0], expected.detach())


@pytest.mark.parametrize("augment", ["dsa", "idc"])
def test_augmentation_has_parameters_per_image_and_leaves_flip_out_on_demand(augment: str) -> None:
    families = ("color", "crop", "flip")
    recipe = Recipe(name="a", passes=1, batch=8, augment=augment, families=families)  # type: ignore[arg-type]
    assert trainer(recipe, flip=True).families == families
    made = trainer(recipe, flip=False)
    assert made.families == ("color", "crop")
    # The same image eight times: parameters per image make eight different ones.
    images = PART.normalized(torch.zeros(8, dtype=torch.int64)) + torch.randn(
        1, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    changed = [made.augment(images, torch.Generator().manual_seed(s)) for s in range(5)]
    assert max(len(torch.unique(c.flatten(1), dim=0)) for c in changed) == 8
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(trainer().augment(images, torch.Generator()), images)


def test_every_step_draws_anew() -> None:
    made = trainer(Recipe(name="a", passes=1, batch=8, augment="idc", families=("color",)))
    shown: list[Tensor] = []

    def fetch(augment: Augment, plain: bool) -> tuple[Tensor, Tensor]:
        shown.append(augment(PART.normalized(torch.arange(8))))
        return shown[-1], PART.labels[:8]

    made.step(fetch)
    made.step(fetch)
    assert not torch.equal(*shown)


def test_training_depends_on_its_streams_alone() -> None:
    recipe = Recipe(
        name="a", passes=1, batch=8, augment="idc", families=("color", "crop"), cutmix=0.5
    )
    before = torch.get_rng_state()
    one, same, other = (trainer(recipe, seed=seed) for seed in (1, 1, 2))
    for made in (one, same, other):
        for _ in range(3):
            made.step(batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(parameters(one), parameters(same))
    assert not torch.equal(parameters(one), parameters(other))
    # A step's draws belong to its number: one that goes on at step 3 draws what the other draws.
    later = trainer(recipe, seed=1)
    later.network.load_state_dict(one.network.state_dict())
    later.optimizer.load_state_dict(one.optimizer.state_dict())
    later.steps = 3
    assert torch.equal(one.step(batch()), later.step(batch()))


# -- the schedule ----------------------------------------------------------------------------
def momentum(made: Trainer) -> float:
    return sum(
        float(state["momentum_buffer"].abs().sum())
        for state in made.optimizer.state.values()
        if state.get("momentum_buffer") is not None
    )


@pytest.mark.parametrize("reset", [True, False])
def test_the_rate_decays_after_its_epoch_and_momentum_goes_with_a_reset(reset: bool) -> None:
    made = trainer(Recipe(name="d", passes=5, batch=8, decay=((1, 0.1), (3, 0.5)), reset=reset))
    made.step(batch())
    for epoch, rate in enumerate([0.01, 0.001, 0.001, 0.0005, 0.0005]):
        held, optimizer = momentum(made), made.optimizer
        assert held > 0
        made.after_epoch(epoch)
        decays = epoch in (1, 3)
        assert made.lr == pytest.approx(rate)
        assert [g["lr"] for g in made.optimizer.param_groups] == pytest.approx([rate])
        assert (made.optimizer is not optimizer) is (reset and decays)
        assert momentum(made) == (0 if reset and decays else held)
        (group,) = made.optimizer.param_groups
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
        made.step(batch())


# -- the order of the data -------------------------------------------------------------------
def take(n: int, size: int, count: int, start: int = 0, seed: int = 0) -> list[list[int]]:
    batches = shuffled_batches(n, size, Streams(seed), start)
    return [next(batches).tolist() for _ in range(count)]


def test_every_epoch_is_a_shuffle_of_all_rows_with_a_ragged_tail() -> None:
    found = take(10, 4, 9)
    assert [len(rows) for rows in found] == [4, 4, 2] * 3
    epochs = [[row for rows in found[3 * e : 3 * e + 3] for row in rows] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert take(10, 4, 9, seed=1) != found
    assert take(3, 64, 2) != [[0, 1, 2], [0, 1, 2]]
    assert [sorted(rows) for rows in take(3, 64, 2)] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7])
def test_a_resumed_order_goes_on_where_it_was(start: int) -> None:
    assert take(10, 4, 6, start) == take(10, 4, 6 + start)[start:]


# -- accuracy --------------------------------------------------------------------------------
def test_accuracy_is_the_share_of_right_answers_whatever_the_batch() -> None:
    net = network()
    with torch.no_grad():
        right = net(PART.normalized(torch.arange(32))).argmax(1) == PART.labels
    for size in (500, 32, 5):
        found = accuracy(net, torch.arange(32), PART.labels, PART.normalized, batch=size)
        assert found == float(right.float().mean())
    assert net.training


def test_accuracy_is_measured_in_eval_mode() -> None:
    net = build_network("convnet2_bn", channels=1, classes=2, size=(8, 8), width=WIDTH)
    before = deepcopy(net.state_dict())
    accuracy(net, torch.arange(32), PART.labels, PART.normalized)
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
