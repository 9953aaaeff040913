"""Where things go: axes with round ticks, widths of text without a font at hand."""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from fedit.report.charts.spec import Axis, HeatMap, Reference, Series
from fedit.report.markup import visible
from fedit.report.numbers import tick_texts

_NARROW = frozenset("fijlrtI.,:;'|!()[] ")
_BROAD = frozenset("mwMW@%&—…")


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis from values to positions, with its ticks and their labels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def __call__(self, value: float) -> float:
        """Return the position of ``value``."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def placed(self, start: float, end: float) -> "Scale":
        """Return the same axis between other positions."""
        return Scale(self.low, self.high, start, end, self.ticks, self.labels)


def scale(axis: Axis, values: Iterable[float | None], ticks: int, *, tight: bool = False) -> Scale:
    """Return an axis from 0 to 1 that holds all finite values.

    ticks: about how many there may be; tight: the axis ends where the values do, not at a tick.
    """
    found = [value for value in values if finite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if axis.zero or 0 < low <= 0.35 * high:
        low = min(low, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    step = _step((high - low) / max(ticks, 1), axis.whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = [i * step for i in range(first, last + 1)]
    if tight:
        marks = [mark for mark in marks if low - 1e-9 * step <= mark <= high + 1e-9 * step]
    else:
        low, high = marks[0], marks[-1]
    return Scale(low, high, 0.0, 1.0, tuple(marks), tuple(tick_texts(marks, axis.form)))


def heights(series: Sequence[Series], references: Sequence[Reference] = ()) -> Iterator[float | None]:
    """Yield all vertical values of curves."""
    for one in series:
        yield from (y for _, y in one.points)
        yield from (edge for _, low, high in one.band for edge in (low, high))
    yield from (reference.value for reference in references)


def places(series: Sequence[Series]) -> list[float]:
    """Return all horizontal values that something is drawn at."""
    return [x for one in series for x, y in one.points if finite(y)]


def extent(chart: HeatMap) -> tuple[float, float]:
    """Return what the weakest and the strongest shade of a heat map stand for."""
    known = [value for row in chart.values for value in row if finite(value)]
    return min([*known, *([0.0] if chart.zero else [])], default=0.0), max(known, default=1.0)


def finite(value: float | None) -> TypeGuard[float]:
    """Tell whether there is a number that can be drawn."""
    return value is not None and math.isfinite(value)


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is, in the unit of ``size``; rather too wide than too narrow."""
    return size * sum(map(_char_width, text))


def shortened(text: str, width: float, size: float) -> str:
    """Return what of a text fits in ``width``, on one line, with "…" where something is missing."""
    text = " ".join(visible(text).split())
    if text_width(text, size) <= width:
        return text
    kept, used = "", text_width("…", size)
    for char in text:
        used += text_width(char, size)
        if used > width and kept:
            break
        kept += char
    return kept.rstrip() + "…"


def _step(least: float, whole: bool) -> float:
    """Return the smallest round number from ``least`` on."""
    if whole and least <= 1:
        return 1.0
    size = 10.0 ** math.floor(math.log10(least))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    return next(factor * size for factor in factors if factor * size >= least * (1 - 1e-9))


def _char_width(char: str) -> float:
    if char in _NARROW:
        return 0.4
    if char in _BROAD:
        return 0.98
    if unicodedata.east_asian_width(char) in "WF":
        return 1.05
    if unicodedata.combining(char):
        return 0.0
    return 0.72 if char.isupper() else 0.63
