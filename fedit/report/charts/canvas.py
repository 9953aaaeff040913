"""A sheet to draw on: shapes and texts with colours by role, collected as SVG."""

from collections.abc import Sequence

from fedit.report.charts import theme
from fedit.report.charts.scale import Scale, shortened, text_width
from fedit.report.charts.spec import Reference, Series
from fedit.report.charts.theme import Paint
from fedit.report.markup import Markup, element, join, number

TEXT = 12.0
"""Size of all text, in pixels at the width that is drawn for."""

LINE = 17.0
"""Height of a line of text."""

_RADIUS = 3.4

_PLUS = ((-0.4, -1.25), (0.4, -1.25), (0.4, -0.4), (1.25, -0.4), (1.25, 0.4), (0.4, 0.4))
_OUTLINES: dict[str, Sequence[tuple[float, float]]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
    "down": ((0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "plus": (*_PLUS, *((-dx, -dy) for dx, dy in _PLUS)),
    "cross": tuple((0.7071 * (dx - dy), 0.7071 * (dx + dy)) for dx, dy in (*_PLUS, *((-x, -y) for x, y in _PLUS))),
}
"""Corners of markers of radius 1."""


class Canvas:
    """Elements of a drawing ``width`` pixels wide, and how far down it goes.

    key:  makes the names of what is defined in this drawing unique within a page.
    tips: whether a pointer that rests on a value is shown it; fingers do not rest.
    """

    def __init__(self, width: float, paint: Paint, key: str, tips: bool) -> None:
        self.width = width
        self.paint = paint
        self.key = key
        self.tips = tips
        self._parts: list[Markup] = []

    @property
    def content(self) -> Markup:
        """All that was drawn."""
        return join(*self._parts)

    def add(self, part: Markup) -> None:
        """Draw an element."""
        self._parts.append(part)

    def shape(self, name: str, tip: str | None = None, /, **attributes: str | float | None) -> None:
        """Draw a shape; ``tip`` is shown where a pointer rests on it."""
        self.add(element(name, *self._title(tip), **attributes))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        role: str = "ink",
        anchor: str = "start",
        bold: bool = False,
        room: float | None = None,
        turn: float | None = None,
    ) -> None:
        """Write on the baseline ``y``; what does not fit in ``room`` is cut, and can be read in a tip."""
        shown = text if room is None else shortened(text, room, TEXT)
        self.add(
            element(
                "text",
                shown,
                *self._title(text if shown != text else None),
                x=x,
                y=y,
                fill=self.paint(role),
                text_anchor=None if anchor == "start" else anchor,
                font_weight="600" if bold else None,
                transform=f"rotate({number(turn)} {number(x)} {number(y)})" if turn else None,
            )
        )

    def rule(
        self, x1: float, y1: float, x2: float, y2: float, role: str, width: float = 1, dash: str = ""
    ) -> None:
        """Draw a straight line."""
        ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        self.shape("line", **ends, stroke=self.paint(role), stroke_width=width, stroke_dasharray=dash or None)

    def marks(
        self, places: Sequence[tuple[float, float, str | None]], shape: str, role: str, size: float = _RADIUS
    ) -> None:
        """Draw points, each (x, y, tip); an unseen edge makes them easier to hit than they are large."""
        points = [element("path", *self._title(tip), d=_outline(shape, x, y, size)) for x, y, tip in places]
        self.add(element("g", *points, fill=self.paint(role), stroke="transparent", stroke_width=10))

    def line(self, points: Sequence[tuple[float, float]], position: int, emphasis: bool) -> None:
        """Draw the line of the series at ``position``."""
        self.shape(
            "path",
            d=path(points),
            fill="none",
            stroke=self.paint(theme.series_role(position)),
            stroke_width=3 if emphasis else 1.8,
            stroke_dasharray=theme.dash(position),
            stroke_linejoin="round",
            stroke_linecap="round",
        )

    def legend(self, series: Sequence[Series], references: Sequence[Reference], y: float) -> float:
        """Draw samples and names of series and references from ``y`` on; return where they end."""
        entries = [(s.name, position, s.emphasis) for position, s in enumerate(series)]
        entries += [(r.name, -1 - position, False) for position, r in enumerate(references)]
        if len(entries) < 2 and not references:
            return y  # the title says what a single line is
        x = 0.0
        for name, position, emphasis in entries:
            label = shortened(name, min(260.0, self.width - 40), TEXT)
            wide = 32 + text_width(label, TEXT) + 18
            if x > 0 and x + wide - 18 > self.width:
                x, y = 0.0, y + LINE + 2
            middle = y + LINE / 2
            if position < 0:
                dashes = theme.REFERENCE_DASHES[(-1 - position) % len(theme.REFERENCE_DASHES)]
                self.rule(x, middle, x + 25, middle, "muted", 1.6, dashes)
            else:
                self.line([(x, middle), (x + 25, middle)], position, emphasis)
                self.marks([(x + 12.5, middle, None)], theme.marker(position), theme.series_role(position))
            self.text(x + 32, middle + 4, name, bold=emphasis, room=260.0)
            x += wide
        return y + LINE + 4 if entries else y

    def axis_below(self, scale: Scale, y: float, title: str, top: float | None = None) -> float:
        """Draw a horizontal axis under ``y``, with grid lines up to ``top``; return where it ends."""
        before = -1e9
        for tick, label in zip(scale.ticks, scale.labels, strict=True):
            x, half = scale(tick), text_width(label, TEXT) / 2
            if top is not None:
                self.rule(x, top, x, y, "grid")
            at = min(max(x, half), self.width - half)
            if at - half < before + 6:
                continue  # no room between the labels
            before = at + half
            self.text(at, y + LINE, label, role="muted", anchor="middle")
        self.text((scale.start + scale.end) / 2, y + 2.2 * LINE, title, role="muted", anchor="middle")
        return y + 2.6 * LINE

    def _title(self, tip: str | None) -> tuple[Markup, ...]:
        return () if tip is None or not self.tips else (element("title", tip),)


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return the outline through ``points``."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Return the stretches of points between the gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            found.append([])
        else:
            found[-1].append(point)
    return [run for run in found if run]


def _outline(shape: str, x: float, y: float, r: float) -> str:
    """Return the outline of a marker; all have about the same area."""
    if shape == "circle":
        arc = f"a{number(r)} {number(r)} 0 1 0 "
        return f"M{number(x - r)} {number(y)}{arc}{number(2 * r)} 0{arc}{number(-2 * r)} 0Z"
    return path([(x + dx * r, y + dy * r) for dx, dy in _OUTLINES[shape]]) + "Z"
