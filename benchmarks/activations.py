"""What one image keeps in memory on its way through a network: `python -m benchmarks.activations`.

In units of A = 4 x width x H x W bytes, what a ConvNet's first block gives for one image: the most
that the process held while a function ran on 64 images, less what it held before. Linux, CPU.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_IMAGES, _SIDE, _WIDTH = 64, 32, 64
# Every buffer of more than a page group is mapped and unmapped, so that what is held is what is
# used.
_EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def measured() -> dict[str, float]:
    """A per image, by what is done: from a process with an allocator that keeps nothing."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.activations", "--here"],
        env={**os.environ, **_EXACT, "OMP_NUM_THREADS": "1"}, capture_output=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def _held(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def _peak(function: Callable[[], Any]) -> float:
    function()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _held("VmRSS")
    function()
    return (_held("VmHWM") - before) / (4 * _WIDTH * _SIDE**2 * _IMAGES)


def _here() -> dict[str, float]:
    import torch

    from moedd.arithmetic import arithmetic, flatten, state_of
    from moedd.networks import build_network
    from moedd.profile import Profile

    network = build_network("convnet3", channels=3, classes=10, size=(_SIDE, _SIDE), width=_WIDTH)
    functions = arithmetic(network, Profile())
    state = state_of(network)
    fixed = {name: tensor.detach() for name, tensor in state.items()}
    images, few = torch.zeros(_IMAGES, 3, _SIDE, _SIDE), torch.zeros(1, 2, 3, _SIDE, _SIDE)
    labels = torch.zeros(_IMAGES, dtype=torch.int64)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    one, flat = labels[:1], flatten(state)
    return {
        "training": _peak(lambda: functions.training_loss(state, images, targets).backward()),
        "plain pass": _peak(lambda: functions.logits(fixed, images)),
        "real images, gradient matching": _peak(
            lambda: functions.gradient_match(fixed, images[None], few, one, "mse")
        ),
        "synthetic images, gradient matching": _peak(
            lambda: functions.gradient_match(fixed, few, images[None], one, "mse")
        ),
        "synthetic images, feature matching": _peak(
            lambda: functions.feature_match(fixed, few, images[None], one, 0.5)
        ),
        "student step": _peak(lambda: functions.student_adjoint(flat, images, labels, flat)),
    }


if __name__ == "__main__":
    if "--here" in sys.argv:
        print(json.dumps(_here()))
    else:
        for what, value in measured().items():
            print(f"{what:40} {value:5.1f} A per image")
