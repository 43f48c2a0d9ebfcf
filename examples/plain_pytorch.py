"""A distilled set in a plain loop, tested on real images: `python examples/plain_pytorch.py`.

`ds.batches()` gives fused batches without a DataLoader; `align_to` and `test_transform` see to it
that class numbers and pixels of the test set are those of the training images.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from moedd import load_distilled
from moedd_loaders import DistilledDataset


def network(channels: int, classes: int) -> nn.Module:
    """A small network for images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, classes),
    )


def real_digits(ds: DistilledDataset) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits as a test set in the form of `ds`, which takes its class order."""
    digits = load_digits()
    ds.align_to([str(name) for name in digits.target_names])
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    return ds.test_transform()(images), torch.from_numpy(digits.target)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)

    ds = load_distilled(given.set, fuse="mixup", normalize=True)
    on_digits = ds.manifest is not None and ds.manifest.source.data == "digits"
    test = real_digits(ds) if on_digits else None

    torch.manual_seed(0)
    net = network(ds.images.shape[1], len(ds.classes)).to(given.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    batches = ds.batches(100, device=given.device)
    for _ in range(given.epochs):
        total = 0.0
        for images, labels in batches:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / len(batches)
        losses.append(total)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    if test is not None:
        images, labels = (part.to(given.device) for part in test)
        with torch.no_grad():
            accuracy = (net(images).argmax(1) == labels).float().mean().item()
        print(f"accuracy on {len(labels)} real digits: {100 * accuracy:.1f} %")
    return losses


if __name__ == "__main__":
    main()
