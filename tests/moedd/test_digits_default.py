"""The embedded default, `digits-idm-5x2`: it must be worth more than random real images."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
from runfactories import digits, profile

from moedd.config import EvaluationConfig, resolve_config
from moedd.distill import Effort, Places, distill
from moedd.evaluate import Job, Row, evaluate
from moedd.progress import Reporter
from moedd.protocols import protocol_recipe
from moedd_loaders.manifest import read_manifest
from moedd_loaders.names import parse_name
from moedd_loaders.read import read_tensors
from moedd_loaders.resolve import resolve

MARGIN = 0.05
"""Accuracy by which the distilled set beats random mosaics; measured: see docs/results.md."""


def test_the_bundled_digits_beat_random_real_images_by_the_measured_margin() -> None:
    folder = resolve("digits-idm-5x2").folder
    stored = read_tensors(folder, read_manifest(folder))
    settings = EvaluationConfig.model_validate(stored.manifest.evaluation)
    rows = [Row("distilled"), Row("distilled", "mixup"), Row("random"), Row("random", draw=1)]
    records = evaluate(
        stored,
        digits(),
        protocol_recipe(settings.protocol, settings.epochs),
        [Job(row, "convnet2", 0) for row in rows],
        profile(),
        epochs=settings.epochs,
        width=settings.width,
    )
    distilled, fused, *random = [record.accuracy for record in records]
    assert distilled > mean(random) + MARGIN
    assert fused > mean(random) + MARGIN


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_diversity_step_lowers_dependence_by_more_than_two_deviations(tmp_path: Path) -> None:
    found: dict[int, list[float]] = {0: [], 10: []}
    for every, values in found.items():
        for seed in range(3):
            name = f"every{every}-seed{seed}"
            manifest = distill(
                resolve_config(
                    parse_name("digits-idm-5x2"),
                    (1, 8, 8),
                    seed=seed,
                    overrides=[f"diversity.every={every}"],
                ),
                digits(),
                Places(tmp_path, tmp_path / "sets" / name, name),
                Effort(fraction=0.01),
                profile(),
                reporter=Reporter(quiet=True),
            )
            assert manifest.diversity is not None
            values.append(manifest.diversity.unbiased)
    print({every: [round(value, 4) for value in values] for every, values in found.items()})
    without, acting = found[0], found[10]
    assert mean(without) - mean(acting) > 2 * max(stdev(without), stdev(acting))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_default_command_takes_at_most_three_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "moedd", "distill"],
        env={**os.environ, "MOEDD_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - began
    print(done.stdout, f"{seconds:.0f} s")
    lines = done.stdout[done.stdout.index("from moedd import") :]
    subprocess.run(
        [sys.executable, "-c", lines],
        env={**os.environ, "MOEDD_HOME": str(tmp_path)},
        check=True,
    )
    assert seconds < 180
