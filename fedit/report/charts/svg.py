"""Charts as SVG, within a page or as files of their own. The same chart gives the same bytes."""

from fedit.report.charts import theme
from fedit.report.charts.bars import draw_bars, draw_intervals
from fedit.report.charts.canvas import TEXT, Canvas
from fedit.report.charts.curves import draw_lines, draw_panels
from fedit.report.charts.heat import draw_heat_map
from fedit.report.charts.spec import Bars, Chart, HeatMap, Intervals, Lines, Panels
from fedit.report.charts.theme import PAGE, PAPER
from fedit.report.markup import Markup, element, number

WIDE = 720.0
"""Pixels of a figure on a screen or a sheet of paper."""

NARROW = 344.0
"""Pixels of a figure on a phone: text keeps its size, the rest is laid out anew."""

_EDGE = 6.0


def inline_svg(chart: Chart, *, title: str, description: str, width: float, key: str, tips: bool = True) -> Markup:
    """Return an ``<svg>`` for a page that defines the colours of `theme.variables`.

    title, description: its accessible name and what it shows, in words.
    key:  identifies it within the page; letters, digits and hyphens.
    tips: a pointer that rests on a value is shown it.
    """
    content, height = _draw(chart, Canvas(width, PAGE, key, tips))
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        content,
        viewBox=_view_box(width, height),
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        font_size=TEXT,
    )


def svg_file(chart: Chart, *, title: str, description: str) -> str:
    """Return the content of an SVG file, in the light colours."""
    content, height = _draw(chart, Canvas(WIDE, PAPER, "figure", tips=True))
    whole = {"x": -_EDGE, "y": -_EDGE, "width": WIDE + 2 * _EDGE, "height": height + 2 * _EDGE}
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + element(
            "svg",
            element("title", title),
            element("desc", description),
            element("rect", fill=theme.LIGHT["surface"], **whole),
            content,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=_view_box(WIDE, height),
            width=WIDE + 2 * _EDGE,
            height=height + 2 * _EDGE,
            font_family=theme.FONT,
            font_size=TEXT,
            role="img",
        )
        + "\n"
    )


def _draw(chart: Chart, canvas: Canvas) -> tuple[Markup, float]:
    match chart:
        case Lines():
            height = draw_lines(canvas, chart)
        case Panels():
            height = draw_panels(canvas, chart)
        case Bars():
            height = draw_bars(canvas, chart)
        case HeatMap():
            height = draw_heat_map(canvas, chart)
        case Intervals():
            height = draw_intervals(canvas, chart)
    return canvas.content, height


def _view_box(width: float, height: float) -> str:
    return f"{number(-_EDGE)} {number(-_EDGE)} {number(width + 2 * _EDGE)} {number(height + 2 * _EDGE)}"
