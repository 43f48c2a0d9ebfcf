"""How many bytes of real images may lie in memory, and on a GPU.

MOEDD_DATA_IN_MEMORY   bytes of decoded images up to which a data set is kept in memory
                       (default: 1/32 of the machine's, or its control group's; 256 MiB at most)
MOEDD_DATA_ON_DEVICE   bytes of images up to which they are kept on a GPU (default: 1/8 of its
                       memory); others stay on the host and are moved in batches
"""

import os
from pathlib import Path

import torch

from moedd_loaders.errors import UsageError

MEMORY_SHARE, MOST_IN_MEMORY = 32, 256 * 2**20
DEVICE_SHARE = 8

_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_OWN_GROUP = "/proc/self/cgroup"


def memory_limit() -> int:
    """Bytes of decoded images up to which a data set is kept in memory."""
    return _asked("MOEDD_DATA_IN_MEMORY", min(_ram() // MEMORY_SHARE, MOST_IN_MEMORY))


def device_limit(device: str) -> int:
    """Bytes of images up to which they are kept on `device`."""
    share = 0
    if device == "cuda" and torch.cuda.is_available():
        share = torch.cuda.get_device_properties("cuda").total_memory // DEVICE_SHARE
    return _asked("MOEDD_DATA_ON_DEVICE", share)


def _asked(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{name} is {text!r}, expected a number of bytes, for example 268435456")
    return int(text)


def _ram() -> int:
    """Bytes of memory of this machine, or of its control group where that allows less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for place in (*_CONTROL_GROUPS, *_own_limits()):
        try:
            said = Path(place).read_text().strip()
        except OSError:
            continue
        if said.isdigit():  # else "max"
            found = min(found, int(said))
    return found


def _own_limits() -> list[str]:
    """Where the limits of this process's group, and of those around it, stand: outside containers
    (a job of Slurm, a unit of systemd) that is below the roots of the two versions."""
    try:
        lines = Path(_OWN_GROUP).read_text().splitlines()
    except OSError:
        return []
    found = []
    for number, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        root, name = Path("/sys/fs/cgroup"), "memory.max"
        if number != "0":
            if "memory" not in kinds.split(","):
                continue
            root, name = root / "memory", "memory.limit_in_bytes"
        own = root / path.lstrip("/")
        found += [str(group / name) for group in (own, *own.parents) if root in group.parents]
    return found
