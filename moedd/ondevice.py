"""Between host and device without waiting: small copies that leave the device's queue running.

Draws and indices are made on the host (one generator per purpose, whatever the device), so every
step sends some. A plain `.to(device)` waits until the device has done all it was given before.
"""

from functools import lru_cache

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device | str) -> Tensor:
    """`host` on `device`. From ordinary memory the driver takes its copy before it returns, so
    `host` may change afterwards; where it is there already, the very same tensor."""
    return host.to(device, non_blocking=True)


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """One number per channel as (1, C, 1, 1), of the dtype and on the device of `like`; sent once
    and kept."""
    return _kept(tuple(values), like.dtype, like.device).view(1, -1, 1, 1)


@lru_cache(maxsize=64)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
