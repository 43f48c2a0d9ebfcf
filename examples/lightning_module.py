"""A distilled set in Lightning: `python examples/lightning_module.py`.

Needs `pip install moedd[examples]`. The data set mixes by itself, in any number of workers and on
any number of ranks.
"""

import argparse
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from moedd_loaders import load_distilled


class Classifier(L.LightningModule):
    """A small network with the usual loss, which takes float label rows as they are."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        features = shape[0] * shape[1] * shape[2]
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, classes)
        )
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args(arguments)
    L.seed_everything(0, verbose=False)

    ds = load_distilled(given.set, fuse="mixup", normalize=True)
    model = Classifier(ds.images.shape[1:], len(ds.classes))
    trainer = L.Trainer(
        max_epochs=given.epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, DataLoader(ds, batch_size=100, shuffle=True))
    print(f"loss {model.losses[0]:.3f} -> {model.losses[-1]:.3f}")
    return model.losses


if __name__ == "__main__":
    main()
