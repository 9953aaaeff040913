"""Pictures of a partition and of learning curves, as PNG or SVG whose bytes depend on the content alone."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedit import files
from fedit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_WIDTH = 10.0
"""Inches: 1,000 pixels as PNG."""

_COUNTS_UP_TO = 30
"""Clients whose counts are written out; more are drawn as colours alone."""

_COLUMNS_UP_TO = 400
"""Columns of a heat map, two pixels each; where there are more clients, a column stands for several."""

_LINES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "-", "s"),
    ("#009E73", "-", "^"),
    ("#CC79A7", "-", "D"),
    ("#E69F00", "-", "v"),
    ("#56B4E9", "-", "P"),
    ("#000000", "-", "X"),
)
"""Okabe and Ito's colours, which the common forms of colour blindness keep apart, each with its own marker."""

_REFERENCES = ("--", ":", "-.", (0, (8, 2)), (0, (1, 3)))


def partition_figure(counts: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """Draw how many rows of each category every client holds: client -> category -> rows.

    Up to 30 clients are rows of a table with the counts written in it and bars of their sizes;
    more become columns of a heat map, grouped by the category each holds most of; of more than
    400 clients, every column is the mean over equally many neighbours.

    Raises:
        ConfigError: the file's suffix is neither .png nor .svg.
        DataError: there are no clients, or none has a category.
    """
    categories = sorted({name for mine in counts.values() for name, count in mine.items() if count > 0})
    if not categories:
        raise DataError("there are no clients with rows in a category to draw.")
    table = np.array([[mine.get(name, 0) for name in categories] for mine in counts.values()])
    with _style():
        if len(counts) <= _COUNTS_UP_TO:
            _save(_count_table(table, list(counts), categories), path)
        else:
            _save(_share_map(table, categories), path)


def learning_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    reference: Mapping[str, float] | None = None,
) -> None:
    """Draw one line per arm, name -> (x, y) points, and a horizontal line per reference value.

    Raises:
        ConfigError: the file's suffix is neither .png nor .svg.
        DataError: no arm has a point.
    """
    reference = reference or {}
    if not any(curves.values()):
        raise DataError("there are no curves with points to draw.")
    with _style():
        figure = _figure(5.2)
        axes = figure.add_subplot()
        _draw_curves(axes, curves, reference)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend(figure, axes)
        _save(figure, path)


def category_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw a small panel per category, category -> arm -> (x, y) points, all on the same scales.

    Raises:
        ConfigError: the file's suffix is neither .png nor .svg.
        DataError: no arm has a point.
    """
    if not any(points for arms in curves.values() for points in arms.values()):
        raise DataError("there are no curves with points to draw.")
    arms = list(dict.fromkeys(name for mine in curves.values() for name in mine))
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    with _style():
        figure = _figure(1.2 + 2.3 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels: list[Axes] = list(grid.flat)
        for axes, (category, mine) in zip(panels, curves.items(), strict=False):
            _draw_curves(axes, {arm: mine.get(arm, ()) for arm in arms}, {})
            axes.set_title(_short(category), fontsize=10)
            axes.tick_params(labelbottom=True)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel(xlabel, fontsize=11)
        figure.supylabel(ylabel, fontsize=11)
        _legend(figure, panels[0])
        _save(figure, path)


def _count_table(table: np.ndarray, clients: list[str], categories: list[str]) -> "Figure":
    upright = len(categories) > 16
    figure = _figure((3.2 if upright else 1.9) + 0.34 * len(clients))
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4.2, 1))
    image = heat.imshow(table, cmap="Blues", aspect="auto", vmin=0, vmax=table.max())
    # Points that fit a cell: the table is at least 430 points wide, a digit about 0.65 of its size.
    size = min(10.0, 430 / len(categories) / (0.65 * len(f"{table.max():,}")))
    for (row, column), count in np.ndenumerate(table):
        if count and size >= 5:
            colour = "white" if count > 0.6 * table.max() else "black"
            heat.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)
    if size < 5:
        figure.colorbar(image, ax=[heat, bars], label="rows", pad=0.015, fraction=0.04)
    turned = {"rotation": 90, "ha": "center"} if upright else {"rotation": 30, "ha": "right"}
    heat.set_xticks(range(len(categories)), [_short(name) for name in categories], **turned)
    heat.set_yticks(range(len(clients)), [_short(name) for name in clients])
    heat.set_xlabel("category")
    heat.set_ylabel("client")
    heat.set_title("Training rows per client and category", fontsize=11)
    # White lines between cells, so that a client's row can be followed.
    heat.set_xticks(np.arange(len(categories) + 1) - 0.5, minor=True)
    heat.set_yticks(np.arange(len(clients) + 1) - 0.5, minor=True)
    heat.grid(which="minor", color="white", linewidth=1.5)
    heat.tick_params(which="both", length=0)
    totals = table.sum(axis=1)
    drawn = bars.barh(range(len(clients)), totals, color="#6B7A8F", height=0.7)
    bars.bar_label(drawn, labels=[f"{total:,}" for total in totals], padding=3, fontsize=9)
    bars.set_xlim(0, totals.max() * 1.45)
    bars.set_xlabel("all rows")
    bars.set_xticks([])
    bars.tick_params(which="both", left=False, labelleft=False)
    for axes in (heat, bars):
        axes.spines[:].set_visible(False)
    return figure


def _share_map(table: np.ndarray, categories: list[str]) -> "Figure":
    totals = table.sum(axis=1)
    order = np.lexsort((-totals, table.argmax(axis=1)))
    shares = table[order] / totals[order, None].clip(min=1)
    clients, each = len(totals), -(-len(totals) // _COLUMNS_UP_TO)
    columns, sizes = _means(shares, each).T, _means(totals[order, None], each)[:, 0]
    top = np.ceil(10 * columns.max()) / 10
    figure = _figure(3.2 + 0.34 * len(categories))
    bars, heat = figure.subplots(2, 1, sharex=True, height_ratios=(1, 0.3 * len(categories) + 0.6))
    # One outline: a bar a client would take seconds and megabytes.
    bars.stairs(sizes, np.arange(len(sizes) + 1) - 0.5, fill=True, color="#6B7A8F")
    bars.set_ylim(0, sizes.max() * 1.05)
    bars.set_ylabel("rows")
    bars.set_title(f"Training rows of {clients:,} clients, and their categories", fontsize=11)
    bars.tick_params(bottom=False)
    image = heat.imshow(columns, cmap="Blues", aspect="auto", vmin=0, vmax=top, interpolation="nearest")
    heat.set_yticks(range(len(categories)), [_short(name) for name in categories])
    heat.set_ylabel("category")
    grouped = f"{clients:,} clients, grouped by the category they hold most of"
    heat.set_xlabel(grouped if each == 1 else f"{grouped}; a column is the mean of {each}")
    heat.set_xticks([])
    heat.tick_params(length=0)
    figure.colorbar(image, ax=[bars, heat], label="share of the client's rows", pad=0.015, fraction=0.04)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def _means(values: np.ndarray, each: int) -> np.ndarray:
    """Return the means of ``each`` neighbouring rows; the last may be of fewer."""
    starts = np.arange(0, len(values), each)
    means: np.ndarray = np.add.reduceat(values, starts, axis=0) / np.diff(starts, append=len(values))[:, None]
    return means


def _draw_curves(
    axes: "Axes", curves: Mapping[str, Sequence[tuple[float, float]]], reference: Mapping[str, float]
) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for position, (name, points) in enumerate(curves.items()):
        colour, line, marker = _LINES[position % len(_LINES)]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        # About twelve markers a line, so that long curves stay readable.
        every = max(1, len(points) // 12)
        axes.plot(
            xs,
            ys,
            color=colour,
            linestyle=line if position < len(_LINES) else "--",
            marker=marker,
            markevery=every,
            markersize=5,
            linewidth=1.6,
            label=_short(name, 40),
        )
    for position, (name, value) in enumerate(reference.items()):
        style = _REFERENCES[position % len(_REFERENCES)]
        axes.axhline(value, color="#555555", linestyle=style, linewidth=1.4, label=_short(name, 40), zorder=1)
    all_x = [x for points in curves.values() for x, _ in points]
    if max(all_x, default=0) >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k and 1M rather than a factor of 1e6
    elif all(x == int(x) for x in all_x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no round 2.5
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = max(1, min(len(labels), 130 // (longest + 8)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, handlelength=3)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


@contextmanager
def _style() -> Iterator[None]:
    """Settings that make files reproducible and take names as they are ("$" starts no formula)."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "fedit", "text.parse_math": False, "font.size": 10}):
        yield


def _save(figure: "Figure", path: Path) -> None:
    # No date and no version, so that equal pictures are equal files.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
    if path.suffix not in metadata:
        raise ConfigError(f"cannot draw {path}: pictures are saved as .png or .svg.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], metadata=metadata[path.suffix])
    files.write_bytes(path, buffer.getvalue())
