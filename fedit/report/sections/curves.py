"""How losses fell: overall, per category, and over clients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import TypeVar

from fedit.report.charts.spec import Axis, Lines, Panel, Panels, Reference, Series
from fedit.report.document import Block, Column, Figure, Note, Row, Section, Table
from fedit.report.numbers import natural_order, number_text

MOST_POINTS = 200
"""Points of a curve that are drawn; of longer curves evenly spaced ones, and the last. A small chart has 40."""

MOST_CURVES = 8
"""Arms whose curves are drawn; more could not be told apart."""

MOST_PANELS = 12
"""Categories with a chart of their own; the others are in the table."""

MOST_CLIENT_CURVES = 6
"""Clients that each have a curve; of more, the middle and the extent are drawn."""

T = TypeVar("T")

Points = tuple[tuple[float, float | None], ...]
"""(x, y), where y may be missing."""


@dataclass(frozen=True, slots=True)
class ArmCurve:
    """An arm's held-out loss over its training tokens.

    overall: of all rows; per_category: of those of each category; band: (tokens, low, high) around ``overall``.
    """

    arm: str
    overall: Points
    per_category: Mapping[str, Points] = field(default_factory=dict)
    band: tuple[tuple[float, float | None, float | None], ...] = ()
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class ClientLosses:
    """Held-out losses of the clients after a round; of very many clients only the mean and the worst tenth."""

    round: int
    losses: Mapping[str, float]
    mean: float | None
    worst_decile: float | None


def curves_section(
    arms: Sequence[ArmCurve],
    *,
    base: float | None = None,
    base_per_category: Mapping[str, float | None] | None = None,
    clients: Sequence[ClientLosses] = (),
    measured: bool = False,
) -> Section:
    """Return the learning curves of all arms.

    base, base_per_category: losses of the base model, drawn as lines to compare with.
    clients:  losses of the clients over the rounds of the federation.
    measured: these are of each client's own held-out rows; else expected under its mix of categories.
    """
    tokens, loss = Axis("training tokens", "compact", zero=True), Axis("held-out loss (nats per token)", ".3f")
    references = () if base is None else (Reference("base model", base),)
    shown = sorted(arms, key=lambda arm: not arm.emphasis)[:MOST_CURVES]
    series = tuple(
        Series(arm.arm, thinned(arm.overall), thinned(arm.band), arm.emphasis and len(shown) > 1) for arm in shown
    )
    blocks: list[Block] = []
    if any(_known(arm.overall) for arm in shown):
        said = "; ".join(f"{arm.arm} {_course(arm.overall)}" for arm in shown)
        caption = "Every arm is measured on the same held-out instructions. Lower is better."
        caption += f" {len(shown)} of {len(arms)} arms are drawn." if len(arms) > len(shown) else ""
        chart = Lines(tokens, loss, series, references)
        blocks.append(Figure("curves", "Held-out loss", chart, f"Held-out loss over tokens: {said}.", caption))
    else:
        blocks.append(Note("No evaluation gave a finite loss, so there is no curve to draw.", "warning"))
    if names := _categories(arms):
        blocks.append(_category_panels(shown, names, base_per_category or {}, tokens, loss))
        blocks.append(_category_table(arms, names, base_per_category or {}))
    if clients:
        blocks.append(_client_curves(clients, measured))
    return Section("Learning curves", "curves", tuple(blocks))


def thinned(points: tuple[T, ...], most: int = MOST_POINTS) -> tuple[T, ...]:
    """Return at most so many evenly spaced points, the last among them."""
    if len(points) <= most:
        return points
    every = -(-len(points) // (most - 1))
    kept = points[::every]
    return kept if kept[-1] == points[-1] else (*kept, points[-1])


def _category_panels(
    arms: Sequence[ArmCurve], names: Sequence[str], base: Mapping[str, float | None], x: Axis, y: Axis
) -> Figure:
    panels = tuple(
        Panel(
            name,
            tuple(
                Series(arm.arm, thinned(arm.per_category.get(name, ()), 40), (), arm.emphasis and len(arms) > 1)
                for arm in arms
            ),
            tuple(Reference("base model", value) for value in [base.get(name)] if value is not None),
        )
        for name in names[:MOST_PANELS]
    )
    cut = f" The first {MOST_PANELS} of {len(names)} categories." if len(names) > MOST_PANELS else ""
    lead = next((arm for arm in arms if arm.emphasis), arms[0])
    said = "; ".join(f"{name} {_course(lead.per_category.get(name, ()))}" for name in names[:MOST_PANELS])
    return Figure(
        "curves-categories",
        "Held-out loss per category",
        Panels(x, y, panels),
        f"Loss of {lead.arm} per category: {said}.",
        f"All panels have the same scales.{cut}",
    )


def _category_table(arms: Sequence[ArmCurve], names: Sequence[str], base: Mapping[str, float | None]) -> Table:
    columns = [Column("category"), Column("base model", "number", ".3f", "lowest")]
    columns += [Column(arm.arm, "number", ".3f", "lowest") for arm in arms]
    rows = tuple(
        Row((name, base.get(name), *(_last(arm.per_category.get(name, ())) for arm in arms))) for name in names
    )
    return Table("Held-out loss per category at the end", tuple(columns), rows, folded=True)


def _client_curves(clients: Sequence[ClientLosses], measured: bool) -> Figure:
    names = sorted({name for one in clients for name in one.losses}, key=natural_order)
    kind = "measured on its own held-out rows" if measured else "expected under its own mix of categories"
    caption = f"The loss of a client is the one {kind}."
    if not names:
        series = [
            Series("mean of the clients", tuple((one.round, one.mean) for one in clients), emphasis=True),
            Series("worst tenth of the clients", tuple((one.round, one.worst_decile) for one in clients)),
        ]
    elif len(names) <= MOST_CLIENT_CURVES:
        series = [Series(name, tuple((one.round, one.losses.get(name)) for one in clients)) for name in names]
    else:
        spread = [(one.round, *_spread(list(one.losses.values()))) for one in clients]
        series = [
            Series(
                "median client",
                tuple((round, middle) for round, _, middle, _ in spread),
                tuple((round, low, high) for round, low, _, high in spread),
                emphasis=True,
            ),
            Series("worst tenth of the clients", tuple((one.round, one.worst_decile) for one in clients)),
        ]
        caption += " The band holds eight of ten clients."
    said = "; ".join(f"{one.name} {_course(one.points)}" for one in series)
    shown = tuple(Series(s.name, thinned(s.points), thinned(s.band), s.emphasis) for s in series)
    chart = Lines(Axis("round", ",d", whole=True), Axis("held-out loss (nats per token)", ".3f"), shown)
    return Figure("curves-clients", "Held-out loss of the clients", chart, f"By round: {said}.", caption)


def _spread(losses: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Return the first, fifth and ninth tenth."""
    if len(losses) < 2:
        only = losses[0] if losses else None
        return only, only, only
    tenths = quantiles(losses, n=10, method="inclusive")
    return tenths[0], tenths[4], tenths[8]


def _categories(arms: Sequence[ArmCurve]) -> list[str]:
    return sorted({name for arm in arms for name in arm.per_category}, key=natural_order)


def _known(points: Points) -> list[float]:
    return [y for _, y in points if y is not None and math.isfinite(y)]


def _last(points: Points) -> float | None:
    return points[-1][1] if points else None


def _course(points: Points) -> str:
    known = _known(points)
    if not known:
        return "unknown"
    return f"from {number_text(known[0], '.3f')} to {number_text(known[-1], '.3f')}"
