"""A distilled set in Hugging Face's Trainer: `python examples/huggingface_trainer.py`.

Needs `pip install moedd[examples]`. Two things to know: the data set yields pairs, so a collator
names them; and fused labels are float rows, which Transformers' own loss would take for several
labels per image, so `compute_loss_func` says that it is cross-entropy.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from moedd_loaders import load_distilled


def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A batch under the names that the model expects."""
    images, labels = default_collate(items)
    return {"pixel_values": images, "labels": labels}


def cross_entropy(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """The mean over the batch; takes float label rows and integers alike."""
    return F.cross_entropy(outputs["logits"], labels)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the logged losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args(arguments)

    ds = load_distilled(given.set, fuse="mixup", normalize=True)
    config = ResNetConfig(
        num_channels=ds.images.shape[1],
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        downsample_in_first_stage=False,
        id2label=dict(enumerate(ds.classes)),
        label2id=ds.class_to_idx,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=ResNetForImageClassification(config),
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=given.epochs,
                per_device_train_batch_size=50,
                learning_rate=5e-3,
                remove_unused_columns=False,  # there are no columns
                logging_steps=4,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=ds,
            data_collator=collate,
            compute_loss_func=cross_entropy,
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    main()
