"""A page of results written from records: every record in the folder is shown.

What stands between the two marks of an existing page is replaced, the rest is left as people wrote
it; a page without marks gets them at its end, a page that is not there is made.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from moedd.checkpoint import write_atomically
from moedd.papertables.compare import Answer, answers
from moedd.papertables.figures import diversity_figure, gap_figure, mixup_figure
from moedd.papertables.lines import Section, sections
from moedd.papertables.markdown import (
    accuracy_table,
    gap_table,
    other_lines,
    title_of,
    verdicts,
)
from moedd.papertables.rows import TABLES
from moedd.tables import counted
from moedd_loaders.errors import DataError, from_oserror
from moedd_loaders.records import Record

BEGIN = "<!-- written by moedd tables --report: begin -->"
END = "<!-- written by moedd tables --report: end -->"

_LEGEND = (
    "Accuracy in percent: the mean of set means ± their standard deviation (of distilled sets, or "
    "of draws of random images), and how many sets and networks it is of. **Networks trained on "
    "one set are no independent evidence about a method**: where there is one set, ± is over its "
    "networks. Comparisons are differences of set means with 95 % intervals (Welch's t; paired "
    "where two lines share their sets, or their sets' parts and initial images); bold: the "
    "interval leaves out zero, which one in twenty does by chance. *at chance*: no better than "
    "guessing, within two standard deviations. *schedule* is the part of the method's own number "
    "of steps, *matching TFLOP* what making one set took (the diversity step included), *training "
    "steps* the optimiser steps of each network, *dependence* the unbiased squared distance "
    "correlation between the experts of a set (0: independent)."
)


def write_report(page: Path, records: Sequence[Record], source: str, note: str = "") -> list[Path]:
    """Write the page and its figures (in `figures/` beside it); returns the files.

    `source` names the folder of records; `note` is a sentence that no record holds, such as what
    was done to the data. Raises DataError: there are no records of cells.
    """
    if not records:
        raise DataError(
            f"no records of table cells lie in {source}: run some first, with moedd tables --table"
        )
    try:
        figures = page.parent / "figures"
        body = [_intro(records, source, note), "", _LEGEND, ""]
        written: list[Path] = []
        for section in sections(records):
            text, paths = _section(section, figures)
            body += text
            written += paths
        write_atomically(page, _placed(page, "\n".join(body)).encode())
    except OSError as error:
        raise from_oserror(error, f"writing the report {page}") from error
    return [page, *written]


def _intro(records: Sequence[Record], source: str, note: str) -> str:
    data = ", ".join(sorted({record.data for record in records}))
    return (
        f"Written by `moedd tables --report` from {len(records)} records in `{source}` ({data}); "
        "every record of a table cell that lies there is shown." + (f" {note}." if note else "")
    )


def _placed(page: Path, body: str) -> str:
    block = f"{BEGIN}\n\n{body.rstrip()}\n\n{END}"
    if not page.exists():
        return f"# The paper's tables\n\n{block}\n"
    text = page.read_text(encoding="utf-8")
    if BEGIN in text and END in text and text.index(BEGIN) < text.index(END):
        head, rest = text.split(BEGIN, 1)
        return head + block + rest.split(END, 1)[1]
    return f"{text.rstrip()}\n\n{block}\n"


def _section(section: Section, folder: Path) -> tuple[list[str], list[Path]]:
    found = answers(section)
    text = [f"### {_heading(section)}", "", *_description(section), ""]
    name = _file_name(section)
    written = []
    figures = (
        ("gaps", "two experts against one", lambda path: gap_figure(found, path)),
        ("mixup", "mixup across experts", lambda path: mixup_figure(section, path)),
        ("diversity", "the diversity step", lambda path: diversity_figure(section, path)),
    )
    for kind, title, draw in figures:
        path = folder / f"{name}-{kind}.svg"
        if draw(path):
            text += [f"![{_heading(section)}: {title}]({folder.name}/{path.name})", ""]
            written.append(path)
    if claims := verdicts(found):
        text += ["#### What the paper claims, and what was found", "", *claims, ""]
    for table in TABLES:
        text += accuracy_table(section, table)
    text += other_lines(section)
    text += _comparisons(found)
    return text, written


def _comparisons(found: Sequence[Answer]) -> list[str]:
    return ["#### Comparisons", "", *gap_table(found), ""] if found else []


def _heading(section: Section) -> str:
    setting = section.setting
    more = f", {' '.join(setting.settings)}" if setting.settings else ""
    return f"{setting.data}, `{setting.protocol}`{more}"


def _description(section: Section) -> list[str]:
    """Everything that must be known of the numbers of a section."""
    setting, records = section.setting, section.records
    tests = " or ".join(f"{n:,}" for n in sorted({r.test_images for r in records}))
    chance = " or ".join(f"{100 * c:.3g} %" for c in sorted({r.chance for r in records}))
    made = {str(m["hardware"]) for line in section.lines.values() for m in line.made.values()}
    hardware = sorted({r.hardware for r in records} | made)
    threads = sorted({int(r.config.get("threads", 0)) for r in records})
    threads_text = " or ".join([*map(str, threads[:-1]), counted(threads[-1], "thread")])
    precision = setting.evaluated
    if setting.distilled not in ("", precision):
        precision = f"distilled in {setting.distilled}, networks in {precision}"
    notes = list(dict.fromkeys(note for r in records for note in r.config.get("notes", [])))
    best = (
        "; **the best of several tests on the test images**" if "-best" in setting.protocol else ""
    )
    return [
        f"* Recipe `{setting.protocol}`, {setting.epochs} epochs{best}: {_rates(records)}.",
        f"* {tests} test images, chance {chance}; ConvNets of width {setting.width}; {precision}.",
        f"* Real data: {'; '.join(notes) or 'as published'} (`{setting.fingerprint[:15]}...`).",
        f"* Made on: {'; '.join(hardware)}; {threads_text} per cell.",
    ]


def _rates(records: Sequence[Record]) -> str:
    """Learning rate and batch of each network."""
    found: dict[str, list[str]] = {}
    for record in records:
        text = f"learning rate {record.config['lr']:g}, batches of {record.config['batch']}"
        names = found.setdefault(text, [])
        if title_of(record.network) not in names:
            names.append(title_of(record.network))
    if len(found) == 1:
        return f"{next(iter(found))} for all networks"
    return "; ".join(f"{text} for {', '.join(names)}" for text, names in found.items())


def _file_name(section: Section) -> str:
    """Of a section's figures: readable, and its own."""
    setting = section.setting
    plain = re.sub(r"[^a-z0-9.]+", "-", f"{setting.data}-{setting.protocol}".lower()).strip("-")
    digest = hashlib.sha256(repr(setting).encode()).hexdigest()[:6]
    return f"{plain}-{digest}"
