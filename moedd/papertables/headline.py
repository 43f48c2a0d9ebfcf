"""The one figure that a README shows: two experts minus one, from the same records as the page."""

import os
from collections.abc import Sequence
from pathlib import Path

from moedd.checkpoint import write_atomically
from moedd.papertables.compare import Answer, answers
from moedd.papertables.figures import gap_figure
from moedd.papertables.lines import Section, sections
from moedd_loaders.errors import DataError, UsageError, from_oserror
from moedd_loaders.records import Record

BEGIN = "<!-- moedd tables --readme: begin -->"
END = "<!-- moedd tables --readme: end -->"
FIGURE = "headline.svg"


def write_headline(readme: Path, page: Path, records: Sequence[Record]) -> list[Path]:
    """Draw `figures/headline.svg` beside the page and show it between the marks of the README;
    returns the files.

    It is of the setting with most records among those that compare two experts with one. Raises
    UsageError: the README has no marks; DataError: no record compares.
    """
    text = _read(readme)
    figure = page.parent / "figures" / FIGURE
    for section in sections(records):
        found = answers(section)
        if gap_figure(found, figure):
            shown = _shown(section, found, readme, page, figure)
            head, rest = text.split(BEGIN, 1)
            whole = f"{head}{BEGIN}\n{shown}\n{END}{rest.split(END, 1)[1]}"
            try:
                write_atomically(readme, whole.encode())
            except OSError as error:
                raise from_oserror(error, f"writing {readme}") from error
            return [readme, figure]
    raise DataError(
        "no records compare two experts with one, which the README's figure is of: run Table 1 or 2"
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


def _shown(
    section: Section, found: Sequence[Answer], readme: Path, page: Path, figure: Path
) -> str:
    setting = section.setting
    sets = [n for answer in found for gap in answer.gaps.values() for n in gap.sets]
    counted = "one set" if max(sets) == 1 else f"up to {max(sets)} sets"
    there, more = (Path(os.path.relpath(path, readme.parent)).as_posix() for path in (figure, page))
    return (
        f"![Two experts minus one expert of the same budget, in points of accuracy]({there})\n\n"
        f"Two experts minus one of the same budget: {setting.data}, recipe `{setting.protocol}`, "
        f"{counted} of each kind; all tables are in [{more}]({more})."
    )
