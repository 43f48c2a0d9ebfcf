"""Lines, comparisons and verdicts as Markdown."""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import NamedTuple

from moedd.papertables.compare import Answer, fitted_to
from moedd.papertables.lines import Line, Section
from moedd.papertables.paper import Printed, data_sets, printed
from moedd.papertables.rows import BUDGETS, TABLES, Row, table_rows
from moedd.papertables.stats import Gap, Summary

TITLES = {
    "convnet3": "ConvNet-3",
    "vgg11": "VGG11",
    "resnet18": "ResNet18",
    "alexnet": "AlexNet",
}
SUBJECTS = {
    1: "Table 1: two experts against one",
    2: "Table 2: a hybrid of IDM and RDED",
    3: "Table 3: mixup across experts, ordinary mixup, none",
    4: "Table 4: the diversity step and mixup",
}


def title_of(network: str) -> str:
    """A network's name as the paper prints it."""
    return TITLES.get(network, network)


def accuracy_text(line: Line, network: str) -> str:
    """`51.2 ± 0.4 (3 sets, 15)`: mean and spread, of how many sets and networks."""
    found = line.summary(network)
    if found is None:
        return ""
    failed = line.at_chance(network)
    flag = ""
    if failed:
        flag = ", **at chance**" if failed == found.networks else f", {failed} **at chance**"
    return f"{spread_text(found)} ({_counts(line, found)}{flag})"


def spread_text(found: Summary, decimals: int = 1) -> str:
    """`51.2 ± 0.4`."""
    spread = "" if found.spread is None else f" ± {found.spread:.{decimals}f}"
    return f"{found.mean:.{decimals}f}{spread}"


def dependence_text(line: Line) -> str:
    """`0.363 ± 0.021`, over sets; nothing where there is one expert."""
    return "" if line.dependence is None else spread_text(line.dependence, 3)


def _counts(line: Line, found: Summary) -> str:
    if line.identity.variant == "random":
        return "one draw" if found.sets == 1 else f"{found.sets} draws"
    if line.identity.variant == "full":
        return f"{found.networks} networks"
    return f"{'one set' if found.sets == 1 else f'{found.sets} sets'}, {found.networks}"


def gap_text(gap: Gap) -> str:
    """`+1.2 [0.3, 2.1]`, or `+1.2 (one set)` where there is no interval."""
    if gap.low is None or gap.high is None:
        return f"{points(gap.difference)} (one set)"
    text = f"{points(gap.difference)} [{points(gap.low)}, {points(gap.high)}]"
    return f"**{text}**" if gap.clear else text


def schedule_text(line: Line) -> str:
    """`0.002 (400 steps)`; nothing where nothing is optimised."""
    if not line.operations:
        return ""
    return f"{line.key.fraction:.4g} ({max(line.steps)} steps)"


class Shown(NamedTuple):
    """A line as it is shown: its title, and the paper's line beside it."""

    title: str
    line: Line
    paper: Printed | None = None


def shown_lines(section: Section, table: int) -> list[Shown]:
    """What the section has of a table, at all budgets, in the order of its rows, each line once."""
    budgets = {key.identity.budget for key in section.lines}
    found: dict[int, Shown] = {}
    own = False
    for budget in sorted({*BUDGETS[table], *budgets}):
        for row in table_rows(table, budget) if budget > 1 and budget % 2 == 0 else []:
            for line in section.of(row.identity):
                if not row.convnet or any(n.startswith("convnet") for n in line.networks):
                    found.setdefault(id(line), _shown(section, row, line))
                    # Rows that stand beside others do not begin a table of their own.
                    own = own or row.group in ("paper", "strong")
    return list(found.values()) if own else []


def _shown(section: Section, row: Row, line: Line) -> Shown:
    pair = fitted_to(section, line)
    if pair is None:
        return Shown(line.identity.title, line, row.paper)
    size = f"{pair.identity.ipc}x{pair.identity.experts}"
    return Shown(f"{line.identity.title}, at the arithmetic of {size}", line)


def accuracy_table(section: Section, table: int) -> list[str]:
    """A table beside the paper's; no lines where the section has nothing of it."""
    shown = shown_lines(section, table)
    if not shown:
        return []
    return [f"#### {SUBJECTS[table]}", "", *_accuracies(section, shown, table), ""]


def other_lines(section: Section) -> list[str]:
    """Lines that stand in none of the tables: all cells that were run are shown."""
    known = {id(shown.line) for table in TABLES for shown in shown_lines(section, table)}
    rest = [line for line in section.lines.values() if id(line) not in known]
    if not rest:
        return []
    shown = [Shown(line.identity.title, line) for line in rest]
    return ["#### Other lines", "", *_accuracies(section, shown, 0), ""]


def _accuracies(section: Section, rows: Sequence[Shown], table: int) -> list[str]:
    convnets = [n for n in section.networks if n.startswith("convnet")]
    networks = convnets if table == 4 else section.networks
    beside = table > 0 and section.setting.data in data_sets(table)
    head = ["", "schedule", "matching TFLOP", "training steps"]
    # The diversity step is there to lower it: Table 4 says by how much it did.
    dependence = table == 4
    head += ["dependence"] if dependence else []
    for network in networks:
        head += [title_of(network), "paper"] if beside else [title_of(network)]
    body = []
    for title, line, paper in rows:
        cells = [title, schedule_text(line), _tera(line.operations), _steps(line)]
        cells += [dependence_text(line)] if dependence else []
        for network in networks:
            cells.append(accuracy_text(line, network))
            if beside:
                value = printed(paper, section.setting.data, network)
                cells.append("" if value is None else f"{value:.2f}")
        body.append(cells)
    return markdown_table(head, body)


def _steps(line: Line) -> str:
    """Optimiser steps of the networks."""
    return ", ".join(f"{n:,}" for n in sorted({r.optimizer_steps for r in line.records()}))


def _tera(operations: float) -> str:
    return f"{operations / 1e12:.3g}" if operations else ""


def gap_table(answers: Sequence[Answer]) -> list[str]:
    """All comparisons, with the paper's where it prints both numbers."""
    networks = list(dict.fromkeys(n for answer in answers for n in answer.gaps))
    beside = any(answer.paper for answer in answers)
    head = ["difference in points", "schedules"]
    for network in networks:
        head += [title_of(network), "paper"] if beside else [title_of(network)]
    body = []
    for answer in answers:
        fractions = dict.fromkeys(
            f"{line.key.fraction:.4g}" for line in (answer.a, answer.b) if line.operations
        )
        cells = [answer.question.title, " / ".join(fractions)]
        for network in networks:
            cells.append(gap_text(answer.gaps[network]) if network in answer.gaps else "")
            if beside:
                value = answer.paper.get(network)
                cells.append("" if value is None else f"{value:+.2f}")
        body.append(cells)
    return markdown_table(head, body)


def verdicts(answers: Sequence[Answer]) -> list[str]:
    """What the paper claims, and what was found, in words: one sentence for each claim."""
    said = []
    for answer in answers:
        if answer.question.claim:
            said.append(f"* {answer.question.title}: {_verdict(answer)}.")
    return said


def _verdict(answer: Answer) -> str:
    gaps = list(answer.gaps.values())
    better = sum(g.difference > 0 for g in gaps)
    told = f"{_points(g.difference for g in gaps)} on average, in favour on {better} of {len(gaps)}"
    told += " networks" if len(gaps) > 1 else " network"
    if answer.paper:
        told += f" (paper: {_points(answer.paper.values())})"
    measured = [g for g in gaps if g.low is not None]
    if not measured:
        return told + "; one set on a side, so nothing follows for the method"
    up = sum(g.clear and g.difference > 0 for g in measured)
    down = sum(g.clear and g.difference < 0 for g in measured)
    if not up and not down:
        return told + "; no 95 % interval leaves out zero, so the two cannot be told apart"
    which = f"{up} in favour, {down} against"
    return told + f"; {up + down} of {len(measured)} 95 % intervals leave out zero ({which})"


def points(value: float) -> str:
    """A difference with its sign; what rounds to zero is +0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"


def _points(values: Iterable[float]) -> str:
    return points(mean(list(values)))


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a Markdown table; the first column is text, the others stand right."""
    align = ["---", *["---:"] * (len(head) - 1)]
    rows = [head, align, *body]
    return ["| " + " | ".join(cells) + " |" for cells in rows]
