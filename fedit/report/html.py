"""A report as one HTML page that needs nothing else: no script, font, picture or style from elsewhere.

Its content security policy forbids every request; it is complete without its script.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import accumulate, groupby

from fedit.report.chartdata import chart_table
from fedit.report.charts.svg import NARROW, WIDE, inline_svg
from fedit.report.charts.theme import DARK, FONT, LIGHT, variables
from fedit.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Document,
    Fact,
    Facts,
    Figure,
    Headline,
    Note,
    Piece,
    Section,
    ShownAnswer,
    SideBySide,
    Table,
    Text,
    cell_text,
)
from fedit.report.markup import Markup, element, join
from fedit.report.numbers import Estimate, number_text

MOST_CELLS = 1_500
"""Larger tables of a figure's numbers are left to the JSON twin."""

LONGEST_NAME = 160
"""Characters of a name or of a cell of a table."""

_AGAINST = {
    "": "",
    "same": "same as base",
    "changed": "marked: not in base",
    "rewritten": "",
}


def html(document: Document) -> str:
    """Return the whole page."""
    style, script = _style(), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{document.title} · fedit report"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the report", class_="skip", href="#report"),
        element(
            "header",
            element("h1", document.title, dir="auto"),
            element("p", document.subtitle, class_="subtitle"),
        ),
        _contents(document),
        element("main", *map(_section, document.sections), id="report", tabindex="-1"),
        element("footer", element("p", "Made by fedit from the files of the run. This page loads nothing else.")),
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _contents(document: Document) -> Markup:
    items = [
        element("li", element("a", section.title, href=f"#{section.anchor}")) for section in document.sections
    ]
    return element("nav", element("h2", "Contents"), element("ol", *items), aria_label="Contents")


def _section(section: Section) -> Markup:
    heading = f"{section.anchor}-heading"
    examples = accumulate(isinstance(block, SideBySide) for block in section.blocks)
    blocks = _paired(
        [(block, _block(block, number)) for block, number in zip(section.blocks, examples, strict=True)]
    )
    return element(
        "section", element("h2", section.title, id=heading), *blocks, id=section.anchor, aria_labelledby=heading
    )


def _paired(blocks: Sequence[tuple[Block, Markup]]) -> list[Markup]:
    """Put figures of half the width that follow each other side by side."""
    parts = []
    for half, group in groupby(blocks, key=lambda item: isinstance(item[0], Figure) and item[0].half):
        drawn = [markup for _, markup in group]
        parts += [element("div", *drawn, class_="halves")] if half else drawn
    return parts


def _block(block: Block, number: int) -> Markup:
    """Return a block; ``number`` counts the examples of its section up to it."""
    match block:
        case Text():
            return element("p", block.text)
        case Code():
            return element("pre", element("code", block.text), tabindex="0")
        case Note():
            kind = "Warning" if block.kind == "warning" else "Note"
            return element("p", element("strong", f"{kind}: "), block.text, class_=f"note {block.kind}")
        case Headline():
            tiles = [
                element("div", element("dt", fact.name), element("dd", fact.value), _tile_note(fact))
                for fact in block.numbers
            ]
            return join(element("p", block.sentence, class_="lead"), element("dl", *tiles, class_="tiles"))
        case Facts():
            return _facts(block)
        case Table():
            if block.folded:
                return _folded(block.caption, _table(block, named=False), printed=block.printed)
            return _table(block)
        case Figure():
            return _figure(block)
        case SideBySide():
            return _side_by_side(block, number)


def _facts(block: Facts) -> Markup:
    rows = [
        element(
            "div",
            element("dt", fact.name),
            element("dd", fact.value, element("span", f" · {fact.note}", class_="quiet") if fact.note else ""),
        )
        for fact in block.facts
    ]
    content = element("dl", *rows, class_="facts")
    return _folded(block.folded, content, printed=True) if block.folded else content


def _tile_note(fact: Fact) -> Markup:
    return element("dd", fact.note, class_="quiet") if fact.note else Markup()


def _folded(title: str, content: Markup, *, printed: bool = False) -> Markup:
    return element("details", element("summary", title), content, data_printed=printed)


def _table(table: Table, *, named: bool = True) -> Markup:
    best = [table.best_rows(column) for column in range(len(table.columns))]
    # Within a span, which stays in sight while a wide table is scrolled.
    caption = element("caption", element("span", table.caption), class_=None if named else "unseen")
    head = [
        element("th", column.title, scope="col", class_=None if column.kind == "text" else "number")
        for column in table.columns
    ]
    rows = [
        element(
            "tr",
            *(
                _cell(cell, column, first=number == 0, best=index in best[number])
                for number, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True))
            ),
            class_="emphasis" if row.emphasis else None,
        )
        for index, row in enumerate(table.rows)
    ]
    drawn = element("table", caption, element("thead", element("tr", *head)), element("tbody", *rows))
    return element("div", drawn, class_="scroll", role="region", aria_label=table.caption, tabindex="0")


def _cell(cell: Cell, column: Column, *, first: bool, best: bool) -> Markup:
    if isinstance(cell, Estimate) and cell.has_interval:
        ends = f"{number_text(cell.low, column.form)} to {number_text(cell.high, column.form)}"
        content = join(
            _best(number_text(cell.value, column.form), best), " ", element("span", ends, class_="range")
        )
    else:
        content = _best(_clipped(cell_text(cell, column)), best)
    kind = None if column.kind == "text" else "number"
    if first:
        return element("th", content, scope="row", class_=kind, dir="auto")
    return element("td", content, class_=kind)


def _best(text: str, best: bool) -> Markup:
    if not best:
        return join(text)
    return element("strong", text, element("span", " (best)", class_="unseen"), class_="best")


def _figure(figure: Figure) -> Markup:
    pictures = [
        element(
            "div",
            inline_svg(
                figure.chart,
                title=figure.title,
                description=figure.alt,
                width=width,
                key=f"{figure.name}-{kind}",
                tips=kind != "narrow",
            ),
            class_=kind,
        )
        for kind, width in _widths(figure)
    ]
    numbers = chart_table(figure.chart, f"Numbers: {figure.title}")
    small = len(numbers.rows) * len(numbers.columns) <= MOST_CELLS
    return element(
        "figure",
        element("figcaption", element("strong", f"{figure.title}. "), figure.caption),
        *pictures,
        _folded("Numbers of this figure", _table(numbers, named=False)) if small and numbers.rows else "",
        id=f"figure-{figure.name}",
    )


def _widths(figure: Figure) -> tuple[tuple[str, float], ...]:
    """Return the widths that a figure is drawn in, each under the class that shows it."""
    return (("always", NARROW),) if figure.half else (("wide", WIDE), ("narrow", NARROW))


def _side_by_side(block: SideBySide, number: int) -> Markup:
    parts = [
        element("h3", block.category or f"Example {number}", dir="auto"),
        _quoted("Instruction", block.question),
    ]
    if block.context:
        parts.append(_quoted("Context", block.context))
    if block.expected:
        parts.append(_quoted("Expected", block.expected))
    answers = element("ul", *map(_answer, block.answers), class_="answers")
    return element("article", *parts, answers, class_="example")


def _quoted(title: str, text: str) -> Markup:
    return element(
        "div",
        element("span", title, class_="label"),
        element("p", text, dir="auto", class_="said"),
        class_="quoted",
    )


def _answer(answer: ShownAnswer) -> Markup:
    verdict = Markup()
    if answer.right is not None:
        words, kind = ("✓ right", "good") if answer.right else ("✗ wrong", "bad")
        verdict = element("span", words, class_=f"verdict {kind}")
    score = "" if answer.score is None else element("span", f"score {number_text(answer.score)}", class_="quiet")
    against = _AGAINST[answer.against]
    return element(
        "li",
        element(
            "div",
            element("span", _clipped(answer.arm), class_="arm", dir="auto"),
            verdict,
            score,
            element("span", against, class_="against") if against else "",
            class_="who",
        ),
        element("p", *_pieces(answer.pieces), class_="said", dir="auto"),
        data_arm=_clipped(answer.arm),
    )


def _clipped(name: str) -> str:
    """Return a name as long as a page has room for; the JSON twin has all of it."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _pieces(pieces: Sequence[Piece]) -> list[Markup]:
    if not any(piece.text.strip() for piece in pieces):
        return [element("span", "(empty)", class_="quiet")]
    return [element("mark", piece.text) if piece.new else join(piece.text) for piece in pieces]


def _style() -> str:
    light, dark = variables(LIGHT), variables(DARK)
    return (
        f":root{{{light}--font:{FONT}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{_asset('report.css')}"
    )


@cache
def _asset(name: str) -> str:
    text = files("fedit.report").joinpath("assets", name).read_text(encoding="utf-8")
    assert "</" not in text  # it stands in an element as it is
    return text


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
