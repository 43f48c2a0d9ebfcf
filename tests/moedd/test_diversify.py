"""The diversity step of a mixture: what it moves, by how much, and what it writes to the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from enginefactories import random_data
from runfactories import config_on, profile, tiny_run
from torch.func import functional_call

from moedd.distcorr import distance_correlation
from moedd.diversify import _move, diversity_step, features, report
from moedd.diversity import DiversityConfig
from moedd.experts import Expert
from moedd.mixture import Mixture
from moedd.progress import Reporter
from moedd.streams import Streams


def mixture_of(methods: tuple[str, ...], home: Path, ipc: int = 2) -> Mixture:
    """Experts on noise that have made one step each."""
    real = random_data((8, 9, 10))
    config = config_on(real, methods, ipc)
    mixture = Mixture.build(config, real, home, profile(), Reporter(quiet=True))
    for expert in mixture.experts:
        expert.step()
    return mixture


def moved(mixture: Mixture, config: DiversityConfig, seed: int = 0) -> tuple[list[float], Any]:
    """Distance that each expert's images move in one diversity step, and the log row."""
    before = [expert.images.clone() for expert in mixture.experts]
    rows = diversity_step(mixture.experts, config, Streams(seed))
    after = [expert.images for expert in mixture.experts]
    return [float((a - b).norm()) for a, b in zip(after, before, strict=True)], rows[0]


def test_every_row_of_a_run_holds_both_values_and_both_norms(home: Path) -> None:
    tiny_run(
        home,
        "digits-idm+idc-1x2",
        *("idm.steps=6", "idc.steps=6", "diversity.every=3", "diversity.ratio=0.2"),
    )
    log = (home / "runs" / "run" / "log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, log) if "pair" in row]
    assert [row["tick"] for row in rows] == [3, 6]
    for row in rows:
        assert 0 <= row["biased"] <= 1
        assert -1 <= row["unbiased"] <= row["biased"]
        assert 0 < row["floor"] < 1
        assert row["n"] == 40
        assert row["value"] == row["biased"]
        for e in (0, 1):
            assert row[f"image_step_{e}"] > 0
            assert row[f"diversity_gradient_{e}"] > 0
            ratio = row[f"diversity_step_{e}"] / row[f"image_step_{e}"]
            assert ratio == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("ratio", [0.01, 0.5])
def test_the_step_has_the_stated_length(ratio: float, home: Path) -> None:
    mixture = mixture_of(("idm", "idc"), home)
    distances, row = moved(mixture, DiversityConfig(ratio=ratio))
    for e, expert in enumerate(mixture.experts):
        assert distances[e] == pytest.approx(ratio * expert.last_step_norm, rel=1e-3)
        assert row[f"diversity_step_{e}"] == pytest.approx(distances[e], rel=1e-3)
        assert row[f"image_step_{e}"] == expert.last_step_norm


def test_without_a_ratio_the_weight_is_used_as_it_is(home: Path) -> None:
    made = [
        moved(mixture_of(("idm", "idm"), home), DiversityConfig(ratio=None, weight=weight))
        for weight in (1.0, 3.0)
    ]
    lr = mixture_of(("idm", "idm"), home).experts[0].image_lr
    (plain, row), (tripled, _) = made
    for e in (0, 1):
        assert plain[e] == pytest.approx(lr * row[f"diversity_gradient_{e}"], rel=1e-3)
        assert tripled[e] == pytest.approx(3 * plain[e], rel=1e-3)


def test_the_gradient_is_that_of_the_distance_correlation(home: Path) -> None:
    """Central difference of dCor along the step, with the pairing that storage order gives."""
    mixture = mixture_of(("idm_plain", "idm_plain"), home)
    config = DiversityConfig(ratio=1e-3, reshuffle=False)
    network = mixture.experts[0].pool.draw(Streams(0).scope(0, 1).generator("network"))
    before = [expert.images.clone() for expert in mixture.experts]

    def value(images: list[torch.Tensor]) -> float:
        sides = [
            functional_call(
                mixture.experts[0].pool.network,
                network.parameters,
                (expert.training_images(x),),
                {"features": True},
            )[0]
            for expert, x in zip(mixture.experts, images, strict=True)
        ]
        return float(distance_correlation(sides[0].double(), sides[1].double()))

    _, row = moved(mixture, config)
    assert row["biased"] == pytest.approx(value(before), rel=1e-4)
    for e, expert in enumerate(mixture.experts):
        direction = expert.images - before[e]
        unit = direction / direction.norm()
        ends = [[x.clone() for x in before] for _ in range(2)]
        ends[0][e] += 0.05 * unit
        ends[1][e] -= 0.05 * unit
        slope = (value(ends[0]) - value(ends[1])) / 0.1
        assert slope < 0
        assert slope == pytest.approx(-row[f"diversity_gradient_{e}"], rel=0.05)


def test_many_steps_push_the_experts_apart(home: Path) -> None:
    mixture = mixture_of(("idm_plain", "idm_plain"), home, ipc=4)
    config = DiversityConfig(ratio=1.0, reshuffle=False)
    values = [moved(mixture, config)[1]["biased"] for _ in range(12)]
    assert values[-1] < values[0] - 0.02


@pytest.mark.parametrize("within", ["pooled", "block", "per_class", "partial"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_every_form_of_the_loss(within: str, estimator: str, home: Path) -> None:
    if (within, estimator) == ("partial", "biased"):
        return  # refused, see test_diversity
    mixture = mixture_of(("idm", "idc"), home)
    config = DiversityConfig.model_validate({"within": within, "estimator": estimator})
    distances, row = moved(mixture, config)
    assert row["n"] == 24
    if within != "pooled":
        assert row["value"] not in (row["biased"], row["unbiased"])
    for e, expert in enumerate(mixture.experts):
        # A value at or below 0 is what is wanted already: no gradient, no step.
        gradient = row[f"diversity_gradient_{e}"]
        wanted = 0.05 * expert.last_step_norm if gradient else 0.0
        assert distances[e] == pytest.approx(wanted, rel=1e-2, abs=1e-6)
    if estimator == "biased" and within == "pooled":
        assert min(distances) > 0


def test_an_expert_without_steps_stays(home: Path) -> None:
    mixture = mixture_of(("idm", "idm"), home)
    mixture.experts[1].steps = 0
    distances, row = moved(mixture, DiversityConfig())
    assert distances[0] > 0
    assert distances[1] == 0
    assert "diversity_step_1" not in row


def test_the_step_depends_on_its_stream_alone(home: Path) -> None:
    images = []
    for seed in (3, 3, 4):
        mixture = mixture_of(("idm", "idc", "idm"), home)
        diversity_step(mixture.experts, DiversityConfig(), Streams(seed))
        images.append(torch.cat([expert.images for expert in mixture.experts]))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_report_uses_the_oldest_network(home: Path) -> None:
    mixture = mixture_of(("idm", "idm"), home)
    found = report(mixture.experts, DiversityConfig(), Streams(0))
    assert found is not None
    assert 0 <= found.unbiased <= found.biased <= 1
    assert 0 < found.floor < 1
    assert 0 <= found.cka <= 1
    oldest = max(mixture.experts[0].pool.stored, key=lambda stored: stored.steps)
    alone = type(mixture.experts[0].pool)(
        mixture.experts[0].pool.network, (oldest,), mixture.experts[0].pool.key
    )
    mixture.experts[0].pool = alone
    assert report(mixture.experts, DiversityConfig(), Streams(0)) == found
    assert report(mixture.experts[:1], DiversityConfig(), Streams(0)) is None


def test_features_have_a_graph_to_the_images(home: Path) -> None:
    mixture = mixture_of(("idm", "idm"), home)
    expert: Expert = mixture.experts[0]
    leaf = expert.images.clone().requires_grad_()
    for layer, width in (("embedding", None), ("logits", 3)):
        made = features(
            mixture.experts[0].pool,
            mixture.experts[0].pool.stored[0],
            expert.training_images(leaf),
            layer,
        )
        assert made.shape[0] == 24
        assert width in (None, made.shape[1])
        (gradient,) = torch.autograd.grad(made.sum(), leaf)
        assert float(gradient.norm()) > 0


def test_a_broken_gradient_never_reaches_the_images(home: Path) -> None:
    mixture = mixture_of(("idm", "idm"), home)
    expert = mixture.experts[0]
    before = expert.images.clone()
    broken = torch.full_like(expert.images, float("nan"))
    for ratio in (0.05, None):
        row = _move(expert, broken, DiversityConfig(ratio=ratio))
        assert torch.equal(expert.images, before)
        assert not row["diversity_gradient_0"] > 0
