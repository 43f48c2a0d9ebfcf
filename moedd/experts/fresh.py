"""What the methods of the DC family share: fresh networks and first images."""

import torch
from torch import Tensor

from moedd.networks import Network, build_network
from moedd.parts import PartData
from moedd.streams import Streams


def fresh_network(like: Network, generator: torch.Generator) -> Network:
    """A newly initialised network of the architecture of `like`, on the CPU."""
    return build_network(
        like.name,
        channels=like.channels,
        classes=like.classes,
        size=like.size,
        width=next(iter(like.parameters())).shape[0],
        generator=generator,
    )


def real_images(part: PartData, ipc: int, streams: Streams) -> Tensor:
    """`ipc` real images of each class in normalised space, class-major.

    Drawn without replacement; a class with fewer is gone through again.
    """
    chosen = []
    for c, rows in enumerate(part.rows):
        order = torch.randperm(len(rows), generator=streams.generator(c))
        chosen.append(rows[order[torch.arange(ipc) % len(rows)]])
    return part.normalized(torch.cat(chosen))
