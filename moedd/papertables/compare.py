"""Comparisons that the tables are about, as differences of means with intervals.

Each stands for a claim of the paper or for an objection to it. Two lines are compared at the same
part of their schedules, or, where the title says so, at the same number of matching operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from moedd.papertables.lines import Line, Section
from moedd.papertables.paper import Printed, printed
from moedd.papertables.rows import (
    DIVERSITY_FORMS,
    NO_DIVERSITY,
    SHARED_PARTS,
    Identity,
    random_identity,
    table_rows,
)
from moedd.papertables.stats import Gap, gap

_TOLERANCE = 0.01  # of the operations, beside half a step of the one that was fitted


class Question(NamedTuple):
    """a minus b. `claim`: in the paper's words it is positive."""

    title: str
    claim: bool
    a: Identity
    b: Identity
    equal: str = "fraction"


@dataclass(frozen=True)
class Answer:
    """A question, the two lines, and per network the gap here and, where it is printed, there."""

    question: Question
    a: Line
    b: Line
    gaps: dict[str, Gap]
    paper: dict[str, float]


def answers(section: Section) -> list[Answer]:
    """All questions that the lines of a section can answer."""
    found = []
    for question in _questions({key.identity for key in section.lines}):
        for a, b in _pairs(section, question):
            paired = _belong_together(a, b)
            shared = [n for n in section.networks if a.sets(n) and b.sets(n)]
            gaps = {n: gap(a.sets(n), b.sets(n), paired) for n in shared}
            paper = {
                n: value
                for n in shared
                if (value := _printed_gap(question, section.setting.data, n)) is not None
            }
            if gaps:
                found.append(Answer(question, a, b, gaps, paper))
    return found


def _questions(present: set[Identity]) -> Iterator[Question]:
    """Of every set of two experts, with both additions (diversity and cross-expert mixup)."""
    plain = {i._replace(overrides=(), fuse="mixup") for i in present if i.variant == "distilled"}
    for m in sorted(i for i in plain if i.experts > 1):
        name = f"{m.methods} {m.ipc}x{m.experts}"
        yield from _against_one(m, name)
        yield from _against_other_fusion(m, name)
        yield from _against_other_diversity(m, name)
        random = random_identity(m.budget, 2 if m.methods in ("idc", "idm") else 1)
        yield Question(f"{name} - random {m.budget}", False, m, random, "nothing")


def _against_one(m: Identity, name: str) -> Iterator[Question]:
    """One expert of the same budget; a hybrid against each of its methods."""
    for methods in m.methods.split("+")[::-1]:
        single = Identity("distilled", methods, m.budget, 1)
        vanilla = single._replace(fuse="vanilla")
        one = f"{methods} {m.budget}x1"
        # The paper compares its hybrid with RDED alone.
        claim = methods in (m.methods, "rded")
        yield Question(f"{name} - {one}", claim, m, single)
        yield Question(f"{name} - {one}, equal arithmetic", False, m, single, "operations")
        yield Question(f"{name} - {one} with vanilla mixup", False, m, vanilla)
        title = f"{name} - {one} with vanilla mixup, equal arithmetic"
        yield Question(title, False, m, vanilla, "operations")


def _against_other_fusion(m: Identity, name: str) -> Iterator[Question]:
    yield Question(f"{name}: cross-expert - vanilla mixup", True, m, m._replace(fuse="vanilla"))
    yield Question(f"{name}: cross-expert mixup - none", True, m, m._replace(fuse="none"))


def _against_other_diversity(m: Identity, name: str) -> Iterator[Question]:
    for own, form in ((m._replace(fuse="none"), "without mixup"), (m, "with mixup")):
        without = own._replace(overrides=NO_DIVERSITY)
        yield Question(f"{name}: diversity - none, {form}", own is not m, own, without)
        shared = own._replace(overrides=SHARED_PARTS)
        yield Question(f"{name}: disjoint parts - all data, {form}", False, own, shared)
        for title, settings in DIVERSITY_FORMS.items():
            other = own._replace(overrides=settings)
            yield Question(f"{name}: diversity {title} - default, {form}", False, other, own)


def _pairs(section: Section, question: Question) -> Iterator[tuple[Line, Line]]:
    for a in section.of(question.a):
        for b in section.of(question.b):
            if _comparable(a, b, question.equal):
                yield a, b


def _comparable(a: Line, b: Line, equal: str) -> bool:
    if equal == "nothing":
        return True
    # A method that optimises nothing (RDED) has no schedule to be equal in.
    if not (a.operations and b.operations):
        return equal == "fraction"
    same = a.key.fraction == b.key.fraction
    return same if equal == "fraction" else not same and equal_operations(a, b)


def equal_operations(a: Line, b: Line) -> bool:
    """Whether matching took as many operations, up to half a step and a hundredth."""
    if not (a.operations and b.operations):
        return False
    one_step = max(line.operations / max(line.steps) for line in (a, b))
    return abs(a.operations - b.operations) <= _TOLERANCE * a.operations + one_step / 2


def fitted_to(section: Section, line: Line) -> Line | None:
    """The line with another number of experts whose matching operations this one's schedule was
    fitted to; None where it is at the schedule that was asked for."""
    own = line.identity
    if own.variant != "distilled" or own.overrides:
        return None
    others = [
        other
        for key, other in section.lines.items()
        if key.identity.methods == own.methods
        and key.identity.experts != own.experts
        and key.identity.budget == own.budget
        and not key.identity.overrides
    ]
    # Two experts are cut down only where one of them has the whole schedule already.
    cut = own.experts > 1 and line.key.fraction == max(
        same.key.fraction for same in section.of(own)
    )
    if cut or any(other.key.fraction == line.key.fraction for other in others):
        return None
    return next((other for other in others if equal_operations(other, line)), None)


def _belong_together(a: Line, b: Line) -> bool:
    """Sets of one seed are the very same ones, fused differently, or start from the same parts and
    the same images."""
    one, other = (line.identity._replace(fuse="", overrides=()) for line in (a, b))
    return one == other and a.key.fraction == b.key.fraction and a.identity.variant == "distilled"


def _printed_gap(question: Question, data: str, network: str) -> float | None:
    """The difference of the paper's numbers, where one table prints both."""
    if question.equal != "fraction":
        return None
    for table in (1, 2, 3, 4):
        lines = _printed_lines(table, question.a.budget)
        a, b = (printed(lines.get(i), data, network) for i in (question.a, question.b))
        if a is not None and b is not None:
            return a - b
    return None


def _printed_lines(table: int, budget: int) -> dict[Identity, Printed]:
    rows = [row for row in table_rows(table, budget) if row.paper is not None]
    return {row.identity: row.paper for row in rows if row.paper is not None}
