"""A killed training goes on to the same bits, whatever its optimiser and wherever it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from enginefactories import WIDTH, digits

from moedd.evaluate import TrainingData, train_network
from moedd.experts.observer import Observer
from moedd.networks import build_network
from moedd.protocols import fitted, protocol_recipe
from moedd.rowdata import Row, full_images
from moedd.streams import Streams
from moedd.train import Recipe, Trainer
from moedd.trainstate import TrainingState

EPOCHS = 6


class Killed(BaseException):
    """Stands for SIGKILL inside this process."""


def recipe(protocol: str) -> Recipe:
    """`protocol` as it is for a ConvNet on the twelve images."""
    made = protocol_recipe(protocol, EPOCHS)
    return fitted(made, "convnet2", images=12, classes=2, fuse="none")


def teacher() -> Observer:
    made = build_network("convnet2", channels=1, classes=2, size=(8, 8), width=WIDTH)
    state = {name: tensor.detach() for name, tensor in made.named_parameters()}
    from moedd.profile import Profile

    return Observer(made, state, digits().classes, Profile())


def train(
    protocol: str,
    state: TrainingState | None = None,
    *,
    die_after: int | None = None,
    network: str = "convnet2",
    beside: dict[str, float] | None = None,
) -> tuple[torch.Tensor, int]:
    """All parameters and buffers, and the steps, of a network trained on twelve digits."""
    real = digits(2, 6)
    data = TrainingData(Row("full"), full_images(real), real, 0)
    notes = {} if beside is None else beside

    def after(trainer: Trainer, epochs: int) -> None:
        notes[str(epochs)] = trainer.lr
        if epochs == die_after:
            raise Killed

    made = train_network(
        data, recipe(protocol), network, real, Streams(3), WIDTH, after_epoch=after, state=state,
        beside=notes, teacher=teacher() if protocol == "rded" else None,
    )  # fmt: skip
    tensors = [*made.network.parameters(), *made.network.buffers()]
    return torch.cat([t.detach().double().flatten() for t in tensors]), made.steps


@pytest.mark.parametrize("protocol", ["common", "idc", "rded"])
@pytest.mark.parametrize("die_after", [2, 5])
def test_the_same_bits_after_a_kill(protocol: str, die_after: int, tmp_path: Path) -> None:
    """`common` renews its optimiser after epoch 4 of 0..6, `idc` decays twice, `rded` is AdamW."""
    whole: dict[str, float] = {}
    wanted, steps = train(protocol, beside=whole)
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(protocol, TrainingState(path, "this", seconds=0), die_after=die_after)
    kept = path.read_bytes()
    notes: dict[str, float] = {}
    found, again = train(protocol, TrainingState(path, "this", seconds=1e9), beside=notes)
    assert torch.equal(found, wanted)
    assert again == steps
    assert path.read_bytes() == kept
    # Nothing was done twice: what the killed run had noted came back with its state.
    assert notes == whole


def test_running_statistics_go_on_too(tmp_path: Path) -> None:
    wanted, _ = train("idc", network="convnet2_bn")
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train("idc", TrainingState(path, "this", seconds=0), die_after=3, network="convnet2_bn")
    found, _ = train("idc", TrainingState(path, "this"), network="convnet2_bn")
    assert torch.equal(found, wanted)


def test_another_networks_state_and_a_damaged_one_are_not_taken_up(tmp_path: Path) -> None:
    wanted, steps = train("common")
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train("idc", TrainingState(path, "that", seconds=0), die_after=3)
    assert torch.equal(train("common", TrainingState(path, "this"))[0], wanted)
    path.write_bytes(path.read_bytes()[:100])
    found, again = train("common", TrainingState(path, "that"))
    assert torch.equal(found, wanted)
    assert again == steps


def test_it_is_saved_now_and_then_and_gone_in_the_end(tmp_path: Path) -> None:
    seldom = TrainingState(tmp_path / "seldom.safetensors", "this", seconds=1e9)
    train("common", seldom)
    assert not seldom.path.exists()
    often = TrainingState(tmp_path / "often.safetensors", "this", seconds=0)
    train("common", often)
    assert often.path.exists()
    often.forget()
    often.forget()
    assert not often.path.exists()


def test_time_before_the_kill_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    first = TrainingState(path, "this", seconds=0)
    assert first.spent == 0
    now = iter(range(1000, 100_000, 10))  # ten seconds between two looks at the clock
    monkeypatch.setattr("moedd.trainstate.time.monotonic", lambda: float(next(now)))
    with pytest.raises(Killed):
        train("common", TrainingState(path, "this", seconds=0), die_after=3)
    again = TrainingState(path, "this", seconds=1e9)
    train("common", again)
    # The state of the second epoch was written after several looks at the clock.
    assert 30 <= again.spent <= 100
