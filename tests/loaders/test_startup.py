"""What it costs to begin: imports, the first batch, the help of the command.

Processor time is counted, the best of three: on a machine with nothing else to do it is the time
that passes, and other processes cannot add to it by much.
"""

from __future__ import annotations

import os
import subprocess
import sys

FIRST_BATCH = """
import time
import torch
start = time.process_time()
import moedd_loaders
from moedd_loaders import load_distilled
imported = time.process_time()
next(iter(load_distilled("cifar10-idc-5x2", fuse="mixup").batches(64)))
print(imported - start, time.process_time() - imported)
"""


def run(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout


def test_importing_and_the_first_batch() -> None:
    runs = [[float(x) for x in run(FIRST_BATCH).split()] for _ in range(3)]
    imported, first = (min(column) for column in zip(*runs, strict=True))
    assert imported < 0.1
    assert first < 0.3


def test_help_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys, time; sys.argv = ['moedd', '--help']\n"
        "from moedd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print()\n"
        "print(time.process_time())"
    )
    texts = [run(code) for _ in range(3)]
    assert all("distill" in text for text in texts)
    # The process's own time from its very beginning, starting Python included.
    assert min(float(text.split()[-1]) for text in texts) < 0.4


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
