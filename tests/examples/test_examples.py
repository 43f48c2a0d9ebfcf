"""Every example trains for a moment on a bundled set, and its loss falls."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

# Name, arguments, the packages that it needs besides moedd's own.
CASES: list[tuple[str, list[str], list[str]]] = [
    ("torchvision_reference", ["--epochs", "4", "--workers", "1"], []),
    ("lightning_module", ["--epochs", "12"], ["lightning"]),
    ("huggingface_trainer", ["--epochs", "6"], ["transformers", "accelerate"]),
    ("timm_webdataset", ["--epochs", "2"], ["timm", "webdataset"]),
    ("webdataset_pipeline", ["--epochs", "10"], ["webdataset"]),
    ("numpy_arrays", [], []),
]


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Examples seed and set what belongs to a whole process."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "arguments", "packages"), CASES, ids=[c[0] for c in CASES])
def test_the_loss_falls(name: str, arguments: list[str], packages: list[str]) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{name} needs {package}: pip install moedd[examples]")
    losses = load(name).main(arguments)
    assert len(losses) > 1
    few = max(1, len(losses) // 5)
    first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
    assert last < 0.85 * first, losses


def test_every_example_is_run() -> None:
    run = {"plain_pytorch", *(name for name, *_ in CASES)}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run


def test_the_plain_example_tests_on_real_images(capsys: pytest.CaptureFixture[str]) -> None:
    losses = load("plain_pytorch").main(["--epochs", "40", "--device", "cpu"])
    assert losses[-1] < 0.85 * losses[0]
    said = capsys.readouterr().out
    accuracy = float(said.split("real digits: ")[1].split(" %")[0])
    # Guessing is 10 %; a class order or pixels that disagree would show.
    assert accuracy > 60
