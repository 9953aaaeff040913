"""Numbers as people read them, estimates with their intervals, names in the order people expect."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MISSING = "—"
"""What stands where there is no number."""

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COMPACT = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value, and the ends of its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known and finite."""
        return all(end is not None and math.isfinite(end) for end in (self.low, self.high))


def wilson(right: float, total: int, z: float = 1.959964) -> Estimate:
    """Return a share with its Wilson score interval; z = 1.96 is 95 %. A tie may count as half of a win.

    Unlike the normal approximation it stays between 0 and 1, and is no point at 0 or 1.

    Raises:
        ValueError: the total is not positive, or there are more right ones than that.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} of {total} is no share.")
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Rounding may leave the value itself outside at the very ends.
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def shrunk(raw: float | None, sent: float | None) -> str:
    """Return how many times smaller bytes became by transforms; nothing where they did not.

    >>> shrunk(8_000_000, 2_000_000)
    '4.0 times smaller than raw'
    """
    if not raw or not sent or raw <= sent:
        return ""
    return f"{raw / sent:,.1f} times smaller than raw"


def number_text(value: float | None, form: str = "") -> str:
    """Return a number for a table or a label.

    form: a format specification such as ".3f", ",d" or ".1%"; "bytes", "duration" or "compact" (12.3k);
          "": four significant digits.
    """
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    match form:
        case "bytes":
            return _scaled(value, _BYTES, "B", " ")
        case "compact":
            return _scaled(value, _COMPACT, "", "")
        case "duration":
            return _duration(value)
        case "":
            return _short(value)
        case _:
            return format(round(value) if form.endswith("d") else value, form)


def estimate_text(estimate: Estimate, form: str = "") -> str:
    """Return ``value [low, high]``, or the value alone where there is no interval."""
    text = number_text(estimate.value, form)
    if not estimate.has_interval:
        return text
    return f"{text} [{number_text(estimate.low, form)}, {number_text(estimate.high, form)}]"


def tick_texts(ticks: Sequence[float], form: str = "") -> list[str]:
    """Return the labels of an axis: as many digits as tell its ticks apart, and no more."""
    if form in ("bytes", "duration", "compact"):
        return [number_text(tick, form) for tick in ticks]
    percent = form.endswith("%")
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=1.0) * (100 if percent else 1)
    digits = 0
    while digits < 6 and abs(round(step, digits) - step) > 1e-6 * step:
        digits += 1
    if step < 1e-5:
        return [f"{tick:.3g}" for tick in ticks]
    return [f"{tick:,.{digits}{'%' if percent else 'f'}}" for tick in ticks]


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts client-2 before client-10, however long a number is."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, len(part.lstrip("0")), part) if part[0] in "0123456789" else (1, 0, part) for part in parts]


def _short(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _scaled(value: float, units: Sequence[tuple[float, str]], smallest: str, gap: str) -> str:
    for size, unit in units:
        # 999,950 is 1.0M, not 1000.0k.
        if abs(value) >= 0.99995 * size:
            scaled = f"{value / size:.3g}" if abs(value) < 999.5 * size else f"{value / size:,.0f}"
            return f"{scaled}{gap}{unit}"
    return f"{value:.3g}{gap}{smallest}".rstrip() if smallest else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if abs(seconds) < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
