"""Parts: the disjoint shares of the real training data that the experts work on.

Source: method section 3.2 (T is the union of disjoint T_i). The split is stratified by class and
shuffled with the run's seed; sizes of one class differ by at most one image between parts.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from moedd.ondevice import per_channel
from moedd.pixels import Pixels, on_device, rows_of, subset
from moedd.realdata import RealData
from moedd.streams import Streams
from moedd_loaders.errors import DataError

PartRule = Literal["stratified", "all"]


@dataclass(frozen=True, eq=False)
class PartData:
    """Real images of one expert, kept as uint8.

    `images` (n, C, H, W) uint8, a tensor or left on the host (`pixels.HostImages`); `labels` (n,)
    int64, `rows[c]` the positions of class c in the order this part holds them; `mean`/`std` per
    channel in unit space.
    """

    data: str
    images: Pixels
    labels: Tensor
    rows: tuple[Tensor, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    rule: PartRule
    of: int
    index: int
    fingerprint: str
    source_fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: str) -> "PartData":
        """The same part for work on `device`: its labels are there, and its images where all
        parts of the data together are few enough (`pixels.on_device`); rows stay on the host."""
        if self.images.device.type == device:
            return self
        images = on_device(self.images, device, copies=self.of)
        return replace(self, images=images, labels=self.labels.to(device))

    def unit(self, rows: Tensor) -> Tensor:
        """Images at `rows` in unit space: float32, 0 black, 1 white."""
        return rows_of(self.images, rows).to(torch.float32) / 255

    def normalized(self, rows: Tensor) -> Tensor:
        """Images at `rows` in normalised space: float32, mean 0 and std 1 per channel."""
        return normalize(self.unit(rows), self.mean, self.std)


def cache_key(part: PartData, form: int, precision: str, **spec: Any) -> str:
    """What something trained on `part` is cached under: a digest of the data, the precision and
    the JSON values of `spec`. `form` numbers the format of what is cached."""
    whole = {
        "format": form,
        "precision": precision,
        "data": [part.fingerprint, part.mean, part.std, part.flip],
        **spec,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Unit space to normalised space: `(x - mean) / std` per channel of (n, C, H, W)."""
    return (images - per_channel(mean, images)) / per_channel(std, images)


def denormalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised space to unit space, the inverse of `normalize`; nothing is clipped."""
    return images * per_channel(std, images) + per_channel(mean, images)


def split_parts(
    real: RealData, experts: int, rule: PartRule, streams: Streams, ipc: int
) -> list[PartData]:
    """Cut the training split into `experts` parts.

    `stratified` gives disjoint shares, `all` gives every expert the whole split (each in an order
    of its own, so that no two experts start from the same images). A class with fewer images than
    a part needs (`ipc`) is a `DataError` that names it.
    """
    labels = real.train.labels
    per_expert: list[list[Tensor]] = [[] for _ in range(experts)]
    for c, name in enumerate(real.classes):
        rows = torch.nonzero(labels == c).flatten()
        for e in range(experts):
            if rule == "all":
                order = torch.randperm(len(rows), generator=streams.generator("part", e, c))
                share = rows[order]
            else:
                order = torch.randperm(len(rows), generator=streams.generator("part", c))
                # Rotating by class spreads the odd images over the parts.
                share = rows[order][(e + c) % experts :: experts]
            if len(share) < ipc:
                raise DataError(
                    f"class {name!r} has {len(rows)} training images, so the part of expert {e} "
                    f"of {experts} holds {len(share)}; {ipc} images per class need at least "
                    f"{ipc * (1 if rule == 'all' else experts)}: lower the ipc or drop the class"
                )
            per_expert[e].append(share)
    return [_part(real, shares, rule, experts, e) for e, shares in enumerate(per_expert)]


def whole(real: RealData) -> PartData:
    """All of the training split as one part, in the order of the data."""
    labels = real.train.labels
    shares = [torch.nonzero(labels == c).flatten() for c in range(len(real.classes))]
    return _part(real, shares, "all", 1, 0)


def _part(real: RealData, shares: list[Tensor], rule: PartRule, of: int, index: int) -> PartData:
    chosen = torch.cat(shares)
    digest = hashlib.sha256(real.fingerprint.encode())
    digest.update(chosen.numpy().astype("<i8").tobytes())
    ends = torch.tensor([len(share) for share in shares]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return PartData(
        data=real.data,
        images=subset(real.train.images, chosen),
        labels=real.train.labels[chosen],
        rows=tuple(torch.arange(a, b) for a, b in zip(starts, ends, strict=True)),
        classes=tuple(real.classes),
        mean=tuple(real.mean),
        std=tuple(real.std),
        flip=real.flip,
        rule=rule,
        of=of,
        index=index,
        fingerprint="sha256:" + digest.hexdigest(),
        source_fingerprint=real.fingerprint,
    )
