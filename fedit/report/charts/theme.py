"""One theme for pages, figures and prints: colours by role that the colour-blind can tell apart."""

from collections.abc import Mapping
from dataclasses import dataclass

STEPS = 9
"""Shades of a heat map."""

SERIES = 7
"""Colours of lines and bars; after them they repeat with other dashes."""

MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross")
"""Shapes of points, one a colour: colour is never alone."""

DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Of lines, one for each time the colours repeat."""

REFERENCE_DASHES = ("6 4", "2 3", "9 3 2 3")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def _roles(
    series: tuple[str, ...], heat: tuple[str, ...], heat_inks: tuple[str, ...], **others: str
) -> dict[str, str]:
    """Return colours by role; ``heat_inks`` are those of the numbers on the shades ``heat``."""
    colours = {role.replace("_", "-"): colour for role, colour in others.items()}
    colours |= {f"series-{position}": colour for position, colour in enumerate(series, 1)}
    colours |= {f"heat-{step}": colour for step, colour in enumerate(heat)}
    return colours | {f"heat-ink-{step}": colour for step, colour in enumerate(heat_inks)}


LIGHT = _roles(
    ("#0067b1", "#c24d0a", "#00785a", "#a0478a", "#866100", "#5b6472", "#1c2128"),
    ("#f1f6fb", "#dfebf6", "#c9deef", "#abcfe8", "#86bbde", "#5fa2ce", "#2775ab", "#155b90", "#0b406d"),
    ("#1c2128",) * 6 + ("#ffffff",) * 3,
    ink="#1c2128",
    muted="#57606a",
    grid="#dce1e6",
    line="#c4ccd4",
    surface="#ffffff",
    panel="#f5f7f9",
    accent="#0b5cad",
    good="#1a6e3c",
    bad="#a8321a",
    mark="#fdf0c2",
    warn="#fdf6e3",
    warn_line="#b58900",
)

DARK = _roles(
    ("#5ab0f2", "#ff9a57", "#35c79a", "#e59bd0", "#e3c04a", "#a9b4c0", "#f2f4f6"),
    ("#1b2733", "#1f3a52", "#23507a", "#2a659b", "#5e9fd2", "#7fb6e2", "#a0caee", "#c0ddf6", "#e0effc"),
    ("#ffffff",) * 4 + ("#0f1216",) * 5,
    ink="#e6e9ed",
    muted="#a3adb8",
    grid="#313841",
    line="#46505b",
    surface="#14181d",
    panel="#1c222a",
    accent="#79b8ff",
    good="#6fd08c",
    bad="#ff9b85",
    mark="#4a3d10",
    warn="#2e2813",
    warn_line="#d9b648",
)


@dataclass(frozen=True, slots=True)
class Paint:
    """How a drawing names the colour of a role."""

    colours: Mapping[str, str]

    def __call__(self, role: str) -> str:
        """Return what stands for the colour of ``role``."""
        return self.colours[role]


PAGE = Paint({role: f"var(--{role})" for role in LIGHT})
"""For figures within a page, whose style sheet says what the variables are."""

PAPER = Paint(LIGHT)
"""For files of their own."""


def series_role(position: int) -> str:
    """Return the role of the line or layer at ``position``."""
    return f"series-{position % SERIES + 1}"


def marker(position: int) -> str:
    """Return the shape of the points of the series at ``position``."""
    return MARKERS[position % SERIES]


def dash(position: int) -> str | None:
    """Return the dashes of the series at ``position``; None: a whole line."""
    return DASHES[position // SERIES % len(DASHES)] or None


def shade(value: float, low: float, high: float) -> int:
    """Return the step of a value between the lowest and the highest of a heat map."""
    if high <= low:
        return STEPS // 2
    return min(STEPS - 1, max(0, int((value - low) / (high - low) * STEPS)))


def variables(colours: Mapping[str, str]) -> str:
    """Return the colours as declarations of a style sheet."""
    return "".join(f"--{role}:{colour};" for role, colour in colours.items())
