"""What the tables are made of: the paper's rows, and those that a fair reading needs beside them.

Groups of rows:

    paper      as printed: `idc_i`, `idm_plain`, `mtt`, `rded`
    fair       what the paper lacks: one expert with ordinary mixup, one expert at the arithmetic of
               two, random real images, experts that all see the whole data, no diversity step
    strong     the same with the methods' own mosaics (`idc`, `idm`), random images as such mosaics
    diversity  forms of the diversity loss against each other (Table 4)
    full       all real images (many hours)

A budget of B images per class is `B/2 x 2` with two experts and `B x 1` with one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from moedd.papertables.paper import Printed

GROUPS = ("paper", "fair", "strong", "diversity", "full")
DEFAULT_GROUPS = GROUPS[:-1]
TABLES = (1, 2, 3, 4)
BUDGETS = {1: (10, 20), 2: (20,), 3: (10,), 4: (10, 20)}
"""Budgets of the paper's tables, in images per class."""

NO_DIVERSITY = ("diversity.every=0",)
SHARED_PARTS = ("parts=all",)
DIVERSITY_FORMS = {
    "biased, pooled, weight 1 as printed": ("diversity.ratio=null", "diversity.weight=2"),
    "unbiased, clamped": ("diversity.estimator=unbiased",),
    "unbiased, within classes": ("diversity.estimator=unbiased", "diversity.within=block"),
}
"""Forms beside the default, which is biased and pooled at a stated ratio to the image step. The
paper counts every pair twice: its weight 1 is 2 here."""

_MOSAIC = 2  # decode factor of the strong forms
_PAPER = {"IDC": "idc_i", "IDM": "idm_plain", "MTT": "mtt"}
_STRONG = {"IDC": "idc", "IDM": "idm"}
_FUSED = {
    "none": "no mixup",
    "mixup": "cross-expert mixup",
    "vanilla": "vanilla mixup",
}
_FAMILY = {"idc": "IDC", "idc_i": "IDC", "idm": "IDM", "idm_plain": "IDM"}


class Identity(NamedTuple):
    """What networks of one line were trained on: rows and records with equal ones belong together.

    `overrides` are the settings in which the set differs from its method's own; `factor` is the
    mosaic of random images.
    """

    variant: str
    methods: str
    ipc: int
    experts: int
    overrides: tuple[str, ...] = ()
    fuse: str = "none"
    factor: int = 1

    @property
    def budget(self) -> int:
        """Stored images per class."""
        return self.ipc * self.experts

    @property
    def title(self) -> str:
        """The line's name in tables."""
        if self.variant == "full":
            return "all real images"
        if self.variant == "random":
            mosaic = f" as {self.factor}x{self.factor} mosaics" if self.factor > 1 else ""
            return f"random {self.budget}{mosaic}"
        said = [f"{self.methods} {self.ipc}x{self.experts}", *_said(self.overrides)]
        return ", ".join([*said, _FUSED.get(self.fuse, self.fuse)])


def _said(overrides: tuple[str, ...]) -> list[str]:
    known = {NO_DIVERSITY: "no diversity", SHARED_PARTS: "all data for both", (): ""}
    known |= {settings: f"diversity {form}" for form, settings in DIVERSITY_FORMS.items()}
    said = known.get(overrides, " ".join(overrides))
    return [said] if said else []


@dataclass(frozen=True)
class Row:
    """One line of a table. `cost_of`: (ipc, experts) of the set whose matching operations this
    one's schedule is to match; None: the schedule asked for. `convnet`: on the ConvNet only, as all
    of Table 4."""

    table: int
    group: str
    identity: Identity
    paper: Printed | None = None
    cost_of: tuple[int, int] | None = None
    convnet: bool = False

    @property
    def methods(self) -> list[str]:
        """Methods of the experts; none for real images."""
        return self.identity.methods.split("+") if self.identity.methods else []

    @property
    def families(self) -> set[str]:
        """Methods as the paper names them, in small letters."""
        return {_FAMILY.get(method, method).lower() for method in self.methods}


def table_rows(table: int, budget: int) -> list[Row]:
    """All rows of a table at a budget, in the order in which they are shown."""
    assert table in TABLES
    makers = {1: _table_1, 2: _table_2, 3: _table_3, 4: _table_4}
    return [replace(row, convnet=row.convnet or table == 4) for row in makers[table](budget)]


def _distilled(methods: str, ipc: int, experts: int, fuse: str, *overrides: str) -> Identity:
    return Identity("distilled", methods, ipc, experts, overrides, fuse)


def random_identity(budget: int, factor: int = 1) -> Identity:
    """Random real images, as many as a set of the budget stores."""
    return Identity("random", "", budget, 1, factor=factor)


FULL = Identity("full", "", 0, 0)


def _table_1(budget: int) -> Iterator[Row]:
    half = budget // 2
    for family, methods in _PAPER.items():
        multi = _distilled(methods, half, 2, "mixup")
        single = _distilled(methods, budget, 1, "none")
        yield Row(1, "paper", multi, Printed(1, family, half, 2))
        yield Row(1, "paper", single, Printed(1, family, budget, 1))
        yield from _fair_pair(multi, single)
    yield Row(1, "fair", random_identity(budget))
    for methods in _STRONG.values():
        multi = _distilled(methods, half, 2, "mixup")
        single = _distilled(methods, budget, 1, "none")
        yield Row(1, "strong", multi)
        yield Row(1, "strong", single)
        yield Row(1, "strong", single._replace(fuse="vanilla"))
        yield Row(1, "strong", single, cost_of=(half, 2))
    yield Row(1, "strong", random_identity(budget, _MOSAIC))
    yield Row(1, "full", FULL, Printed(1, "full dataset", 0, 0), convnet=True)


def _fair_pair(multi: Identity, single: Identity) -> Iterator[Row]:
    """What stands beside a pair of Table 1."""
    yield Row(1, "fair", single._replace(fuse="vanilla"))
    yield Row(1, "fair", single, cost_of=(multi.ipc, multi.experts))
    vanilla = single._replace(fuse="vanilla")
    yield Row(1, "fair", vanilla, cost_of=(multi.ipc, multi.experts))
    yield Row(1, "fair", multi._replace(overrides=NO_DIVERSITY))
    yield Row(1, "fair", multi._replace(overrides=SHARED_PARTS))


def _table_2(budget: int) -> Iterator[Row]:
    half = budget // 2
    hybrid = _distilled("idm_plain+rded", half, 2, "mixup")
    single = _distilled("rded", budget, 1, "none")
    yield Row(2, "paper", hybrid, Printed(2, "IDM+RDED", half, 2, "hybrid"))
    yield Row(2, "paper", single, Printed(2, "RDED", budget, 1, "single"))
    yield Row(2, "fair", hybrid._replace(fuse="none"))
    yield Row(2, "fair", hybrid._replace(overrides=SHARED_PARTS))
    yield Row(2, "fair", single._replace(fuse="vanilla"))
    yield Row(2, "fair", _distilled("idm_plain", half, 2, "mixup"))
    yield Row(2, "fair", _distilled("idm_plain", budget, 1, "none"))
    yield Row(2, "fair", random_identity(budget))
    yield Row(2, "strong", _distilled("idm+rded", half, 2, "mixup"))
    yield Row(2, "strong", _distilled("idm", budget, 1, "none"))


def _table_3(budget: int) -> Iterator[Row]:
    half = budget // 2
    named = {"mixup": "cross-expert mixup", "vanilla": "vanilla mixup", "none": "no mixup"}
    for group, methods in (("paper", _PAPER["IDC"]), ("strong", _STRONG["IDC"])):
        for fuse, variant in named.items():
            line = Printed(3, "IDC", half, 2, variant) if group == "paper" else None
            yield Row(3, group, _distilled(methods, half, 2, fuse), line)
        beside = "fair" if group == "paper" else "strong"
        yield Row(3, beside, _distilled(methods, budget, 1, "vanilla"))
        yield Row(3, beside, _distilled(methods, budget, 1, "none"))
        yield Row(3, beside, random_identity(budget, 1 if group == "paper" else _MOSAIC))


def _table_4(budget: int) -> Iterator[Row]:
    half = budget // 2
    for family, methods in _PAPER.items():
        both = _distilled(methods, half, 2, "mixup")
        steps = {
            "baseline": both._replace(overrides=NO_DIVERSITY, fuse="none"),
            "+dcor": both._replace(fuse="none"),
            "+dcor+mixup": both,
        }
        for variant, identity in steps.items():
            yield Row(4, "paper", identity, Printed(4, family, half, 2, variant))
        yield Row(4, "fair", both._replace(overrides=NO_DIVERSITY))
        yield Row(4, "fair", both._replace(overrides=SHARED_PARTS, fuse="none"))
        yield Row(4, "fair", _distilled(methods, budget, 1, "none"))
        yield Row(4, "fair", _distilled(methods, budget, 1, "vanilla"))
        for settings in DIVERSITY_FORMS.values():
            for fuse in ("none", "mixup"):
                yield Row(4, "diversity", both._replace(overrides=settings, fuse=fuse))
        for strong in filter(None, [_STRONG.get(family)]):
            for identity in steps.values():
                yield Row(4, "strong", identity._replace(methods=strong))
    yield Row(4, "fair", random_identity(budget))
