"""One of two gloo processes: `python ddp_worker.py RANK FOLDER`; writes what it was served."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from images_in_memory import memory
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from moedd_loaders import ExpertBatchSampler, ExpertMix

WORLD = 2


def passes(
    workers: int = 0, context: str | None = None, n: int = 13, **given: Any
) -> list[list[float]]:
    """Pixels of four passes by DistributedSampler; fusion is to end after two."""
    ds = memory(n, fuse=ExpertMix(3, off_epoch=2), seed=3)
    sampler: Any = DistributedSampler(ds, shuffle=True, seed=7, **given)
    loader = DataLoader(
        ds,
        batch_size=3,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=context,
    )
    served = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        served.append(pixels(loader))
    return served


def pixels(loader: Any) -> list[float]:
    """One pixel of each image of a pass: a whole number where it is as it is in the set."""
    return [float(x) for images, _ in loader for x in images[:, 0, 0, 0]]


def loader_epochs(epochs: int = 3) -> dict[str, Any]:
    """Items by DistributedSampler: rows (labels carry them), batch counts, mixed pixels."""
    ds = memory(20, fuse=None, target_transform=None, return_expert=True)
    fused = memory(20, fuse="mixup", seed=3)
    out: dict[str, Any] = {"rows": [], "counts": [], "pixels": []}
    for epoch in range(epochs):
        for data, key in ((fused, "pixels"), (ds, "rows")):
            sampler: Any = DistributedSampler(data, shuffle=True, seed=7)
            sampler.set_epoch(epoch)
            batches = list(DataLoader(data, batch_size=3, sampler=sampler))
            out[key].append([float(x) for batch in batches for x in batch[0][:, 0, 0, 0]])
            out["counts"].append(len(batches))
    return out


def batches_epochs(n: int, size: int, **given: Any) -> list[list[list[float]]]:
    """Two epochs of `ds.batches`: rows of each batch."""
    loader = memory(n).batches(size, **given)
    epochs = []
    for _ in range(2):
        batches = [images[:, 0, 0, 0].tolist() for images, _ in loader]
        assert len(batches) == len(loader)
        epochs.append(batches)
    return epochs


def train() -> list[float]:
    """A few steps of a network in DistributedDataParallel: its weights at the end."""
    torch.manual_seed(0)
    net = DistributedDataParallel(torch.nn.Linear(6, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    ds = memory(13, fuse="mixup", normalize=True)
    for images, labels in ds.batches(3):
        optimizer.zero_grad()
        F.cross_entropy(net(images.flatten(1)), labels).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()


def main(rank: int, folder: Path) -> None:
    early = memory(13).batches(4)
    early_sampler = ExpertBatchSampler(torch.arange(40) % 2, 4)
    ending = memory(13, fuse=ExpertMix(3, off_epoch=2)).batches(4)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    rows = torch.arange(40)
    images = rows.float().view(-1, 1, 1, 1).expand(40, 1, 2, 2)
    mix = ExpertMix(3)
    plan = memory(20, fuse="mixup", seed=3).plan(np.arange(20), np.zeros(20, np.int64))
    sampler = ExpertBatchSampler(rows % 2, 4)
    result = {
        "loader": loader_epochs(),
        "odd": batches_epochs(13, 4),
        "short": batches_epochs(9, 4),
        "one": batches_epochs(5, 1),
        "dropped": batches_epochs(13, 4, drop_last=True),
        "lam": plan.weight[:, 0].tolist(),
        "mixed": mix(images, rows % 3, rows % 2)[0][:, 0, 0, 0].tolist(),
        "balanced": list(sampler),
        "early": [images[:, 0, 0, 0].tolist() for images, _ in early],
        "early_balanced": list(early_sampler),
        "passes": [
            passes(),
            passes(2, "fork"),
            passes(drop_last=True),
            passes(1, "spawn", n=20),
            [pixels(ending) for _ in range(4)],
        ],
        "weights": train(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
