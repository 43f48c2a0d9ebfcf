"""100,000 images of 64x64, 1.2 GB of pixels: whole runs stay under 2 GB. `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.activations import measured
from benchmarks.memory import Watched, parquet_of_classes, watched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

LIMIT = 2e9
SMALL = ("width=16", "pool.networks=1", "pool.steps=4", "pool.every=2", "diversity.every=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 classes of 500 images (and 5 test images) in Parquet files."""
    return parquet_of_classes(tmp_path_factory.mktemp("large") / "data", 200, 500, 64)


def run(home: Path, *arguments: str | Path) -> Watched:
    environment = {"MOEDD_HOME": str(home), "OMP_NUM_THREADS": "1"}
    found = watched([*map(str, arguments)], environment)
    assert found.code == 0, found.output
    print(  # shown by -rP: what docs/scale.md states
        f"{' '.join(map(str, arguments))}: resident {found.resident / 1e9:.2f} GB, "
        f"anonymous {found.anonymous / 1e9:.2f} GB, {found.seconds:.0f} s"
    )
    return found


def settings(*more: str) -> list[str]:
    return [text for setting in (*SMALL, *more) for text in ("--set", setting)]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("random", ()),
        ("idm_plain", ("idm_plain.batch_real=16", "idm_plain.steps=2")),
        ("herding", ()),
    ],
)
def test_distilling(method: str, more: tuple[str, ...], data: Path, tmp_path: Path) -> None:
    found = run(
        tmp_path, "distill", f"big-{method}-1x2", "--data", data, "--schedule", "paper",
        "--no-evaluate", *settings(*more),
    )  # fmt: skip
    assert found.resident < LIMIT
    assert found.anonymous < 1.2e9  # less than the pixels alone take
    assert list((tmp_path / "scratch").iterdir()) == []


def test_validation_and_evaluating_with_all_real_images(data: Path, tmp_path: Path) -> None:
    made = run(
        tmp_path, "distill", "big-random-1x2", "--data", data, "--no-evaluate", "--validation",
        *settings(),
    )  # fmt: skip
    tested = run(
        tmp_path, "evaluate", "big-random-1x2", "--data", data, "--validation", "--networks",
        "convnet1", "--width", "4", "--repeats", "1", "--epochs", "1", "--full", "--fuse", "none",
    )  # fmt: skip
    assert max(made.resident, tested.resident) < LIMIT


def test_what_an_image_keeps_on_its_way_through_a_network() -> None:
    """The figures of docs/scale.md, in units of its first block."""
    stated = {
        "training": 4.0,
        "plain pass": 2.0,
        "real images, gradient matching": 8.6,
        "synthetic images, gradient matching": 16.6,
        "synthetic images, feature matching": 8.6,
        "student step": 16.6,
    }
    assert measured() == pytest.approx(stated, rel=0.1)
