"""What every client runs for itself, beside the adapter that is everybody's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedit.report.charts.spec import HeatMap
from fedit.report.document import Block, Column, Figure, Row, Section, Table, Text
from fedit.report.numbers import natural_order, number_text

MOST_ROWS = 40
"""Clients in a heat map: where there are more, those that lose most."""

MOST_COLUMNS = 20
"""Categories in a heat map: the first of them in their order."""

KINDS = {
    "global": "the global adapter",
    "personal": "the client's own",
    "tuned": "fine-tuned",
    "local": "trained alone",
}
"""Kind of model -> what a report calls it."""


@dataclass(frozen=True, slots=True)
class Client:
    """Held-out losses of what a client runs.

    seen:       whether it was in the federation.
    own:        kind of model -> loss that the client may expect, or that was measured on its own rows.
    categories: kind of model -> category -> loss.
    """

    name: str
    seen: bool
    own: Mapping[str, float]
    categories: Mapping[str, Mapping[str, float | None]]


def personal_section(
    clients: Sequence[Client],
    per_category: Mapping[str, float | None],
    summaries: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    steps: int,
    measured: bool,
) -> Section:
    """Return models against categories, and what all clients together gain from a model of their own.

    per_category: losses of the global adapter.
    summaries:    "seen" and "unseen" -> kind of model -> numbers over the clients.
    steps:        by which clients fine-tuned what they run; 0: none did.
    measured:     whether a client's loss is of its own held-out rows.
    """
    clients = sorted(clients, key=lambda client: natural_order(client.name))
    unseen = sum(not client.seen for client in clients)
    own = "measured on its own held-out rows" if measured else "expected under its own mix of categories"
    text = f"What each of {len(clients):,} clients runs for itself after the last round. A client's loss is {own}."
    if steps:
        text += f" Fine-tuned is what a client runs after {steps:,} more steps on its own rows."
    if unseen:
        text += f" {unseen:,} clients took no part in the federation."
    blocks: list[Block] = [Text(text), _numbers(summaries)]
    measured_in = [
        kind for kind in ("personal", "tuned") if any(client.categories.get(kind) for client in clients)
    ]
    kinds = measured_in if per_category else []
    blocks += [_figure(kind, clients, per_category) for kind in kinds]
    blocks.append(_clients(clients))
    return Section("What clients run for themselves", "personal", tuple(blocks))


def _numbers(summaries: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    fields = ("mean", "worst_decile", "std", "gap_to_global", "gap_to_local")
    rows = [
        Row(
            (
                KINDS[kind] + (" (never in a cohort)" if group == "unseen" else ""),
                int(values["clients"]) if "clients" in values else None,
                *(values.get(field) for field in fields),
            )
        )
        for group, kinds in summaries.items()
        for kind in KINDS
        if (values := kinds.get(kind)) is not None
    ]
    columns = (
        Column("model"),
        Column("clients", "number", ",d"),
        Column("mean loss", "number", ".3f"),
        Column("worst tenth", "number", ".3f"),
        Column("deviation", "number", ".3f"),
        Column("against global", "number", "+.3f"),
        Column("against alone", "number", "+.3f"),
    )
    return Table(
        "Held-out loss over clients; the last columns are means over those that have both", columns, tuple(rows)
    )


def _figure(kind: str, clients: Sequence[Client], per_category: Mapping[str, float | None]) -> Figure:
    mine = [client for client in clients if client.categories.get(kind)]
    shown = mine
    if len(mine) > MOST_ROWS:
        worst = sorted(mine, key=lambda client: -client.own.get(kind, 0.0))[:MOST_ROWS]
        shown = [client for client in mine if client in worst]
    columns = tuple(sorted(per_category, key=natural_order))[:MOST_COLUMNS]
    totals = tuple(client.own.get(kind) for client in shown)
    known = [value for client in mine if (value := client.own.get("global")) is not None]
    chart = HeatMap(
        row_title="model",
        column_title="category",
        measure="held-out loss (nats per token)",
        rows=("global", *(client.name + ("" if client.seen else " (unseen)") for client in shown)),
        columns=columns,
        values=(
            tuple(per_category[name] for name in columns),
            *(tuple(client.categories[kind].get(name) for name in columns) for client in shown),
        ),
        form=".2f",
        totals=(sum(known) / len(known) if known else None, *totals),
        total_title="own mix",
        total_form=".2f",
    )
    said = "; ".join(f"{client.name}: {number_text(client.own.get(kind), '.2f')}" for client in shown[:5])
    some = (
        "" if len(shown) == len(mine) else f" Of {len(mine):,} clients the {len(shown)} that lose most are shown."
    )
    return Figure(
        f"personal-{kind}",
        f"Loss of every client's model in every category: {KINDS[kind]}",
        chart,
        f"Losses of {len(shown)} models in {len(columns)} categories. On its own mix, {said}.",
        "A row is a model, the first everybody's; on the right its loss on what its client may be asked (for the "
        f"global adapter the mean over clients). The stronger the shade, the higher the loss.{some}",
    )


def _clients(clients: Sequence[Client]) -> Table:
    kinds = [kind for kind in KINDS if any(kind in client.own for client in clients)]
    columns = (Column("client"), Column("in the federation"), *(Column(KINDS[k], "number", ".3f") for k in kinds))
    rows = tuple(
        Row((client.name, "yes" if client.seen else "no", *(client.own.get(kind) for kind in kinds)))
        for client in clients
    )
    return Table("Held-out loss of each client on what it may be asked", columns, rows, folded=len(rows) > 12)
