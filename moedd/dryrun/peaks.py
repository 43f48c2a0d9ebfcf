"""Peak memory of a stretch of work, as the operating system and the GPU's allocator count it."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from moedd.profile import peak_memory_bytes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes: resident memory of the process, and what torch had allocated on the GPU."""

    host: int
    device: int = 0


class PeakMeter:
    """Peaks of one stretch after another.

    On Linux the kernel's mark is set back for each stretch; elsewhere (or where that is forbidden)
    the host's peak is that of all that came before as well. Each includes what earlier stretches
    have left: memory that the allocator keeps counts as the process's.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def lap(self) -> Peak:
        """The peak since the last call, or since the process began."""
        device = 0
        if self.cuda:
            device = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        host = resident_peak()
        with suppress(OSError):  # the mark stays, and so does what is said above
            _CLEAR.write_text("5")
        return Peak(host, device)


def resident_peak() -> int:
    """Peak resident memory of this process in bytes, without that of the program it was forked
    from, which `getrusage` counts in."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else peak_memory_bytes()
