"""Draws the figures that explain, as a part of ``python -m docs.generate``.

They are drawn 480 pixels wide with letters of 15, so that they can be read on a phone, on a ground of their own
and in colours that follow the reader's light or dark setting.
"""

import math

from fedit.report.charts import theme
from fedit.report.markup import Markup, element, join

WIDTH = 480.0
TEXT = 15.0
ROLES = ("ink", "muted", "line", "surface", "panel", "accent", "good", "bad", "grid")


def box(x: float, y: float, width: float, height: float, role: str = "panel", **more: str | float) -> Markup:
    """Return a rectangle with round corners."""
    fill = f"var(--{role})"
    return element("rect", x=x, y=y, width=width, height=height, rx=8, fill=fill, stroke="var(--line)", **more)


def words(
    x: float, y: float, *lines: str, role: str = "ink", anchor: str = "middle", bold: bool = False
) -> Markup:
    """Return lines of text, the first of them on the baseline ``y``."""
    weight = "600" if bold else None
    return join(
        *(
            element(
                "text", line, x=x, y=y + 19 * row, fill=f"var(--{role})", text_anchor=anchor, font_weight=weight
            )
            for row, line in enumerate(lines)
        )
    )


def arrow(x1: float, y1: float, x2: float, y2: float, role: str = "accent", dash: str | None = None) -> Markup:
    """Return a line with a head at its end."""
    length = math.hypot(x2 - x1, y2 - y1)
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    ends = {"x1": x1, "y1": y1, "x2": x2 - 8 * dx, "y2": y2 - 8 * dy}
    left = f"{x2 - 11 * dx - 5 * dy:.1f} {y2 - 11 * dy + 5 * dx:.1f}"
    right = f"{x2 - 11 * dx + 5 * dy:.1f} {y2 - 11 * dy - 5 * dx:.1f}"
    return join(
        element("line", **ends, stroke=f"var(--{role})", stroke_width=2.5, stroke_dasharray=dash),
        element("path", d=f"M{x2:.1f} {y2:.1f}L{left}L{right}Z", fill=f"var(--{role})"),
    )


def dot(x: float, y: float, role: str) -> Markup:
    """Return a point."""
    return element("circle", cx=x, cy=y, r=6, fill=f"var(--{role})")


def drawing(title: str, description: str, height: float, *parts: Markup) -> str:
    """Return the content of an SVG file."""
    light, dark = ({role: colours[role] for role in ROLES} for colours in (theme.LIGHT, theme.DARK))
    style = (
        f":root{{{theme.variables(light)}}}@media(prefers-color-scheme:dark){{:root{{{theme.variables(dark)}}}}}"
    )
    return (
        element(
            "svg",
            element("title", title),
            element("desc", description),
            element("style", Markup(style)),
            element("rect", width=WIDTH, height=height, rx=10, fill="var(--surface)"),
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
            width=WIDTH * 1.25,
            height=height * 1.25,
            font_family=theme.FONT,
            font_size=TEXT,
            role="img",
        )
        + "\n"
    )


def round_loop() -> str:
    """Return the figure of a round."""
    parts = [
        box(20, 16, 440, 92),
        words(240, 42, "Server", bold=True),
        words(240, 66, "1 draws a cohort · 5 averages the changes,", "checks, saves and starts the next round"),
    ]
    for place, name in enumerate(("client A", "client B", "client C")):
        left = 20 + 152 * place
        asked = place != 1
        parts += [
            box(left, 226, 136, 128),
            words(left + 68, 250, name, bold=True, role="ink" if asked else "muted"),
            box(left + 14, 300, 108, 40, "surface"),
            words(left + 68, 325, "its own rows", role="muted"),
        ]
        if asked:
            parts += [
                words(left + 68, 274, "3 trains"),
                arrow(left + 44, 112, left + 44, 222),
                arrow(left + 92, 222, left + 92, 112, "good"),
            ]
        else:
            parts.append(words(left + 68, 274, "not drawn", role="muted"))
    parts += [
        words(240, 150, "2 adapter", role="accent", bold=True),
        words(240, 186, "4 its change", role="good", bold=True),
    ]
    return drawing(
        "A round",
        "The server draws clients A and C of three and sends them the adapter; they train it on rows of their own "
        "and send back its change; the server averages the changes and starts the next round.",
        372,
        *parts,
    )


def what_leaves() -> str:
    """Return the figure of what leaves a client and what does not."""
    stays = (
        "rows: prompts and answers",
        "base model, which is frozen",
        "optimizer's state",
        "adapter of its own, if any",
    )
    leaves = ("change of the adapter", "how many rows it has", "loss, steps, tokens")
    parts = [box(16, 16, 238, 312), words(135, 42, "Client", bold=True), words(135, 66, "stays", role="muted")]
    for place, line in enumerate(stays):
        parts += [box(26, 82 + 58 * place, 218, 44, "surface"), words(135, 109 + 58 * place, line)]
    parts += [words(366, 42, "leaves", bold=True, role="good")]
    for place, line in enumerate(leaves):
        y = 104 + 66 * place
        parts += [arrow(258, y, 466, y, "good"), words(366, y - 10, line)]
    parts.append(words(366, 278, "masked, where secure", "aggregation is on", role="muted"))
    return drawing(
        "What leaves a client",
        "Rows, the frozen base model, the optimizer's state and an adapter of the client's own stay; the change "
        "of the adapter, the number of rows, loss, steps and tokens leave. Secure aggregation masks the change.",
        344,
        *parts,
    )


def products() -> str:
    """Return the figure of two clients' factors, their mean, and the products."""
    left, bottom, unit = 66.0, 326.0, 86.0

    def at(a: float, b: float) -> tuple[float, float]:
        return left + unit * a, bottom - unit * b

    curve = [at(a / 20, 60 / a) for a in range(17, 72)]
    ax, ay = at(1, 3)
    bx, by = at(3, 1)
    mx, my = at(2, 2)
    grid = [
        element("line", x1=x, y1=bottom, x2=x, y2=20, stroke="var(--grid)")
        for x in (at(n, 0)[0] for n in (1, 2, 3))
    ]
    grid += [
        element("line", x1=left, y1=y, x2=400, y2=y, stroke="var(--grid)")
        for y in (at(0, n)[1] for n in (1, 2, 3))
    ]
    marks = [words(at(n, 0)[0], bottom + 20, str(n), role="muted") for n in (0, 1, 2, 3)]
    marks += [words(left - 12, at(0, n)[1] + 5, str(n), role="muted", anchor="end") for n in (1, 2, 3)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in curve)
    parts = [
        *grid,
        element("line", x1=left, y1=bottom, x2=400, y2=bottom, stroke="var(--line)", stroke_width=1.5),
        element("line", x1=left, y1=bottom, x2=left, y2=20, stroke="var(--line)", stroke_width=1.5),
        *marks,
        words(236, bottom + 42, "factor A"),
        words(20, 190, "B"),
        element("path", d=path, fill="none", stroke="var(--good)", stroke_width=2.5),
        element("line", x1=ax, y1=ay, x2=bx, y2=by, stroke="var(--muted)", stroke_dasharray="5 4"),
        dot(ax, ay, "accent"),
        dot(bx, by, "accent"),
        dot(mx, my, "bad"),
        words(ax + 14, ay - 8, "client 1: B·A = 3·1 = 3", role="accent", anchor="start"),
        words(bx - 10, by + 40, "client 2:", "1·3 = 3", role="accent"),
        words(mx + 14, my - 30, "mean of the factors:", "2·2 = 4, no client's", role="bad", anchor="start"),
        words(
            at(0.1, 0.55)[0],
            at(0, 0.55)[1],
            "mean of the products: 3,",
            "on this curve",
            role="good",
            anchor="start",
        ),
    ]
    return drawing(
        "Averaging factors, averaging products",
        "Client 1 has A = 1 and B = 3, client 2 has A = 3 and B = 1; both products are 3. The mean of the factors "
        "is A = B = 2, whose product is 4. The mean of the products is 3.",
        384,
        *parts,
    )


FIGURES = {"round.svg": round_loop, "what-leaves.svg": what_leaves, "products.svg": products}
