"""Charts as PDF for papers, drawn by matplotlib. The same chart gives the same bytes."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedit.report.charts import theme
from fedit.report.charts.scale import Scale, extent, finite, heights, places, scale
from fedit.report.charts.spec import Bars, Chart, HeatMap, Intervals, Lines, Panels, Reference, Series
from fedit.report.markup import visible
from fedit.report.numbers import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 6.5
"""Inches: the text width of most papers."""

_MARKERS = dict(zip(theme.MARKERS, "os^DvPX", strict=True))
_HATCHES = ("", "////", "||||", "\\\\\\\\", "----", "++++")
_LINES = {"": "-", "7 3": (0, (5, 2)), "2 3": (0, (1, 2)), "9 3 2 3": (0, (6, 2, 1, 2)), "6 4": (0, (4, 3))}
_COLOURS = theme.LIGHT


def pdf_file(chart: Chart) -> bytes:
    """Return the content of a PDF file, text as text, fonts embedded."""
    from matplotlib import rc_context

    settings: dict[Any, object] = {
        "pdf.fonttype": 42, "font.size": 8, "text.parse_math": False, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": _COLOURS["line"], "axes.labelcolor": _COLOURS["muted"],
        "xtick.color": _COLOURS["muted"], "ytick.color": _COLOURS["muted"], "grid.color": _COLOURS["grid"],
        "text.color": _COLOURS["ink"], "hatch.color": _COLOURS["surface"],
    }  # fmt: skip
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # shown as a box
        warnings.filterwarnings("ignore", ".*constrained_layout not applied")  # names too long for the figure
        figure = _draw(chart)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return buffer.getvalue()


def _draw(chart: Chart) -> "Figure":
    match chart:
        case Lines():
            figure = _figure(2.9)
            axes = figure.add_subplot()
            _curves(axes, chart.series, chart.references)
            _horizontal(axes, scale(chart.x, places(chart.series), 6, tight=True))
            _vertical(axes, scale(chart.y, heights(chart.series, chart.references), 5))
            axes.set_xlabel(_text(chart.x.title))
            axes.set_ylabel(_text(chart.y.title))
            _legend(figure, axes)
        case Panels():
            figure = _panels(chart)
        case Bars():
            figure = _bars(chart)
        case HeatMap():
            figure = _heat_map(chart)
        case Intervals():
            figure = _intervals(chart)
    return figure


def _panels(chart: Panels) -> "Figure":
    columns = max(1, min(len(chart.panels), 4))
    rows = max(1, -(-len(chart.panels) // columns))
    figure = _figure(0.8 + 1.35 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    horizontal = scale(chart.x, [x for panel in chart.panels for x in places(panel.series)], 3, tight=True)
    vertical = scale(chart.y, [y for panel in chart.panels for y in heights(panel.series, panel.references)], 3)
    for axes, panel in zip(grid.flat, chart.panels, strict=False):
        _curves(axes, panel.series, panel.references)
        _horizontal(axes, horizontal)
        _vertical(axes, vertical)
        axes.set_title(_text(panel.title, 22), fontsize=8, loc="left")
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(chart.panels) :]:
        axes.set_visible(False)
    figure.supxlabel(_text(chart.x.title), fontsize=8)
    figure.supylabel(_text(chart.y.title), fontsize=8)
    if chart.panels:
        _legend(figure, grid.flat[0])
    return figure


def _curves(axes: "Axes", series: Sequence[Series], references: Sequence[Reference]) -> None:
    for position, one in enumerate(series):
        colour = _COLOURS[theme.series_role(position)]
        axes.plot(
            [x for x, _ in one.points],
            [y if finite(y) else float("nan") for _, y in one.points],
            color=colour,
            label=_text(one.name, 40),
            linestyle=_LINES[theme.dash(position) or ""],
            linewidth=2.2 if one.emphasis else 1.3,
            marker=_MARKERS[theme.marker(position)],
            markersize=3.5,
            markevery=max(1, len(one.points) // 12),
            zorder=4 if one.emphasis else 3,
        )
        band = [(x, low, high) for x, low, high in one.band if finite(low) and finite(high)]
        if len(band) > 1:
            at, lows, highs = zip(*band, strict=True)
            axes.fill_between(at, lows, highs, color=colour, alpha=0.18, linewidth=0)
    _references(axes.axhline, references)
    axes.grid(linewidth=0.6)
    axes.set_axisbelow(True)


def _references(draw: Callable[..., object], references: Sequence[Reference]) -> None:
    for position, reference in enumerate(references):
        dash = _LINES[theme.REFERENCE_DASHES[position % len(theme.REFERENCE_DASHES)]]
        name = _text(reference.name, 40)
        draw(reference.value, color=_COLOURS["muted"], linestyle=dash, linewidth=1.2, label=name, zorder=2)


def _bars(chart: Bars) -> "Figure":
    figure = _figure(2.6)
    axes = figure.add_subplot()
    at, below = range(len(chart.labels)), [0.0] * len(chart.labels)
    for layer, stack in enumerate(chart.stacks):
        values = [v if finite(v) else 0.0 for v in stack.values]
        axes.bar(
            at, values, width=0.7, bottom=below, color=_COLOURS[theme.series_role(layer)], linewidth=0,
            hatch=_HATCHES[layer % len(_HATCHES)], label=_text(stack.name, 40),
        )  # fmt: skip
        below = [one + other for one, other in zip(below, values, strict=True)]
    _vertical(axes, scale(chart.y, [0.0, *below], 4))
    every = max(1, -(-len(chart.labels) // 20))
    axes.set_xticks(at[::every], [_text(label, 14) for label in chart.labels[::every]])
    axes.set_xlabel(_text(chart.x))
    axes.set_ylabel(_text(chart.y.title))
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(chart.stacks) > 1:
        _legend(figure, axes)
    return figure


def _heat_map(chart: HeatMap) -> "Figure":
    from matplotlib.colors import ListedColormap

    figure = _figure(1.6 + 0.22 * len(chart.rows))
    widths = (5, 1) if chart.totals else (1,)
    drawn = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)
    heat = drawn[0, 0]
    low, high = extent(chart)
    cells = [[value if finite(value) else float("nan") for value in row] for row in chart.values if row]
    shades = ListedColormap([_COLOURS[f"heat-{step}"] for step in range(theme.STEPS)])
    image = heat.imshow(
        cells or [[float("nan")]], cmap=shades, vmin=low, vmax=high if high > low else low + 1, aspect="auto"
    )
    _numbers(heat, chart, low, high)
    heat.set_xticks(range(len(chart.columns)), [_text(name, 22) for name in chart.columns], rotation=90)
    heat.set_yticks(range(len(chart.rows)), [_text(name, 22) for name in chart.rows])
    heat.set_xlabel(_text(chart.column_title))
    heat.set_ylabel(_text(chart.row_title))
    if chart.totals:
        _totals(drawn[0, 1], chart)
    for axes in drawn.flat:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    figure.colorbar(image, ax=drawn, label=_text(chart.measure), pad=0.02, fraction=0.04)
    return figure


def _numbers(axes: "Axes", chart: HeatMap, low: float, high: float) -> None:
    """Write the values into their cells, where they fit."""
    texts = {
        (row, column): number_text(value, chart.form)
        for row, values in enumerate(chart.values)
        for column, value in enumerate(values)
        if finite(value)
    }
    # Points that fit a cell: the cells are about 290 points wide in all, a digit 0.62 of its size.
    size = min(8.0, 290 / max(len(chart.columns), 1) / (0.62 * max(map(len, texts.values()), default=1)))
    for (row, column), text in texts.items() if size >= 5 else ():
        ink = _COLOURS[f"heat-ink-{theme.shade(chart.values[row][column] or 0.0, low, high)}"]
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)


def _totals(axes: "Axes", chart: HeatMap) -> None:
    totals = [value if finite(value) else 0.0 for value in chart.totals]
    bars = axes.barh(range(len(totals)), totals, color=_COLOURS["muted"], height=0.5)
    axes.bar_label(bars, [number_text(value, chart.total_form) for value in chart.totals], padding=2, fontsize=7)
    axes.set_xlim(0, 1.6 * max([*totals, 1e-12]))
    axes.set_xticks([])
    axes.set_xlabel(_text(chart.total_title))


def _intervals(chart: Intervals) -> "Figure":
    figure = _figure(0.8 + 0.2 * len(chart.rows))
    axes = figure.add_subplot()
    ends = [end for row in chart.rows for end in (row.estimate.value, row.estimate.low, row.estimate.high)]
    for at, row in enumerate(chart.rows):
        colour = _COLOURS["series-1" if row.emphasis else "muted"]
        low, high = row.estimate.low, row.estimate.high
        if low is not None and high is not None and row.estimate.has_interval:
            axes.plot([low, high], [at, at], color=colour, linewidth=1.6, marker="|", markersize=5, clip_on=False)
        dot = "D" if row.emphasis else "o"
        axes.plot([row.estimate.value], [at], color=colour, marker=dot, markersize=4.5, clip_on=False)
    _references(axes.axvline, chart.references)
    axes.set_yticks(range(len(chart.rows)), [_text(row.name, 34) for row in chart.rows])
    axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    _horizontal(axes, scale(chart.x, [*ends, *(reference.value for reference in chart.references)], 5))
    axes.set_xlabel(_text(chart.x.title))
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(figure, axes)
    return figure


def _horizontal(axes: "Axes", scale: Scale) -> None:
    axes.set_xticks(scale.ticks, scale.labels)
    axes.set_xlim(scale.low, scale.high)


def _vertical(axes: "Axes", scale: Scale) -> None:
    axes.set_yticks(scale.ticks, scale.labels)
    axes.set_ylim(scale.low, scale.high)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, min(len(labels), 90 // (max(map(len, labels)) + 8)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, handlelength=3)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, min(height, 30.0)), layout="constrained")


def _text(text: str, length: int = 60) -> str:
    """Return a name on one line, shortened."""
    shown = " ".join(visible(text).split())
    shown = shown if len(shown) <= length else f"{shown[: length - 1]}…"
    return f" {shown}" if shown.startswith("_") else shown  # legends leave out names that begin with "_"
