"""What it costs to begin: imports, the first batch, the help of the command."""

from __future__ import annotations

import subprocess
import sys
import time

FIRST_BATCH = """
import time
import torch
start = time.perf_counter()
import moedd_loaders
from moedd_loaders import load_distilled
imported = time.perf_counter()
next(iter(load_distilled("cifar10-idc-5x2", fuse="mixup").batches(64)))
print(imported - start, time.perf_counter() - imported)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


def test_importing_and_the_first_batch() -> None:
    # The best of three: other processes may take the machine in between.
    runs = [[float(x) for x in run(FIRST_BATCH).split()] for _ in range(3)]
    imported, first = (min(column) for column in zip(*runs, strict=True))
    assert imported < 0.1
    assert first < 0.3


def test_help_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['moedd', '--help']\n"
        "from moedd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert "distill" in run(code)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.4


def test_what_is_rarely_needed_is_imported_when_it_is() -> None:
    code = (
        "import sys\n"
        "from moedd_loaders import ExpertBatchSampler, ExpertMix, MixCollate, load_distilled\n"
        "ds = load_distilled('digits-idm-5x2', fuse='mixup', size=9, channels=3)\n"
        "ds.test_transform()(ds.images.clamp(0, 1)); ds.numpy(); next(iter(ds.batches(8)))\n"
        "heavy = {'datasets', 'huggingface_hub', 'PIL', 'fsspec', 'aiohttp', 'webdataset',\n"
        "         'torchvision', 'pyarrow', 'scipy', 'moedd', 'moedd_publish'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code).strip() == "[]"
