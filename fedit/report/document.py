"""A report as data: sections of blocks, without a trace of HTML. `html`, `markdown` and `data` write it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal

from fedit.report.charts.spec import Chart
from fedit.report.numbers import Estimate, estimate_text, number_text

Cell = str | int | float | None | Estimate

_PLAIN_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or code, to be copied as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know, or to be wary of, about what stands around it."""

    text: str
    kind: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Fact:
    """A named value; ``note`` says more about it in few words."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Named values, one a line. Where ``folded`` is a title, they stay closed under it until asked for."""

    facts: tuple[Fact, ...]
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """The result in one sentence, and its few most important numbers."""

    sentence: str
    numbers: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    kind: "text" is aligned to the left, "number" to the right, "interval" holds estimates.
    form: how its numbers are written, see `fedit.report.numbers.number_text`.
    best: which of its numbers to highlight.
    """

    title: str
    kind: Literal["text", "number", "interval"] = "text"
    form: str = ""
    best: Literal["lowest", "highest"] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; its first cell names it."""

    cells: tuple[Cell, ...]
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a caption.

    folded: it stays closed under its caption until asked for, and is not printed unless ``printed``.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    folded: bool = False
    printed: bool = False

    def __post_init__(self) -> None:
        if any(len(row.cells) != len(self.columns) for row in self.rows):
            raise ValueError(f"table '{self.caption}': every row needs {len(self.columns)} cells.")

    def best_rows(self, column: int) -> frozenset[int]:
        """Return the rows with the best number in ``column``; none where all are alike or none is asked for."""
        values = [_value(row.cells[column]) for row in self.rows]
        known = [value for value in values if value is not None]
        if self.columns[column].best is None or len(known) < 2 or min(known) == max(known):
            return frozenset()
        best = min(known) if self.columns[column].best == "lowest" else max(known)
        return frozenset(index for index, value in enumerate(values) if value == best)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with what it says.

    name:    of its files, and unique in a document: lower-case letters, digits and hyphens.
    title:   what is shown; alt: what can be seen in it, in words; caption: how to read it.
    half:    small enough to stand beside another one.
    """

    name: str
    title: str
    chart: Chart
    alt: str
    caption: str = ""
    half: bool = False

    def __post_init__(self) -> None:
        if not _PLAIN_NAME.fullmatch(self.name):
            raise ValueError(f"'{self.name}' is no name of a figure.")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer; ``new`` where the base's answer has other words."""

    text: str
    new: bool = False


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """What an arm answered.

    right:    whether it passed its check; None: there is none. score: of a judge, where there is one.
    against:  how it compares with the base's answer; its parts that differ are marked in ``pieces``.
    """

    arm: str
    pieces: tuple[Piece, ...]
    right: bool | None = None
    score: float | None = None
    against: Literal["", "same", "changed", "rewritten"] = ""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A question and what every arm answered."""

    question: str
    answers: tuple[ShownAnswer, ...]
    context: str = ""
    expected: str = ""
    category: str = ""


Block = Text | Code | Note | Facts | Headline | Table | Figure | SideBySide


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of a report; ``anchor`` names it in links, as a figure's name does."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if not _PLAIN_NAME.fullmatch(self.anchor):
            raise ValueError(f"'{self.anchor}' is no anchor of a section.")


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report. Names of sections and of figures are unique in it."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        for names in ([section.anchor for section in self.sections], [figure.name for figure in self.figures()]):
            if len(set(names)) < len(names):
                raise ValueError(f"a name is used twice: {', '.join(sorted(names))}.")

    def figures(self) -> list[Figure]:
        """Return all figures in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def cell_text(cell: Cell, column: Column) -> str:
    """Return what stands in a cell."""
    match cell:
        case str():
            return cell
        case Estimate():
            return estimate_text(cell, column.form)
        case _:
            return number_text(cell, column.form)


def data(document: Document) -> dict[str, object]:
    """Return the document as values for JSON; blocks and charts name their "type".

    What is no finite number is null.
    """
    content = _plain(document)
    assert isinstance(content, dict)
    return {"format": "fedit-report-1", **content}


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        mine = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **mine}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return value


def _value(cell: Cell) -> float | None:
    value = cell.value if isinstance(cell, Estimate) else cell
    return None if value is None or isinstance(value, str) or not math.isfinite(value) else float(value)
