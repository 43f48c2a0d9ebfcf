"""A loop in the style of torchvision's classification reference, with v2 transforms.

`python examples/torchvision_reference.py`: augmentation in the data set, mixing in the
`collate_fn`, where the reference puts `v2.MixUp`. Partners must be of another expert, so batches
hold equally many of each (`ExpertBatchSampler`); the last epochs see unmixed images.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import v2

from moedd_loaders import ExpertBatchSampler, ExpertMix, MixCollate, load_distilled


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_loader: DataLoader,
    device: torch.device,
) -> float:
    """One epoch; returns the mean loss."""
    model.train()
    losses = []
    for image, target in data_loader:
        image, target = image.to(device), target.to(device)
        loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def small_resnet(channels: int, classes: int) -> nn.Module:
    """ResNet-10 with a stem for small images."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--mixup-alpha", type=float, default=0.4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = torch.device(args.device)

    dataset = load_distilled(args.data_path, return_expert=True)
    side = dataset.images.shape[-1]
    dataset.transform = v2.Compose(
        [
            v2.RandomCrop(side, padding=side // 8, padding_mode="edge"),
            v2.Normalize(mean=dataset.mean, std=dataset.std),
        ]
    )
    mix = ExpertMix(len(dataset.classes), alpha=args.mixup_alpha, off_epoch=max(1, args.epochs - 2))
    data_loader = DataLoader(
        dataset,
        batch_sampler=ExpertBatchSampler(dataset.experts, args.batch_size, labels=dataset.labels),
        num_workers=args.workers,
        collate_fn=MixCollate(mix),
        persistent_workers=args.workers > 0,
    )
    model = small_resnet(dataset.images.shape[1], len(dataset.classes)).to(device)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    losses = []
    for epoch in range(args.epochs):
        mix.set_epoch(epoch)
        losses.append(train_one_epoch(model, criterion, optimizer, data_loader, device))
        scheduler.step()
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
