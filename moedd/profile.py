"""The device profile: how the arithmetic runs, chosen in one place and recorded with every set.

    float32   every product in float32
    fast      convolutions and products in bfloat16 where the machine has units for it, sums in
              float32; parameters, images and optimisers stay float32
    auto      what this machine is given by default (see `AUTO`)

Both compile their functions (`torch.compile`) where the work ahead repays the compiler's cold
start, and both ask glibc to keep large buffers, which its default allocator maps afresh on every
use. On CUDA the classes of a step go through the network together.
"""

import ctypes
import os
import platform
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from moedd_loaders.errors import MoeddWarning, UsageError, unknown

PROFILES = ("auto", "float32", "fast")
AUTO = "float32"

# Operations from which compiling repays its cold start (about a minute for a matching function):
# in float32 it saves a tenth to a third of the time, in bfloat16 more than half.
_REPAYS = {
    ("cpu", "float32"): 6e13,
    ("cpu", "bfloat16"): 1.5e13,
    ("cuda", "float32"): 2e14,
    ("cuda", "bfloat16"): 2e14,
}
# What two CPU cores, and a data centre's GPU, do in a second, roughly: turns hours into operations.
NOMINAL_RATE = {"cpu": 1e11, "cuda": 2e13}

# glibc's mallopt parameter numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# Pixels that go through a network at once where more than one way of cutting gives the same result:
# on a CPU those of 250 images of 32x32, on a GPU, which has work for more, 16 times as many.
_PIXELS_AT_ONCE = {"cpu": 250 * 32 * 32, "cuda": 4000 * 32 * 32}

Precision = Literal["float32", "bfloat16"]
Layout = Literal["contiguous", "channels_last", "mixed"]


@dataclass(frozen=True)
class Profile:
    """What a run computes with: goes into the manifest and into every checkpoint.

    `compiled`: None leaves it to the amount of work (`for_work`), else it is settled.
    `classes_at_once`: how many classes of a step go through the network in one call.
    `layout`: memory format of images in bfloat16: "contiguous", "channels_last", or "mixed",
    channels last for networks without normalisation only.
    """

    name: str = "float32"
    device: str = "cpu"
    threads: int = 1
    allocator: str = "default"
    processor: str = "unknown"
    precision: Precision = "float32"
    compiled: bool | None = False
    classes_at_once: int = 1
    layout: Layout = "contiguous"

    def describe(self) -> dict[str, str | int | bool | None]:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions and products are computed in."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def for_work(self, operations: float) -> "Profile":
        """The profile with `compiled` settled for so many floating-point operations."""
        if self.compiled is not None:
            return self
        return replace(self, compiled=operations >= _REPAYS[self.device, self.precision])

    def memory_format(self, normalised: bool) -> torch.memory_format:
        """Of the images that a network sees, which has normalisation layers or not."""
        last = self.layout == "channels_last" or (self.layout == "mixed" and not normalised)
        return torch.channels_last if last else torch.contiguous_format

    def images_at_once(self, size: tuple[int, int]) -> int:
        """Images of (height, width) `size` that go through a network at once, where nothing but
        memory says how many."""
        return max(1, _PIXELS_AT_ONCE[self.device] // (size[0] * size[1]))

    def __str__(self) -> str:
        compiling = {None: "compiled if it repays", True: "compiled", False: "not compiled"}
        return (
            f"profile {self.name} ({self.precision}, {compiling[self.compiled]}, "
            f"{self.threads} threads, allocator {self.allocator})"
        )


def choose_profile(name: str = "auto", device: str | None = None) -> Profile:
    """Probe the machine, set up its allocator and compiler, and name the profile.

    Calling it twice changes nothing. `device` "cpu" or "cuda"; None takes CUDA where there is one.
    Raises UsageError: an unknown profile, CUDA asked for where there is none.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    name = AUTO if name == "auto" else name
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda is asked for and torch sees no CUDA device here; use cpu")
    has_bfloat16 = device == "cuda" or bfloat16_units() != "none"
    precision: Precision = "bfloat16" if name == "fast" and has_bfloat16 else "float32"
    if device == "cuda":
        # float32 means float32 there too; the fast profile lets what is not bfloat16 use TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "fast"
    return Profile(
        name=name,
        device=device,
        threads=torch.get_num_threads(),
        allocator=keep_large_buffers(),
        processor=processor_name() if device == "cpu" else torch.cuda.get_device_name(),
        precision=precision,
        compiled=None if prepare_compiler(device) else False,
        # On a GPU ten small calls cost ten launches; on a CPU one class fills the cores.
        classes_at_once=10 if device == "cuda" else 1,
        layout="mixed" if precision == "bfloat16" else "contiguous",
    )


def bfloat16_units() -> str:
    """`amx`, `avx512_bf16` or `none`: what the processor multiplies bfloat16 numbers with."""
    flags: set[str] = set()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if "amx_bf16" in flags:
        return "amx"
    return "avx512_bf16" if "avx512_bf16" in flags else "none"


def prepare_compiler(device: str) -> bool:
    """Give `torch.compile` a cache that outlives the process; False if it cannot be used here.

    On a CPU it needs a C++ compiler: without one, one line of warning.
    """
    if device == "cpu" and not any(shutil.which(c) for c in _compilers()):
        warnings.warn(
            "no C++ compiler (g++ or clang++) is found on this machine: moedd runs uncompiled, "
            "which is slower and gives the same results",
            MoeddWarning,
            stacklevel=2,
        )
        return False
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        from moedd_loaders.resolve import home

        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home() / "compiled")
    return True


def compiled_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` in the form the engine needs: whole graphs, a version for every shape."""
    import torch._dynamo.config as dynamo  # late: it takes a second

    # One function meets many shapes and networks; the default of 8 versions is soon full.
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    setattr(dynamo, limit, max(getattr(dynamo, limit), 64))
    return torch.compile(function, dynamic=False, fullgraph=True)


def _compilers() -> list[str]:
    return [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]


def keep_large_buffers() -> str:
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
