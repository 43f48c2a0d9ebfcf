"""A distilled set in timm, through its WebDataset reader: `python examples/timm_webdataset.py`.

Needs `pip install moedd[examples]`. timm reads the PNGs as they are, and those of a set are
undecoded tiles where its method stores several small images in one. So the set is exported first,
decoded: `moedd export SET --to webdataset --decoded` does the same on the command line, and writes
the `_info.json` in which timm looks up how many samples there are.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2

from moedd_loaders.manifest import read_manifest
from moedd_loaders.resolve import resolve
from moedd_publish.export import export_set


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)

    folder = resolve(given.set).folder
    source = read_manifest(folder).source
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        export_set(folder, shards, to="webdataset", decoded=True)
        dataset = create_dataset(
            "wds/", root=str(shards), split="train", is_training=True, batch_size=given.batch_size
        )
        loader = create_loader(
            dataset,
            input_size=(3, given.size, given.size),
            batch_size=given.batch_size,
            is_training=True,
            scale=(0.7, 1.0),
            hflip=0.0,
            color_jitter=None,
            mean=_three(source.mean),
            std=_three(source.std),
            num_workers=0,
            use_prefetcher=False,
        )
        losses = _train(loader, given.model, len(source.classes), given.epochs)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


def _train(
    loader: torch.utils.data.DataLoader, name: str, classes: int, epochs: int
) -> list[float]:
    model = timm.create_model(name, num_classes=classes)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3)
    # timm's mixup knows no experts: it mixes any two images of a batch, as fuse="vanilla" does.
    mixup, criterion = Mixup(mixup_alpha=0.2, num_classes=classes), SoftTargetCrossEntropy()
    losses = []
    model.train()
    for _ in range(epochs):
        total, steps = 0.0, 0
        for images, labels in loader:
            mixed, targets = mixup(images, labels)
            loss = criterion(model(mixed), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
        losses.append(total / steps)
    return losses


def _three(values: Sequence[float]) -> tuple[float, ...]:
    """One number per channel of RGB, which timm reads grey images as."""
    return tuple(values) if len(values) == 3 else (values[0],) * 3


if __name__ == "__main__":
    main()
