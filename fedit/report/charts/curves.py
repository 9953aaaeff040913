"""Curves: one chart, or a panel for each of several."""

from collections.abc import Sequence

from fedit.report.charts import theme
from fedit.report.charts.canvas import LINE, TEXT, Canvas, path, runs
from fedit.report.charts.scale import Scale, finite, heights, places, scale, text_width
from fedit.report.charts.spec import Axis, Lines, Panels, Reference, Series
from fedit.report.numbers import number_text

MOST_MARKERS = 16
"""About as many points of a line carry a marker; half as many in a small chart."""

_GAP = 22.0
_PANEL = 96.0


def draw_lines(canvas: Canvas, chart: Lines) -> float:
    """Draw curves; return how far down they go."""
    y = canvas.legend(chart.series, chart.references, 0)
    vertical = scale(chart.y, heights(chart.series, chart.references), 5)
    horizontal = scale(chart.x, places(chart.series), 6 if canvas.width > 500 else 4, tight=True)
    canvas.text(0, y + LINE, chart.y.title, role="muted", room=canvas.width)
    top, height = y + LINE + 14, 240 if canvas.width > 500 else 200
    left = _left(vertical)
    placed = horizontal.placed(left, canvas.width - 10)
    vertical = vertical.placed(top + height, top)
    _plot(canvas, chart.x, chart.y, placed, vertical, chart.series, chart.references)
    return canvas.axis_below(placed, top + height, chart.x.title)


def draw_panels(canvas: Canvas, chart: Panels) -> float:
    """Draw small charts in rows; return how far down they go."""
    y = canvas.legend(chart.panels[0].series, chart.panels[0].references, 0) if chart.panels else 0.0
    canvas.text(0, y + LINE, chart.y.title, role="muted", room=canvas.width)
    y += LINE + 10
    vertical = scale(chart.y, [v for p in chart.panels for v in heights(p.series, p.references)], 3)
    horizontal = scale(chart.x, [x for p in chart.panels for x in places(p.series)], 2, tight=True)
    columns = max(1, min(len(chart.panels), 4 if canvas.width > 500 else 2))
    left = _left(vertical)
    wide = (canvas.width - left - 10 - _GAP * (columns - 1)) / columns
    row = LINE + 4 + _PANEL + 1.9 * LINE
    for index, panel in enumerate(chart.panels):
        x, top = left + index % columns * (wide + _GAP), y + index // columns * row + LINE + 4
        canvas.text(x, top - 8, panel.title, bold=True, room=wide + _GAP - 8)
        placed = horizontal.placed(x, x + wide)
        _plot(
            canvas, chart.x, chart.y, placed, vertical.placed(top + _PANEL, top), panel.series, panel.references,
            labels=index % columns == 0, markers=MOST_MARKERS // 2,
        )  # fmt: skip
        _ends(canvas, placed, top + _PANEL + LINE - 1)
    y += -(-len(chart.panels) // columns) * row
    canvas.text((left + canvas.width) / 2, y, chart.x.title, role="muted", anchor="middle")
    return y + 8


def _ends(canvas: Canvas, horizontal: Scale, y: float) -> None:
    """Write the ends of a small chart's axis."""
    if len(horizontal.ticks) > 1:
        for index, anchor in ((0, "start"), (-1, "end")):
            x = horizontal(horizontal.ticks[index])
            canvas.text(x, y, horizontal.labels[index], role="muted", anchor=anchor)


def _plot(
    canvas: Canvas,
    x_axis: Axis,
    y_axis: Axis,
    horizontal: Scale,
    vertical: Scale,
    series: Sequence[Series],
    references: Sequence[Reference],
    *,
    labels: bool = True,
    markers: int = MOST_MARKERS,
) -> None:
    """Draw a frame with its curves."""
    for tick, label in zip(vertical.ticks, vertical.labels, strict=True):
        y = vertical(tick)
        canvas.rule(horizontal.start, y, horizontal.end, y, "grid")
        if labels:
            canvas.text(horizontal.start - 8, y + 4, label, role="muted", anchor="end")
    for position, one in enumerate(series):
        _band(canvas, one, position, horizontal, vertical)
    for position, reference in enumerate(references):
        if finite(reference.value):
            y = vertical(reference.value)
            dash = theme.REFERENCE_DASHES[position % len(theme.REFERENCE_DASHES)]
            canvas.rule(horizontal.start, y, horizontal.end, y, "muted", 1.6, dash)
    # What is emphasised is drawn last, above the others.
    for position, one in sorted(enumerate(series), key=lambda item: item[1].emphasis):
        _curve(canvas, one, position, horizontal, vertical, x_axis, y_axis, markers)


def _curve(
    canvas: Canvas,
    series: Series,
    position: int,
    horizontal: Scale,
    vertical: Scale,
    x_axis: Axis,
    y_axis: Axis,
    markers: int,
) -> None:
    points = [(horizontal(x), vertical(y)) if finite(y) else None for x, y in series.points]
    for run in runs(points):
        if len(run) > 1:
            canvas.line(run, position, series.emphasis)
    shown = [(place, value) for place, value in zip(points, series.points, strict=True) if place is not None]
    every = max(1, len(shown) // markers)
    marks = []
    for index, (place, (x, y)) in enumerate(shown):
        if index % every == 0 or index == len(shown) - 1:
            at = f"{number_text(x, x_axis.form)} {x_axis.title}"
            marks.append((*place, f"{series.name}: {number_text(y, y_axis.form)} at {at}"))
    canvas.marks(marks, theme.marker(position), theme.series_role(position))


def _band(canvas: Canvas, series: Series, position: int, horizontal: Scale, vertical: Scale) -> None:
    edges = [
        ((horizontal(x), vertical(low)), (horizontal(x), vertical(high)))
        for x, low, high in series.band
        if finite(low) and finite(high)
    ]
    if len(edges) > 1:
        outline = [low for low, _ in edges] + [high for _, high in reversed(edges)]
        colour = canvas.paint(theme.series_role(position))
        canvas.shape("path", d=path(outline) + "Z", fill=colour, fill_opacity="0.18")


def _left(vertical: Scale) -> float:
    """Return the room that the labels of a vertical axis take."""
    return max((text_width(label, TEXT) for label in vertical.labels), default=0.0) + 10
