"""Heat maps: tables of shaded cells, with their numbers where these fit."""

from fedit.report.charts import theme
from fedit.report.charts.canvas import LINE, TEXT, Canvas
from fedit.report.charts.scale import extent, finite, shortened, text_width
from fedit.report.charts.spec import HeatMap
from fedit.report.numbers import number_text

_GAP = 1.5
"""Between cells, so that a row can be followed."""


def draw_heat_map(canvas: Canvas, chart: HeatMap) -> float:
    """Draw a heat map; return how far down it goes."""
    low, high = extent(chart)
    names = [chart.row_title, *chart.rows]
    left = min(max(text_width(name, TEXT) for name in names), 0.28 * canvas.width) + 10
    right = 0.18 * canvas.width if chart.totals else 0.0
    step = (canvas.width - left - right) / max(len(chart.columns), 1)
    tall = 26.0 if len(chart.rows) <= 24 else LINE + 1
    texts = [number_text(value, chart.form) for row in chart.values for value in row if finite(value)]
    numbers = max((text_width(text, TEXT) for text in texts), default=0.0) + 4 <= step
    top = _headings(canvas, chart, _shades(canvas, chart, low, high), left, step)
    canvas.text(0, top - 7, chart.row_title, role="muted", room=left - 8)
    for index, (name, values) in enumerate(zip(chart.rows, chart.values, strict=True)):
        y = top + index * tall
        canvas.text(left - 8, y + tall / 2 + 4, name, anchor="end", room=left - 8)
        for column, value in enumerate(values):
            x = left + column * step
            tip = f"{name}, {chart.columns[column]}: {number_text(value, chart.form)}"
            if not finite(value):
                _empty(canvas, x, y, step, tall)
                continue
            shade = theme.shade(value, low, high)
            box = {"x": x, "y": y, "width": max(step - _GAP, 0.5), "height": tall - _GAP}
            canvas.shape("rect", tip, fill=canvas.paint(f"heat-{shade}"), **box)
            if numbers:
                text, role = number_text(value, chart.form), f"heat-ink-{shade}"
                canvas.text(x + (step - _GAP) / 2, y + tall / 2 + 3.5, text, role=role, anchor="middle")
    if chart.totals:
        _totals(canvas, chart, canvas.width - right + 12, top, tall)
    return top + len(chart.rows) * tall + 4


def _empty(canvas: Canvas, x: float, y: float, step: float, tall: float) -> None:
    """Draw that there is no value: a dot without a shade."""
    canvas.shape("circle", cx=x + (step - _GAP) / 2, cy=y + tall / 2, r=1, fill=canvas.paint("muted"))


def _shades(canvas: Canvas, chart: HeatMap, low: float, high: float) -> float:
    """Draw what shades stand for; return where that ends."""
    y = LINE
    canvas.text(0, y - 4, chart.measure, role="muted", room=canvas.width)
    start = number_text(low, chart.form)
    x = text_width(start, TEXT) + 8
    canvas.text(0, y + 15, start, role="muted")
    for step in range(theme.STEPS):
        box = {"x": x + 14 * step, "y": y + 5, "width": 14, "height": 12}
        canvas.shape("rect", fill=canvas.paint(f"heat-{step}"), **box)
    x += 14 * theme.STEPS + 8
    canvas.text(x, y + 15, number_text(high, chart.form), role="muted")
    if any(not finite(v) for row in chart.values for v in row):
        x += text_width(number_text(high, chart.form), TEXT) + 22
        canvas.text(x, y + 15, "· none", role="muted")
    return y + LINE + 8


def _headings(canvas: Canvas, chart: HeatMap, y: float, left: float, step: float) -> float:
    """Write the names of the columns, level where they fit, else aslant or upright; return where cells begin."""
    widest = max((text_width(name, TEXT) for name in chart.columns), default=0.0)
    canvas.text(left, y + LINE - 4, chart.column_title, role="muted", room=canvas.width - left)
    y += LINE
    if widest + 6 <= step:
        for column, name in enumerate(chart.columns):
            canvas.text(left + (column + 0.5) * step, y + LINE - 4, name, anchor="middle")
        return y + LINE + 2
    # Rising to the right, names need room beside the last column; upright they need none.
    slant = step >= 22 and canvas.width - left - len(chart.columns) * step >= 60
    room = min(widest, 170.0 if slant else 130.0)
    angle, height = (-38.0, 0.62 * room + 10) if slant else (-90.0, room + 4)
    every = max(1, -(-int(LINE) // max(int(step), 1)))
    for column in range(0, len(chart.columns), every):
        x = left + (column + 0.5) * step + (-2 if slant else 4)
        canvas.text(x, y + height - 2, shortened(chart.columns[column], room, TEXT), turn=angle)
    return y + height + 4


def _totals(canvas: Canvas, chart: HeatMap, x: float, top: float, tall: float) -> None:
    """Draw a bar and a number for every row."""
    canvas.text(canvas.width, top - 7, chart.total_title, role="muted", anchor="end", room=canvas.width - x)
    most = max((v for v in chart.totals if finite(v)), default=0.0)
    texts = [number_text(v, chart.total_form) for v in chart.totals]
    room = canvas.width - x - max(text_width(text, TEXT) for text in texts) - 6
    for index, (value, text) in enumerate(zip(chart.totals, texts, strict=True)):
        y = top + index * tall
        if finite(value) and most > 0 and room > 8:
            length = max(value, 0) / most * room
            box = {"x": x, "y": y + 0.25 * tall, "width": length, "height": 0.5 * tall - _GAP}
            canvas.shape("rect", fill=canvas.paint("muted"), fill_opacity="0.7", **box)
        canvas.text(canvas.width, y + tall / 2 + 3.5, text, anchor="end")
