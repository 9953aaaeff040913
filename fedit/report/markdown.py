"""A report as Markdown: for papers, wikis and pull requests. Text of models and data stays text."""

import re
from collections.abc import Sequence

from fedit.report.document import (
    Block,
    Code,
    Document,
    Fact,
    Facts,
    Figure,
    Headline,
    Note,
    ShownAnswer,
    SideBySide,
    Table,
    Text,
    cell_text,
)
from fedit.report.markup import visible
from fedit.report.numbers import number_text

_ANYWHERE = re.compile(
    r"[\\`*\[\]|~$]"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # within a word it starts nothing
    r"|:(?=//)|(?<=www)\.",  # nothing becomes a link
    re.IGNORECASE,
)
_AT_START = re.compile(r"^(?:(\d{1,9})([.)])(?=\s|$)|([#=]|[+\-](?!\d)))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = {True: "✓ right", False: "✗ wrong"}


def markdown(document: Document) -> str:
    """Return the whole report; its figures are those that `fedit.report.write` puts into ``figures/``."""
    lines = [f"# {escaped(document.title)}", "", escaped(document.subtitle), ""]
    for section in document.sections:
        lines += [f"## {escaped(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def escaped(text: str) -> str:
    """Return any text on one line so that Markdown shows it as it is: no markup, no link, no end of a cell."""
    line = " ".join(visible(text).split())
    line = _ANYWHERE.sub(r"\\\g<0>", line)
    line = _AT_START.sub(lambda match: f"{match[1] or ''}\\{match[2] or match[3]}", line)
    return "".join(_ENTITIES.get(char, char) for char in line)


def fenced(text: str, language: str = "text") -> list[str]:
    """Return any text as a code block, which no run of backticks in it ends."""
    shown = visible(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return [f"{fence}{language}", *shown.split("\n"), fence]


def _block(block: Block) -> list[str]:
    match block:
        case Text():
            return [escaped(block.text)]
        case Code():
            return fenced(block.text, "bash")
        case Note():
            return [f"> **{'Warning' if block.kind == 'warning' else 'Note'}:** {escaped(block.text)}"]
        case Headline():
            return [f"**{escaped(block.sentence)}**", "", *_facts(block.numbers)]
        case Facts():
            return [*([f"**{escaped(block.folded)}**", ""] if block.folded else []), *_facts(block.facts)]
        case Table():
            return [f"**{escaped(block.caption)}**", "", *_table(block)]
        case Figure():
            picture = f"![{escaped(block.alt)}](figures/{block.name}.svg)"
            return [picture, "", f"*{escaped(block.title)}.* {escaped(block.caption)}".rstrip()]
        case SideBySide():
            return _side_by_side(block)


def _facts(facts: Sequence[Fact]) -> list[str]:
    rows = [
        f"- {escaped(fact.name)}: {escaped(fact.value)}{f' ({escaped(fact.note)})' if fact.note else ''}"
        for fact in facts
    ]
    return rows or ["none"]


def _table(table: Table) -> list[str]:
    best = [table.best_rows(column) for column in range(len(table.columns))]
    lines = [
        _line([escaped(column.title) for column in table.columns]),
        _line(["---" if column.kind == "text" else "---:" for column in table.columns]),
    ]
    for index, row in enumerate(table.rows):
        cells = []
        for number, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            text = escaped(cell_text(cell, column))
            strong = index in best[number] or (row.emphasis and number == 0)
            cells.append(f"**{text}**" if strong and text else text)
        lines.append(_line(cells))
    return lines


def _side_by_side(block: SideBySide) -> list[str]:
    lines = [f"**{escaped(block.category)}**", ""] if block.category else []
    lines += fenced(block.question)
    if block.context:
        lines += ["", "Context:", "", *fenced(block.context)]
    if block.expected:
        lines += ["", "Expected:", "", *fenced(block.expected)]
    for answer in block.answers:
        lines += ["", f"{_answer_title(answer)}:", "", *fenced(answer.text)]
    return lines


def _answer_title(answer: ShownAnswer) -> str:
    said = [] if answer.right is None else [_MARKS[answer.right]]
    said += [] if answer.score is None else [f"score {number_text(answer.score)}"]
    said += ["same as base"] if answer.against == "same" else []
    marks = f" ({', '.join(said)})" if said else ""
    return f"**{escaped(answer.arm)}**{marks}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
