"""How fast cells run: measured on earlier cells, assumed where there are none.

A record says how many operations its network took and in how many seconds, and the same of the set
it was trained on. The median over records of this machine (same processor, same number of threads,
same precision) is the rate; without such records it is that of docs/performance.md, which is of two
threads of another machine, and the plan says that it is assumed.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from moedd_loaders.records import Record

# Operations per second of two threads (docs/performance.md): float32, bfloat16.
_ASSUMED = {
    "convnet": (1.65e11, 2.89e11),
    "vgg11": (1.84e11, 2.85e11),
    "resnet18": (1.93e11, 3.37e11),
    "alexnet": (1.79e11, 4.28e11),
    "matching": (1.6e11, 2.9e11),
}
_ASSUMED_CUDA = (5e12, 1e13)
_THREADS = 2


@dataclass(frozen=True)
class Machine:
    """What a rate was measured on."""

    hardware: str
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class Rates:
    """Operations per second by (kind, precision) on one machine. Kinds: a network's name, and
    `matching METHODS` for sets."""

    machine: Machine
    measured: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record], machine: Machine) -> "Rates":
        """The medians over the records of this machine."""
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        sets: dict[str, tuple[tuple[str, str], float]] = {}
        for record in records:
            config = record.config
            if Machine(record.hardware, config.get("threads", 0), machine.device) == machine:
                kind = (record.network, str(config.get("precision")))
                found[kind] += _rate(config.get("operations"), record.seconds)
            made = config.get("set") or {}
            if Machine(made.get("hardware", ""), made.get("threads", 0), machine.device) == machine:
                methods = "+".join(dict.fromkeys(record.methods))
                kind = (matching(methods), str(made.get("precision")))
                for rate in _rate(made.get("operations"), made.get("seconds")):
                    sets[made["cell"]] = (kind, rate)  # once per set, not per network
        for kind, rate in sets.values():
            found[kind].append(rate)
        return cls(machine, {kind: median(rates) for kind, rates in found.items() if rates})

    def seconds(self, kind: str, precision: str, operations: float) -> float:
        """Seconds that so many operations take."""
        return operations / self.rate(kind, precision)

    def rate(self, kind: str, precision: str) -> float:
        """Operations per second: measured, else assumed."""
        known = self.measured.get((kind, precision))
        return known or self._assumed(kind, precision)

    def is_measured(self, kind: str, precision: str) -> bool:
        """Whether the rate comes from records of this machine."""
        return (kind, precision) in self.measured

    def _assumed(self, kind: str, precision: str) -> float:
        place = int(precision == "bfloat16")
        if self.machine.device != "cpu":
            return _ASSUMED_CUDA[place]
        name = next((name for name in _ASSUMED if kind.startswith(name)), "convnet")
        return _ASSUMED[name][place] * min(self.machine.threads, _THREADS) / _THREADS


def matching(methods: str) -> str:
    """The kind of a set's matching."""
    return f"matching {methods}"


def _rate(operations: Any, seconds: Any) -> list[float]:
    usable = isinstance(operations, float) and operations > 0 and (seconds or 0) > 0
    return [operations / seconds] if usable else []
