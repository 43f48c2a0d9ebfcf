"""Random streams: one seed, a generator for every named purpose.

A stream is a pure function of the run's seed and a name such as `("expert", 0, "class", 3, "step",
120)`. Nothing is carried from one draw to the next, so a result depends neither on how many
processes worked on it nor on where a killed run was taken up again.
"""

import hashlib

import torch

Name = str | int


class Streams:
    """Generators derived from `seed` and a prefix of names.

    >>> Streams(0).scope("expert", 1).generator("step", 5)  # the same stream, always
    """

    def __init__(self, seed: int, prefix: tuple[Name, ...] = ()) -> None:
        self.seed = int(seed)
        self.prefix = prefix

    def scope(self, *names: Name) -> "Streams":
        """Streams whose names all begin with `names`."""
        return Streams(self.seed, self.prefix + names)

    def key(self, *names: Name) -> int:
        """63-bit number of a name: what its generator is seeded with."""
        text = "/".join(str(part) for part in (self.seed, *self.prefix, *names))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, *names: Name) -> torch.Generator:
        """A fresh CPU generator at the start of the named stream."""
        # The CPU engine keeps 32 bits of its seed: fold, so that all 63 count.
        key = self.key(*names)
        return torch.Generator().manual_seed((key ^ (key >> 32)) & 0xFFFFFFFF)
