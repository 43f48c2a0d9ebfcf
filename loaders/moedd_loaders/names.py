"""The one grammar of set names: `<data>-<method>[+<method>...]-<ipc>x<experts>`.

The name is the configuration: `cifar10-idm+rded-10x2` is 10 images per class per expert, 2
experts, a budget of 20. It is parsed from the right: methods contain no hyphen, data names may.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from moedd_loaders.errors import UsageError, unknown

__all__ = ["SetName", "is_slug", "parse_name"]

_SLUG = re.compile(r"[a-z0-9][a-z0-9_+.-]*")
_DATA = re.compile(r"[a-z0-9](?:[a-z0-9_.-]*[a-z0-9_.])?")
_METHOD = re.compile(r"[a-z][a-z0-9_]*")
_SIZE = re.compile(r"(0|[1-9][0-9]*)x(0|[1-9][0-9]*)")
_FORM = (
    "expected <data>-<method>[+<method>...]-<ipc>x<experts>, lower case, "
    "for example cifar10-idc-5x2 or cifar10-idm+rded-10x2"
)


@dataclass(frozen=True)
class SetName:
    """A parsed name; `str()` gives the text back.

    Attributes:
        data: name of the real data, e.g. "cifar10".
        methods: distillation methods; expert e uses `methods[e % len(methods)]`.
        ipc: images per class per expert (>= 1).
        experts: number of experts (>= 1), a multiple of the number of methods.
    """

    data: str
    methods: tuple[str, ...]
    ipc: int
    experts: int

    @property
    def budget(self) -> int:
        """Stored images per class over all experts: ipc x experts."""
        return self.ipc * self.experts

    def method_of(self, expert: int) -> str:
        """The method of expert number `expert` (methods cycle)."""
        if not 0 <= expert < self.experts:
            raise IndexError(f"expert {expert} of {self.experts}")
        return self.methods[expert % len(self.methods)]

    def __str__(self) -> str:
        return f"{self.data}-{'+'.join(self.methods)}-{self.ipc}x{self.experts}"


def is_slug(text: str) -> bool:
    """Whether `text` may name a set at all: `[a-z0-9][a-z0-9_+.-]*`."""
    return _SLUG.fullmatch(text) is not None


def parse_name(text: str, methods: Collection[str] | None = None) -> SetName:
    """Parse a set name; with `methods`, also require that each method is one of them.

    Raises:
        UsageError: the text is not such a name, a number is 0, the number of experts is not a
            multiple of the number of methods, or a method is unknown.
    """
    head, _, size = text.rpartition("-")
    data, _, joined = head.rpartition("-")
    sizes = _SIZE.fullmatch(size)
    names = tuple(joined.split("+"))
    if sizes is None or _DATA.fullmatch(data) is None or not all(map(_METHOD.fullmatch, names)):
        raise UsageError(f"'{text}' is not the name of a set to distil: {_FORM}")
    ipc, experts = int(sizes[1]), int(sizes[2])
    if ipc < 1 or experts < 1:
        zero = "0 images per class" if ipc < 1 else "0 experts"
        raise UsageError(f"'{text}' asks for {zero}: give at least 1, for example {head}-5x2")
    if methods is not None:
        for name in names:
            if name not in methods:
                raise unknown("method", name, methods)
    if experts % len(names):
        raise UsageError(
            f"'{text}' has {len(names)} methods for {experts} expert{'s' if experts > 1 else ''}: "
            f"the number of experts must be a multiple, for example {head}-{ipc}x{len(names)}"
        )
    return SetName(data, names, ipc, experts)
