"""The numbers of a chart as a table, for those who cannot see it or want to go on with them."""

from collections.abc import Sequence

from fedit.report.charts.spec import Axis, Bars, Chart, HeatMap, Intervals, Lines, Panels, Reference, Series
from fedit.report.document import Cell, Column, Row, Table
from fedit.report.numbers import Estimate


def chart_table(chart: Chart, caption: str) -> Table:
    """Return all numbers of a chart, folded."""
    match chart:
        case Lines():
            columns = _curve_columns(chart.x, chart.y)
            rows = _curve_rows(chart.series, chart.references)
        case Panels():
            columns = [Column("panel"), *_curve_columns(chart.x, chart.y)]
            rows = [(p.title, *row) for p in chart.panels for row in _curve_rows(p.series, p.references)]
        case Bars():
            columns = [Column(chart.x), *(Column(stack.name, "number", chart.y.form) for stack in chart.stacks)]
            rows = [(label, *(stack.values[i] for stack in chart.stacks)) for i, label in enumerate(chart.labels)]
        case HeatMap():
            columns = [Column(chart.row_title), *(Column(name, "number", chart.form) for name in chart.columns)]
            rows = [(name, *values) for name, values in zip(chart.rows, chart.values, strict=True)]
            if chart.totals:
                columns.append(Column(chart.total_title, "number", chart.total_form))
                rows = [(*row, total) for row, total in zip(rows, chart.totals, strict=True)]
        case Intervals():
            columns = [Column("name"), Column(chart.x.title, "interval", chart.x.form)]
            rows = [(row.name, row.estimate) for row in chart.rows]
            rows += [(reference.name, reference.value) for reference in chart.references]
    return Table(caption, tuple(columns), tuple(Row(tuple(cells)) for cells in rows), folded=True)


def _curve_columns(x: Axis, y: Axis) -> list[Column]:
    return [Column("curve"), Column(x.title, "number", x.form), Column(y.title, "interval", y.form)]


def _curve_rows(series: Sequence[Series], references: Sequence[Reference]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for one in series:
        bands = {x: (low, high) for x, low, high in one.band}
        for x, y in one.points:
            low, high = bands.get(x, (None, None))
            rows.append((one.name, x, None if y is None else Estimate(y, low, high)))
    return [*rows, *((reference.name, None, reference.value) for reference in references)]
