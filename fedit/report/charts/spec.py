"""Charts as data: what is drawn, not how. `fedit.report.charts.svg` and `fedit.report.charts.pdf` draw them.

Numbers that are missing or not finite are gaps. A ``form`` is one of `fedit.report.numbers.number_text`.
"""

from dataclasses import dataclass

from fedit.report.numbers import Estimate


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis measures.

    zero:  the axis begins at zero whatever the data.
    whole: values between whole numbers mean nothing (rounds), so no tick is put there.
    """

    title: str
    form: str = ""
    zero: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """A line through (x, y) points, with a band of (x, low, high) where it has one.

    emphasis: drawn stronger than the others.
    """

    name: str
    points: tuple[tuple[float, float | None], ...]
    band: tuple[tuple[float, float | None, float | None], ...] = ()
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """A value to compare with, drawn as a dashed line."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over a numeric axis, and reference values."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several small charts. Its series come in the same order in every panel."""

    title: str
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class Panels:
    """Small multiples of curves on the same scales, with one legend."""

    x: Axis
    y: Axis
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """A layer of bars: one value a label."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Upright bars, one a label; several stacks lie on top of each other. Values are not negative."""

    x: str
    y: Axis
    labels: tuple[str, ...]
    stacks: tuple[Stack, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A table of shaded cells, with its numbers where they fit.

    rows, columns:  names; values: a row of values for every row, None where there is none.
    measure:        what a value is; zero: shades begin at zero whatever the values.
    totals:         a number a row, drawn as bars on the right.
    """

    row_title: str
    column_title: str
    measure: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    form: str = ""
    zero: bool = False
    totals: tuple[float | None, ...] = ()
    total_title: str = ""
    total_form: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A named estimate."""

    name: str
    estimate: Estimate
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class Intervals:
    """Dots with whiskers, one a row, over a shared axis."""

    x: Axis
    rows: tuple[Interval, ...]
    references: tuple[Reference, ...] = ()


Chart = Lines | Panels | Bars | HeatMap | Intervals
