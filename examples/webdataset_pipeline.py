"""The tars of a set in a pipeline of `webdataset`: `python examples/webdataset_pipeline.py`.

Each sample has `.npy` (the exact pixels, float32 (C, H, W), 0 black to 1 white), `.png` (their
rounded view), `.cls` and `.json` (with the expert). Stored images may be tiles: `decode` makes
training images of them by the rule of their expert, which stands in the manifest.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import webdataset as wds
from torch import Tensor, nn

from moedd_loaders import ExpertMix
from moedd_loaders.decode import decode
from moedd_loaders.manifest import Manifest, read_manifest
from moedd_loaders.resolve import resolve

Sample = tuple[Tensor, int, int]


def training_images(samples: Iterator[Any], manifest: Manifest) -> Iterator[Sample]:
    """Decodes stored images: one in, one or several (normalised) training images out."""
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (manifest.source.mean, manifest.source.std)
    )
    for pixels, label, row in samples:
        expert = row["expert"]
        stored = torch.from_numpy(pixels)[None]
        for image in decode(stored, manifest.experts[expert].decode, manifest.source.mean):
            yield (image - mean) / std, label, expert


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args(arguments)

    folder = resolve(given.set).folder
    manifest = read_manifest(folder)
    images = sum(sum(entry.decoded_per_class) for entry in manifest.experts)
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(sorted(str(tar) for tar in (folder / "webdataset").glob("*.tar"))),
        wds.tarfile_to_samples(),
        wds.decode(),
        wds.to_tuple("npy", "cls", "json"),
        lambda samples: training_images(samples, manifest),
        wds.shuffle(images),  # rows are ordered by expert and class: shuffle all of a small set
        wds.batched(100, partial=False),
    )

    torch.manual_seed(0)
    mix = ExpertMix(len(manifest.classes))
    features = manifest.shape[0] * manifest.shape[1] * manifest.shape[2]
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, len(manifest.classes))
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(given.epochs):
        found = []
        for batch in pipeline:
            inputs, targets = mix([torch.as_tensor(part) for part in batch])
            loss = F.cross_entropy(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(sum(found) / len(found))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
