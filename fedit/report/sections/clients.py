"""Whose data it was: who holds what, and what each client gets out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedit.report.charts.spec import HeatMap
from fedit.report.document import Block, Column, Fact, Facts, Figure, Row, Section, Table, Text
from fedit.report.numbers import natural_order, number_text

MOST_ROWS = 40
"""Rows of a heat map of clients; where there are more clients, a row stands for several alike."""

MOST_CATEGORIES = 20
"""Columns of a heat map of categories: those with the most rows; the others share one."""

_STATISTICS = (
    ("size_gini", "Gini coefficient of the sizes", ".2f", "0: all equal; towards 1: one client has nearly all"),
    ("effective_clients", "Effective clients", ".1f", "so many equal clients would weigh as unequally"),
    ("categories_median", "Categories of a client, median", ".3g", ""),
    (
        "jensen_shannon_mean",
        "Jensen-Shannon divergence, mean",
        ".2f",
        "of a client's mix of categories from the pooled mix; 0: the same, 1: nothing in common",
    ),
    ("total_variation_mean", "Total variation, mean", ".2f", "of the same mixes, 0 to 1"),
    ("label_entropy_ratio", "Label entropy ratio", ".2f", "1: all clients alike; 0: one category each"),
    ("length_distance_mean", "Distance of row lengths, mean", ".3g", "tokens, Wasserstein-1, from all rows"),
)
"""Field of the statistics, its title, how it is written, what it means."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a client holds: its training rows, and how many of them are of each category."""

    rows: int
    categories: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Group:
    """Clients that share a row of a heat map, by what they hold most of."""

    name: str
    clients: tuple[str, ...]


def partition_section(
    holdings: Mapping[str, Holding], statistics: Mapping[str, float | None], scheme: str
) -> Section:
    """Return who holds what: a heat map of clients and categories, and how unequal they are in numbers."""
    sizes = [mine.rows for mine in holdings.values()]
    text = (
        f"{len(holdings):,} clients hold {sum(sizes):,} training rows, dealt by the scheme {scheme}. "
        f"The smallest has {min(sizes, default=0):,} rows, the largest {max(sizes, default=0):,}."
    )
    blocks: list[Block] = [Text(text)]
    if (figure := _held_figure(holdings)) is not None:
        blocks.append(figure)
    facts = tuple(
        Fact(title, number_text(value, form), note)
        for name, title, form, note in _STATISTICS
        if (value := statistics.get(name)) is not None
    )
    if facts:
        blocks.append(Facts(facts, folded="How unequal the clients are, in numbers"))
    return Section("Who holds what", "partition", tuple(blocks))


def clients_section(
    holdings: Mapping[str, Holding],
    per_category: Mapping[str, float | None],
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    measured: bool,
) -> Section | None:
    """Return what each client gets; None where clients have no losses of their own.

    per_category:  held-out loss of the federated adapter in each category.
    before, after: held-out loss of each client with the base model and with the federated adapter.
    measured:      of its own held-out rows; else expected: the categories' losses weighted by its own mix.
    """
    both = sorted((name for name in before if name in after), key=lambda name: (before[name] - after[name], name))
    if not both:
        return None
    better = sum(after[name] < before[name] for name in both)
    kind = "measured on its own held-out rows" if measured else "expected under its own mix of categories"
    blocks: list[Block] = [
        Text(
            f"The federated adapter has a lower held-out loss than the base model for {better:,} of {len(both):,} "
            f"clients. The loss of a client is {kind}."
        )
    ]
    if (figure := _loss_figure(holdings, per_category, after, measured)) is not None:
        blocks.append(figure)
    half = MOST_ROWS // 2
    shown = both if len(both) <= MOST_ROWS else [*both[:half], *both[-half:]]
    caption = "Held-out loss of each client, those that gain least first"
    caption += "" if len(shown) == len(both) else f" (the {half} that gain least and the {half} that gain most)"
    rows = tuple(
        Row(
            (
                name,
                holdings[name].rows if name in holdings else None,
                before[name],
                after[name],
                after[name] - before[name],
            )
        )
        for name in shown
    )
    columns = (
        Column("client"),
        Column("rows", "number", ",d"),
        Column("base model", "number", ".3f"),
        Column("federated", "number", ".3f"),
        Column("change", "number", "+.3f"),
    )
    blocks.append(Table(caption, columns, rows, folded=len(rows) > 12))
    return Section("What each client gets", "clients", tuple(blocks))


def _held_figure(holdings: Mapping[str, Holding]) -> Figure | None:
    shown, others = _condensed(holdings)
    columns = _categories(shown, last=others)
    if not columns:
        return None
    groups = _groups(holdings)
    values = [
        [_mean([float(shown[client].categories.get(name, 0)) for client in group.clients]) for name in columns]
        for group in groups
    ]
    alone, form = len(groups) == len(holdings), ",d" if len(groups) == len(holdings) else ",.3g"
    chart = HeatMap(
        row_title="client" if alone else "clients",
        column_title="category",
        measure="training rows" if alone else "training rows, mean of the clients",
        rows=tuple(group.name for group in groups),
        columns=columns,
        values=tuple(tuple(value or None for value in row) for row in values),
        form=form,
        zero=True,
        totals=tuple(_mean([float(holdings[client].rows) for client in group.clients]) for group in groups),
        total_title="rows",
        total_form=form,
    )
    mostly = [
        f"{group.name}: mostly {columns[row.index(max(row))]}" for group, row in zip(groups, values, strict=True)
    ]
    each = (
        "" if alone else f" A row stands for several of the {len(holdings):,} clients that hold most of the same."
    )
    return Figure(
        "partition",
        "Training rows per client and category",
        chart,
        f"Rows of {len(holdings):,} clients in {len(columns)} categories. {_some(mostly)}.",
        f"The stronger the shade, the more rows.{each}",
    )


def _loss_figure(
    holdings: Mapping[str, Holding],
    per_category: Mapping[str, float | None],
    after: Mapping[str, float],
    measured: bool,
) -> Figure | None:
    """Return a heat map of the losses in the categories that clients hold, with each one's own beside them."""
    mine = {name: holding for name, holding in holdings.items() if name in after}
    known, others = _condensed(mine)
    columns = tuple(name for name in _categories(known) if name != others and per_category.get(name) is not None)
    if not columns:
        return None
    groups = _groups(mine)
    own = tuple(_mean([after[client] for client in group.clients]) for group in groups)
    chart = HeatMap(
        row_title="client" if len(groups) == len(known) else "clients",
        column_title="category",
        measure="held-out loss (nats per token)",
        rows=tuple(group.name for group in groups),
        columns=columns,
        values=tuple(
            tuple(
                per_category[name] if any(known[client].categories.get(name) for client in group.clients) else None
                for name in columns
            )
            for group in groups
        ),
        form=".2f",
        totals=own,
        total_title="measured" if measured else "expected",
        total_form=".2f",
    )
    said = [f"{group.name}: {number_text(value, '.2f')}" for group, value in zip(groups, own, strict=True)]
    right = "measured on its own held-out rows" if measured else "expected under its mix of categories"
    return Figure(
        "clients",
        "Held-out loss per client and category",
        chart,
        f"Losses of {len(known):,} clients. {_some(said)}.",
        "Loss of the federated adapter in the categories that a client holds; on the right the client's own loss, "
        f"{right}. The stronger the shade, the higher the loss.",
    )


def _condensed(holdings: Mapping[str, Holding]) -> tuple[dict[str, Holding], str]:
    """Return the holdings with the smallest categories put together, and the name of those ("": there are few)."""
    totals: dict[str, int] = {}
    for mine in holdings.values():
        for name, count in mine.categories.items():
            totals[name] = totals.get(name, 0) + count
    if len(totals) <= MOST_CATEGORIES:
        return dict(holdings), ""
    largest = set(sorted(totals, key=lambda name: (-totals[name], name))[: MOST_CATEGORIES - 1])
    others = f"{len(totals) - len(largest)} others"
    condensed = {}
    for client, mine in holdings.items():
        kept = {name: count for name, count in mine.categories.items() if name in largest}
        rest = sum(mine.categories.values()) - sum(kept.values())
        condensed[client] = Holding(mine.rows, {**kept, others: rest} if rest else kept)
    return condensed, others


def _categories(holdings: Mapping[str, Holding], last: str = "") -> tuple[str, ...]:
    """Return the names of categories that anyone holds, in natural order, ``last`` at the end."""
    names = {name for mine in holdings.values() for name, count in mine.categories.items() if count}
    return tuple(sorted(names, key=lambda name: (name == last, natural_order(name))))


def _groups(holdings: Mapping[str, Holding]) -> list[_Group]:
    """Return each client alone, or equally many of those that hold most of the same category."""
    if len(holdings) <= MOST_ROWS:
        return [_Group(name, (name,)) for name in sorted(holdings, key=natural_order)]
    mostly = {name: _main_category(mine) for name, mine in holdings.items()}
    order = sorted(holdings, key=lambda name: (mostly[name], -holdings[name].rows, natural_order(name)))
    each = -(-len(order) // MOST_ROWS)
    groups = []
    for start in range(0, len(order), each):
        members = tuple(order[start : start + each])
        middle = mostly[members[len(members) // 2]]
        groups.append(
            _Group(f"{len(members):,} with {middle}" if middle else f"{len(members):,} clients", members)
        )
    return groups


def _main_category(holding: Holding) -> str:
    """Return the category with the most rows, the first by name of several; "" if there is none."""
    return min(holding.categories, key=lambda name: (-holding.categories[name], name), default="")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _some(parts: Sequence[str]) -> str:
    return "; ".join(parts[:12]) + (" …" if len(parts) > 12 else "")
