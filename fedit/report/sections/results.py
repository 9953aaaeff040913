"""What came out: arms side by side in numbers, in a judge's eyes and in their own words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedit.report.charts.spec import Axis, Interval, Intervals, Reference
from fedit.report.difference import compared
from fedit.report.document import (
    Block,
    Cell,
    Column,
    Fact,
    Facts,
    Figure,
    Note,
    Row,
    Section,
    SideBySide,
    Table,
    Text,
)
from fedit.report.numbers import Estimate, estimate_text


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of a comparison: its key in `ComparisonRow.metrics`, title, form, and which numbers are better."""

    name: str
    title: str
    form: str
    better: Literal["lowest", "highest"] | None = None


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """An arm's metrics by name; those that it lacks are left blank."""

    arm: str
    metrics: Mapping[str, Estimate]
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """How an arm's answers did against another's: the win rate counts a tie as half a win."""

    arm: str
    opponent: str
    questions: int
    wins: int
    ties: int
    losses: int
    win_rate: Estimate


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge found.

    judge:  its name, as the report shows it; facts: how it judged, and how far it is to be trusted.
    scores: mean scores of single answers, where the judge gave some.
    warning: what makes its verdicts doubtful; "": nothing.
    """

    judge: str
    pairs: tuple[JudgedPair, ...]
    scores: Mapping[str, Estimate]
    facts: tuple[Fact, ...] = ()
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """An arm's answer; ``right`` where a check graded it, ``score`` where a judge did."""

    text: str
    right: bool | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A question with the answers of all arms, by name."""

    question: str
    answers: Mapping[str, Answered]
    context: str = ""
    expected: str = ""
    category: str = ""


def comparison_section(
    rows: Sequence[ComparisonRow],
    metrics: Sequence[Metric],
    *,
    caption: str = "All arms on the same held-out instructions; in each column the best is bold",
    notes: Sequence[str] = (),
    title: str = "Comparison",
    anchor: str = "comparison",
) -> Section:
    """Return a table of arms and metrics, and a figure for each metric that has intervals."""
    intervals = {
        m.name for m in metrics for row in rows if m.name in row.metrics and row.metrics[m.name].has_interval
    }
    columns = [Column("arm")]
    columns += [
        Column(m.title, "interval" if m.name in intervals else "number", m.form, m.better) for m in metrics
    ]
    table = Table(
        caption,
        tuple(columns),
        tuple(Row((row.arm, *(_cell(row, m) for m in metrics)), row.emphasis) for row in rows),
    )
    figures = [_interval_figure(rows, m, anchor) for m in metrics if m.name in intervals]
    return Section(title, anchor, (table, *map(Text, notes), *figures))


def judge_section(judgement: Judgement) -> Section:
    """Return what a judge found: wins and losses with intervals, scores, and how it judged."""
    blocks: list[Block] = [Text(f"Judged by {judgement.judge}.")]
    if judgement.warning:
        blocks.append(Note(judgement.warning, "warning"))
    if judgement.pairs:
        numbers = [Column(title, "number", ",d") for title in ("questions", "wins", "ties", "losses")]
        columns = (Column("arm"), Column("against"), *numbers, Column("win rate", "interval", ".1%"))
        rows = [
            Row((p.arm, p.opponent, p.questions, p.wins, p.ties, p.losses, p.win_rate)) for p in judgement.pairs
        ]
        named = tuple(Interval(f"{p.arm} against {p.opponent}", p.win_rate) for p in judgement.pairs)
        chart = Intervals(Axis("win rate, ties as half", ".0%"), named, (Reference("as good as each other", 0.5),))
        said = "; ".join(f"{row.name} {estimate_text(row.estimate, '.1%')}" for row in named)
        blocks += [
            Table("Pairs of answers; a tie counts as half a win", columns, tuple(rows)),
            Figure("judge-wins", "Win rates", chart, f"Win rates with their intervals: {said}."),
        ]
    if judgement.scores:
        scores = tuple(Row((arm, score)) for arm, score in judgement.scores.items())
        best = Column("mean score", "interval", ".2f", "highest")
        blocks.append(Table("Mean scores of single answers", (Column("arm"), best), scores))
    if judgement.facts:
        blocks.append(Facts(judgement.facts, folded="How it was judged"))
    return Section("Judge", "judge", tuple(blocks))


def examples_section(examples: Sequence[Example], *, base: str = "base") -> Section:
    """Return questions with the answers of all arms; words that the base's answer lacks are marked."""
    intro = (
        "Held-out instructions with the answers of all arms; a tick is an answer that passed its check. "
        "Words that the base model's answer lacks are marked, unless the two have too little in common."
    )
    shown = [
        SideBySide(
            example.question,
            tuple(
                compared(
                    arm,
                    answer.text,
                    example.answers[base].text if base in example.answers and arm != base else None,
                    answer.right,
                    answer.score,
                )
                for arm, answer in example.answers.items()
            ),
            example.context,
            example.expected,
            example.category,
        )
        for example in examples
    ]
    return Section("Answers side by side", "examples", (Text(intro), *shown))


def plain_name(text: str) -> str:
    """Return a name for files and links from any text: lower-case letters, digits and hyphens."""
    words = re.findall("[a-z0-9]+", text.lower())
    name = "-".join(words)
    return name if name[:1].isalpha() else f"n-{name}" if name else "unnamed"


def _interval_figure(rows: Sequence[ComparisonRow], metric: Metric, anchor: str) -> Figure:
    named = tuple(
        Interval(row.arm, row.metrics[metric.name], row.emphasis) for row in rows if metric.name in row.metrics
    )
    said = "; ".join(f"{row.name} {estimate_text(row.estimate, metric.form)}" for row in named)
    better = {"lowest": "Lower is better.", "highest": "Higher is better.", None: ""}[metric.better]
    return Figure(
        f"{anchor}-{plain_name(metric.name)}",
        f"{metric.title[:1].upper()}{metric.title[1:]} of every arm",
        Intervals(Axis(metric.title, metric.form), named),
        f"{metric.title} with intervals: {said}.",
        f"Dots are measured values, lines their intervals. {better}".strip(),
    )


def _cell(row: ComparisonRow, metric: Metric) -> Cell:
    estimate = row.metrics.get(metric.name)
    if estimate is None:
        return None
    return estimate if estimate.has_interval else estimate.value
