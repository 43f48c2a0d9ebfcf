"""The one figure that a README shows, from the same records as the page: two experts minus one, and
as long as no record compares them, mixup across experts."""

import os
from collections.abc import Sequence
from pathlib import Path

from moedd.checkpoint import write_atomically
from moedd.papertables.compare import answers
from moedd.papertables.figures import gap_figure, mixup_figure
from moedd.papertables.lines import Section, sections
from moedd_loaders.errors import DataError, UsageError, from_oserror
from moedd_loaders.records import Record

BEGIN = "<!-- moedd tables --readme: begin -->"
END = "<!-- moedd tables --readme: end -->"
FIGURE = "headline.svg"
_GAPS = (
    "Two experts minus one of the same budget, in points, at the same part of the schedule (where "
    "two compute more) and, as far as it was run, at equal arithmetic"
)


def write_headline(
    readme: Path, page: Path, records: Sequence[Record], note: str = ""
) -> list[Path]:
    """Draw `figures/headline.svg` beside the page and show it between the marks of the README;
    returns the files.

    It is of the setting with most records among those that have its lines. Raises UsageError: the
    README has no marks; DataError: no records give a figure.
    """
    text = _read(readme)
    figure = page.parent / "figures" / FIGURE
    caption = _drawn(sections(records), figure)
    there, more = (Path(os.path.relpath(path, readme.parent)).as_posix() for path in (figure, page))
    said = f"{caption}; all tables: [{more}]({more})." + (f" {note}." if note else "")
    shown = f"![{caption.partition(':')[0]}]({there})\n\n{said}"
    head, rest = text.split(BEGIN, 1)
    whole = f"{head}{BEGIN}\n{shown}\n{END}{rest.split(END, 1)[1]}"
    try:
        write_atomically(readme, whole.encode())
    except OSError as error:
        raise from_oserror(error, f"writing {readme}") from error
    return [readme, figure]


def _drawn(found: Sequence[Section], figure: Path) -> str:
    """The figure's caption."""
    for section in found:
        if gap_figure(answers(section), figure):
            return _caption(_GAPS, section)
    for section in found:
        if mixup_figure(section, figure):
            return _caption("Mixup across two experts, ordinary mixup and none", section)
    raise DataError(
        "no records compare two experts with one, or ways of mixup, which the README's figure is "
        "of: run Table 1, 2 or 3"
    )


def _read(readme: Path) -> str:
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise from_oserror(error, f"reading {readme}") from error
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:
        raise UsageError(
            f"{readme} does not say where its figure goes: put {BEGIN} and {END} there"
        )
    return text


def _caption(subject: str, section: Section) -> str:
    setting = section.setting
    sets = max(len(line.made) for line in section.lines.values())
    counted = "one set" if sets == 1 else f"up to {sets} sets"
    return f"{subject}: {setting.data}, recipe `{setting.protocol}`, {counted} of each kind"
