"""Upright bars in layers, and dots with whiskers."""

from collections.abc import Sequence

from fedit.report.charts import theme
from fedit.report.charts.canvas import LINE, TEXT, Canvas
from fedit.report.charts.scale import Scale, finite, scale, shortened, text_width
from fedit.report.charts.spec import Bars, Interval, Intervals
from fedit.report.markup import element, join
from fedit.report.numbers import estimate_text, number_text

_HATCHES = ("", "M-1 1L1-1M0 6L6 0M5 7L7 5", "M3 0V6", "M-1 5L1 7M0 0L6 6M5-1L7 1", "M0 3H6", "M3 0V6M0 3H6")
"""Lines in a tile of six pixels, one pattern a layer: colour is never alone."""

_ROW = 26.0


def draw_bars(canvas: Canvas, chart: Bars) -> float:
    """Draw upright bars; return how far down they go."""
    y = 0.0
    for layer in range(len(chart.stacks)):
        _define_hatch(canvas, layer)
    if len(chart.stacks) > 1:
        y = _samples(canvas, [stack.name for stack in chart.stacks])
    values = [[v if finite(v) else 0.0 for v in stack.values] for stack in chart.stacks]
    sums = [sum(layers) for layers in zip(*values, strict=True)]
    vertical = scale(chart.y, [0.0, *sums], 4)
    canvas.text(0, y + LINE, chart.y.title, role="muted", room=canvas.width)
    top, bottom = y + LINE + 14, y + LINE + 194
    left = max(text_width(label, TEXT) for label in vertical.labels) + 10
    vertical = vertical.placed(bottom, top)
    for tick, label in zip(vertical.ticks, vertical.labels, strict=True):
        canvas.rule(left, vertical(tick), canvas.width, vertical(tick), "grid")
        canvas.text(left - 8, vertical(tick) + 4, label, role="muted", anchor="end")
    step = (canvas.width - left) / max(len(chart.labels), 1)
    thick = min(max(0.7 * step, 0.5), 56.0)
    for index, label in enumerate(chart.labels):
        x, below = left + (index + 0.5) * step - thick / 2, 0.0
        for layer, stack in enumerate(chart.stacks):
            value = values[layer][index]
            tip = f"{chart.x} {label}, {stack.name}: {number_text(stack.values[index], chart.y.form)}"
            _bar(canvas, layer, x, thick, vertical(below), vertical(below + value), tip)
            below += value
    _labels(canvas, chart.labels, left, step, bottom + LINE)
    canvas.text((left + canvas.width) / 2, bottom + 2.2 * LINE, chart.x, role="muted", anchor="middle")
    return bottom + 2.6 * LINE


def draw_intervals(canvas: Canvas, chart: Intervals) -> float:
    """Draw dots with whiskers; return how far down they go."""
    estimates = [row.estimate for row in chart.rows]
    texts = [number_text(estimate.value, chart.x.form) for estimate in estimates]
    left = min(_widest([row.name for row in chart.rows]), 0.34 * canvas.width) + 12
    right = _widest(texts) + 12
    ends = [end for e in estimates for end in (e.value, e.low, e.high)]
    horizontal = scale(chart.x, [*ends, *(r.value for r in chart.references)], 5 if canvas.width > 500 else 3)
    horizontal = horizontal.placed(left + 8, canvas.width - right - 8)
    y = canvas.legend((), chart.references, 0)
    bottom = y + _ROW * len(chart.rows) + 6
    for tick in horizontal.ticks:
        canvas.rule(horizontal(tick), y, horizontal(tick), bottom, "grid")
    for position, reference in enumerate(chart.references):
        if finite(reference.value):
            x, dash = horizontal(reference.value), theme.REFERENCE_DASHES[position % len(theme.REFERENCE_DASHES)]
            canvas.rule(x, y, x, bottom, "muted", 1.6, dash)
    for index, (row, text) in enumerate(zip(chart.rows, texts, strict=True)):
        middle = y + (index + 0.5) * _ROW + 2
        canvas.text(0, middle + 4, row.name, bold=row.emphasis, room=left - 8)
        _whisker(canvas, row, horizontal, middle, f"{row.name}: {estimate_text(row.estimate, chart.x.form)}")
        canvas.text(canvas.width, middle + 4, text, anchor="end", bold=row.emphasis)
    return canvas.axis_below(horizontal, bottom, chart.x.title)


def _whisker(canvas: Canvas, row: Interval, horizontal: Scale, y: float, tip: str) -> None:
    role, strong = ("series-1", 2.6) if row.emphasis else ("muted", 1.8)
    low, high = row.estimate.low, row.estimate.high
    if low is not None and high is not None and row.estimate.has_interval:
        canvas.rule(horizontal(low), y, horizontal(high), y, role, strong)
        for end in (low, high):
            canvas.rule(horizontal(end), y - 4, horizontal(end), y + 4, role, strong)
    if finite(row.estimate.value):
        shape, size = ("diamond", 5.0) if row.emphasis else ("circle", 4.2)
        canvas.marks([(horizontal(row.estimate.value), y, tip)], shape, role, size)


def _bar(canvas: Canvas, layer: int, x: float, thick: float, bottom: float, top: float, tip: str) -> None:
    if bottom - top > 0:
        fill = f"url(#{_hatch(canvas, layer)})"
        canvas.shape("rect", tip, x=x, y=top, width=thick, height=bottom - top, fill=fill)


def _define_hatch(canvas: Canvas, layer: int) -> None:
    colour, lines = canvas.paint(theme.series_role(layer)), _HATCHES[layer % len(_HATCHES)]
    tile = element("rect", width=6, height=6, fill=colour)
    if lines:
        tile = join(tile, element("path", d=lines, stroke=canvas.paint("surface"), stroke_width=1.5))
    size = {"width": 6, "height": 6}
    canvas.add(element("pattern", tile, id=_hatch(canvas, layer), patternUnits="userSpaceOnUse", **size))


def _hatch(canvas: Canvas, layer: int) -> str:
    return f"{canvas.key}-hatch-{layer}"


def _samples(canvas: Canvas, names: Sequence[str]) -> float:
    """Draw what each layer looks like; return where that ends."""
    x, y = 0.0, 0.0
    for layer, name in enumerate(names):
        wide = 24 + text_width(shortened(name, 260, TEXT), TEXT) + 18
        if x > 0 and x + wide - 18 > canvas.width:
            x, y = 0.0, y + LINE + 2
        canvas.shape("rect", x=x, y=y + 2, width=16, height=13, fill=f"url(#{_hatch(canvas, layer)})")
        canvas.text(x + 24, y + LINE / 2 + 4, name, room=260)
        x += wide
    return y + LINE + 4


def _labels(canvas: Canvas, labels: Sequence[str], left: float, step: float, y: float) -> None:
    """Write the labels that have room: all, or every second, every fifth and so on."""
    wide = min(max((text_width(label, TEXT) for label in labels), default=0.0), 90.0) + 8
    every = next((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n * step >= wide), len(labels) or 1)
    for index in range(0, len(labels), every):
        canvas.text(left + (index + 0.5) * step, y, labels[index], role="muted", anchor="middle", room=wide)


def _widest(texts: Sequence[str]) -> float:
    return max((text_width(text, TEXT) for text in texts), default=0.0) * 1.06
