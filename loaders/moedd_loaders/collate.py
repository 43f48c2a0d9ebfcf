"""Fusion as the `collate_fn` of any DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix, Pool

__all__ = ["MixCollate"]


class MixCollate:
    """Collates items `(image, label, expert)` and mixes the batch: `(images, labels)` as floats.

    DataLoader(ds, batch_size=64, shuffle=True, num_workers=2, collate_fn=MixCollate(mix))

    It may run in any number of workers: each draws from a stream of its own, anew in every epoch
    (unlike a `DistilledDataset`'s, these streams depend on the number of workers).

    Args:
        mix: the transform.
        pool: where partners come from; the batch itself without one, which then must hold two
            experts at least (`ExpertBatchSampler` sees to that).
        collate: makes three tensors of the items.
    """

    def __init__(
        self,
        mix: ExpertMix,
        pool: Pool | None = None,
        collate: Callable[[Any], Any] = default_collate,
    ) -> None:
        self.mix, self.pool, self.collate = mix, pool, collate

    def __call__(self, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
        batch = self.collate(items)
        if not isinstance(batch, Sequence) or len(batch) != 3:
            raise UsageError(
                "MixCollate got items that are not (image, label, expert): "
                "load_distilled(name, return_expert=True) gives such items"
            )
        images, labels, experts = batch
        mixed, targets = self.mix(images, labels, experts, self.pool)
        return mixed, targets
