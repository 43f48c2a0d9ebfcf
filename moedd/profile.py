"""The device profile: how the arithmetic runs, chosen in one place and recorded with every set.

Two facts drive the choice on a CPU: large
float32 buffers are mapped afresh on every use under glibc's default allocator, and bfloat16 is
faster than float32 only where the processor has matrix units for it. This version computes in
float32 on the CPU everywhere; the profile is the seam where faster forms enter.
"""

import ctypes
import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass

import torch

# glibc's mallopt parameter numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Profile:
    """What a run computes with: goes into the manifest and into every checkpoint."""

    name: str = "float32"
    device: str = "cpu"
    threads: int = 1
    allocator: str = "default"
    processor: str = "unknown"

    def describe(self) -> dict[str, str | int]:
        """The fields as plain values, for JSON."""
        return asdict(self)


def choose_profile() -> Profile:
    """Set up the allocator and name the profile. Calling it twice changes nothing."""
    return Profile(
        name="float32",
        device="cpu",
        threads=torch.get_num_threads(),
        allocator=_keep_large_buffers(),
        processor=processor_name(),
    )


def _keep_large_buffers() -> str:
    """Ask glibc to keep freed large buffers instead of unmapping them; says what now holds."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "default"
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return "mallopt" if kept else "default"


def processor_name() -> str:
    """The processor's marketing name and core count, e.g. `AMD EPYC, 2 cores`."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            found = [line.split(":", 1)[1].strip() for line in lines if line[:10] == "model name"]
        name = found[0] if found else name
    return f"{name}, {os.cpu_count()} cores"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
