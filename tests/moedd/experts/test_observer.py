"""The observer: its classes by name, its accuracy before use, batch norm, its cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from enginefactories import digits, make_parts, make_pool, random_data
from torch import Tensor

from moedd.checkpoint import load_checkpoint, write_atomically
from moedd.experts import observer as module
from moedd.experts.observer import (
    Observer,
    ObserverRecipe,
    held_out,
    load_observer,
    observer_key,
    require_accuracy,
)
from moedd.networks import fitting_network
from moedd.parts import PartData, whole
from moedd.pool import Pool
from moedd.profile import Profile
from moedd_loaders.errors import DataError, MoeddError, UsageError


def recipe(part: PartData, **fields: Any) -> ObserverRecipe:
    channels, *size = part.shape
    name = fitting_network((size[0], size[1]), channels)
    plain: dict[str, Any] = {
        "network": name, "width": 8, "steps": 30, "batch": 16, "lr": 0.1, "seed": 0,
    }  # fmt: skip
    return ObserverRecipe(**{**plain, **fields})


def trained(part: PartData, folder: Path | None = None, **fields: Any) -> Observer:
    pool = replace(make_pool(part), folder=folder)
    return load_observer("part", part, recipe(part, **fields), pool, Profile())


def judged(observer: Observer, part: PartData) -> float:
    return observer.accuracy(part, held_out(part)[1])


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often an observer was trained."""
    counted: list[int] = []
    plain = module._train

    def train(*given: Any) -> Observer:
        counted.append(1)
        return plain(*given)

    monkeypatch.setattr(module, "_train", train)
    return counted


# -- classes -----------------------------------------------------------------------------------
def shuffled_classes(part: PartData, order: list[int]) -> PartData:
    """The same images under the same names, whose numbers are others."""
    new = torch.tensor([order.index(c) for c in range(len(order))])
    return replace(
        part,
        labels=new[part.labels],
        rows=tuple(part.rows[c] for c in order),
        classes=tuple(part.classes[c] for c in order),
    )


def test_logits_follow_the_names_of_the_classes_whatever_their_order() -> None:
    part = whole(digits(4, 40))
    observer = trained(part, steps=60)
    accuracy = judged(observer, part)
    assert accuracy > 0.8
    other = shuffled_classes(part, [2, 0, 3, 1])
    assert judged(observer, other) == accuracy
    # By number the same observer would be worse than chance.
    wrong = replace(observer, classes=other.classes)
    assert judged(wrong, other) < 0.25
    images = part.normalized(torch.arange(5))
    by_order = observer.logits(images, part.classes)
    assert torch.equal(observer.logits(images, other.classes), by_order[:, [2, 0, 3, 1]])
    assert torch.equal(observer.logits(images, part.classes[1:3]), by_order[:, 1:3])


def test_a_class_that_the_observer_does_not_know_is_named() -> None:
    part = whole(digits(2, 20))
    observer = trained(part, steps=1)
    with pytest.raises(DataError, match=r"no class 'cat' \(and 1 more\).*trained on 0, 1"):
        observer.logits(part.normalized(torch.arange(2)), ("0", "cat", "dog"))


# -- accuracy ----------------------------------------------------------------------------------
def test_one_image_in_ten_of_every_class_is_never_trained_on(served: list[Tensor]) -> None:
    part = whole(random_data((25, 11, 1)))
    training, held = held_out(part)
    assert [int((part.labels[held] == c).sum()) for c in range(3)] == [3, 2, 1]
    assert set(training.tolist()) & set(held.tolist()) == set(part.rows[2].tolist())
    assert sorted({*training.tolist(), *held.tolist()}) == list(range(37))
    served.clear()
    trained(part, steps=10)
    assert set(torch.cat(served).tolist()) == set(training.tolist())


def test_an_observer_that_learned_nothing_is_refused_in_one_sentence() -> None:
    require_accuracy(0.28, 10, 0.2, "expert 0 (rded)", 50)
    for accuracy in (0.27, 0.1, 0.0, float("nan")):
        with pytest.raises(UsageError, match=r"expert 0 \(rded\)") as caught:
            require_accuracy(accuracy, 10, 0.2, "expert 0 (rded)", 50)
        for said in ("50 held-out images", "28.0%", "chance is 10.0%", "observer_steps"):
            assert said in str(caught.value)
        assert caught.value.exit_code == 2
    require_accuracy(0.5, 2, 0.0, "expert 0 (rded)", 50)
    with pytest.raises(UsageError):
        require_accuracy(0.55, 2, 0.2, "expert 0 (rded)", 50)


def test_accuracy_is_the_share_of_right_answers_on_plain_images() -> None:
    part = whole(digits(3, 40))
    observer = trained(part, steps=20)
    rows = torch.arange(7, 90, 2)
    found = observer.logits(part.normalized(rows), part.classes).argmax(1)
    assert observer.accuracy(part, rows) == float((found == part.labels[rows]).double().mean())


# -- batch norm --------------------------------------------------------------------------------
def test_a_batch_norm_observer_uses_the_statistics_of_its_training(tmp_path: Path) -> None:
    part = whole(digits(3, 60))
    network = recipe(part).network + "_bn"
    observer = trained(part, tmp_path, network=network, steps=80)
    assert judged(observer, part) > 0.8
    running = {n: t for n, t in observer.state.items() if "running" in n}
    assert running
    assert not all(torch.equal(t, torch.zeros_like(t)) for t in running.values())
    # Images do not see each other: one alone gets what it gets among many.
    images = part.normalized(torch.arange(40))
    together = observer.logits(images, part.classes)
    alone = torch.cat([observer.logits(images[i : i + 1], part.classes) for i in range(40)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    again = observer.logits(images, part.classes)
    assert torch.equal(together, again)  # and using it changes nothing
    # Without its statistics it would be another network.
    fresh = {
        n: torch.zeros_like(t) if "running_mean" in n else torch.ones_like(t)
        for n, t in running.items()
    }
    other = replace(observer, state={**observer.state, **fresh})
    assert not torch.allclose(other.logits(images, part.classes), together, atol=1e-2)


# -- the cache ---------------------------------------------------------------------------------
def test_an_observer_is_trained_once_and_read_from_then_on(
    tmp_path: Path, trainings: list[int]
) -> None:
    part = whole(digits(2, 20))
    first, second = (trained(part, tmp_path) for _ in range(2))
    assert len(trainings) == 1
    assert all(torch.equal(first.state[n], second.state[n]) for n in first.state)
    trained(part, tmp_path, seed=1)
    parts = make_parts(digits(2, 20), 2)
    for own in parts:
        trained(own, tmp_path)
    assert len(trainings) == 4
    names = {path.name for path in (tmp_path / "observers").iterdir() if path.suffix != ".lock"}
    assert f"{observer_key(part, recipe(part), Profile())}.safetensors" in names
    assert len(names) == 4
    in_memory = trained(part)
    assert all(torch.equal(first.state[n], in_memory.state[n]) for n in first.state)


def test_a_stored_observer_is_taken_by_its_key_and_its_classes_by_name(
    tmp_path: Path, trainings: list[int]
) -> None:
    part = whole(digits(3, 40))
    made = trained(part, tmp_path, steps=60)
    key = observer_key(part, recipe(part, steps=60), Profile())
    other = shuffled_classes(part, [1, 2, 0])
    pool = replace(make_pool(part), folder=tmp_path)
    taken = load_observer(key, other, recipe(other, steps=7), pool, Profile())
    assert len(trainings) == 1
    assert judged(taken, other) == judged(made, part) > 0.8
    with pytest.raises(UsageError, match=f"unknown observer 'abc'; known: .*{key}"):
        load_observer("abc", part, recipe(part), pool, Profile())
    with pytest.raises(UsageError, match="known: part, pool"):
        load_observer("abc", part, recipe(part), make_pool(part), Profile())
    larger = whole(random_data((8, 8), (3, 9, 9)))
    with pytest.raises(DataError, match="takes images of 1x8x8, those of noise are 3x9x9"):
        load_observer(key, larger, recipe(larger), pool, Profile())


def test_the_pool_s_oldest_network_can_be_the_observer() -> None:
    part = whole(digits(2, 20))
    pool: Pool = make_pool(part, 3)
    observer = load_observer("pool", part, recipe(part), pool, Profile())
    images = part.normalized(torch.arange(6))
    with torch.no_grad():
        wanted = torch.func.functional_call(pool.network, pool.stored[2].parameters, (images,))
    torch.testing.assert_close(observer.logits(images, part.classes), wanted)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    part = whole(digits(2, 20))
    trained(part, tmp_path, steps=1)
    path = next((tmp_path / "observers").glob("*.safetensors"))
    assert load_checkpoint(path)[1]["classes"] == ["0", "1"]
    write_atomically(path, path.read_bytes()[:100])
    with pytest.raises(MoeddError, match=str(path)):
        trained(part, tmp_path, steps=1)


def test_training_depends_on_its_seed_alone(tmp_path: Path) -> None:
    part = whole(digits(2, 20))
    before = torch.get_rng_state()
    one = trained(part)
    torch.manual_seed(77)
    same = trained(part)
    torch.set_rng_state(before)
    other = trained(part, seed=3)
    assert all(torch.equal(one.state[n], same.state[n]) for n in one.state)
    assert not all(torch.equal(one.state[n], other.state[n]) for n in one.state)
