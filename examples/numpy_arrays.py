"""A distilled set without torch in the training loop: `python examples/numpy_arrays.py`.

`ds.numpy()` is the next epoch as arrays, mixed anew each time; here softmax regression in NumPy.
In JAX the same two arrays go to `jnp.asarray` (with `channels_last=True` for its convolutions).
"""

import argparse
from collections.abc import Sequence

import numpy as np

from moedd_loaders import load_distilled


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="digits-idm-5x2", help="name or folder of a set")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.1)
    given = parser.parse_args(arguments)

    ds = load_distilled(given.set, fuse="mixup", normalize=True)
    weights = np.zeros((int(np.prod(ds.images.shape[1:])), len(ds.classes)), dtype=np.float32)
    losses = []
    for _ in range(given.epochs):
        images, labels = ds.numpy()
        pixels = images.reshape(len(images), -1)
        predicted = softmax(pixels @ weights)
        losses.append(float(-(labels * np.log(predicted + 1e-12)).sum(axis=1).mean()))
        weights -= given.lr * pixels.T @ (predicted - labels) / len(images)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
