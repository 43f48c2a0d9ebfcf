"""Class order by name: the numbers that another data set gives to the classes of a set."""

from __future__ import annotations

from collections.abc import Sequence

from moedd_loaders.errors import UsageError, nearest

__all__ = ["class_numbers"]


def class_numbers(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """For each of our classes, its place in `theirs`, which may hold further classes.

    Names must agree exactly: a guess that is wrong would cost the accuracy without a word.

    Raises:
        UsageError: one of ours is not among them, or `theirs` names a class twice.
    """
    if isinstance(theirs, str) or not all(isinstance(name, str) for name in theirs):
        raise UsageError(
            f"class names are {theirs!r}, expected a list of names such as test_set.classes"
        )
    place = {name: number for number, name in enumerate(theirs)}
    if len(place) != len(theirs):
        twice = next(name for name in theirs if list(theirs).count(name) > 1)
        raise UsageError(f"the class names hold {twice!r} twice: names must differ")
    missing = [name for name in ours if name not in place]
    if missing:
        close = nearest(missing[0], [name for name in theirs if name not in ours])
        hint = f"did you mean {close[0]!r}? " if close else ""
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(
            f"class {missing[0]!r} of the set is not among the {len(place)} class names given"
            f"{others}: {hint}rename yours to the set's names, {', '.join(ours[:10])}"
            + (", ..." if len(ours) > 10 else "")
        )
    return [place[name] for name in ours]
