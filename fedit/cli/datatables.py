"""Tables and JSON of ``fedit data``: the audit, the partition, the counts."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from rich.console import Console, Group
from rich.text import Text

from fedit.cli.output import plain_table
from fedit.config import RunConfig
from fedit.data.check import Audit, Finding
from fedit.inspection import ADVICE, Inspection, Lengths, Shown, lengths, quantile_names, total
from fedit.job import Job

MOST_CLIENTS_SHOWN = 30
MOST_CATEGORIES_SHOWN = 12
_NAMED_PLACES = 3

_REMOVED = {
    "duplicate": "duplicate",
    "empty_answer": "without an answer",
    "same_answers": "with two equal answers",
    "prompt_in_held_out": "whose prompt is held out",
    "prompt_in_validation": "whose prompt is in validation",
    "unassigned": "left out by the partition",
}


# --- check ---


def print_check(out: Console, config: RunConfig, found: Inspection) -> None:
    """Print an inspection for people."""
    audit = found.audit
    out.print(
        Text.assemble(
            (config.dataset, "bold"),
            f": {audit.rows:,} rows, {audit.tokens:,} tokens, of which "
            f"{audit.supervised_tokens:,} ({_share(audit.supervised_tokens, audit.tokens)}) are learnt",
        )
    )
    if audit.pairs:
        read = "compares their answers" if config.objective == "dpo" else "learns the chosen answers alone"
        out.print(f"{audit.pairs:,} rows are preferences; objective {config.objective} {read}")
    out.print(
        f"model {config.model}, template {found.job.template.name if found.job else config.prompt_template}, "
        f"max_length {config.max_length}",
        style="dim",
    )
    out.print()
    _print_findings(out, _findings(audit))
    names = quantile_names()
    table = plain_table("tokens of a row", *names, numbers=names)
    table.add_row("all", *map(str, audit.lengths))
    table.add_row("learnt", *map(str, audit.supervised_lengths))
    out.print(table)
    if found.job is not None:
        out.print()
        out.print(_split_line(found.job))
    for example in found.examples:
        print_example(out, example)


def check_as_json(found: Inspection) -> dict[str, object]:
    """Return an inspection for scripts."""
    audit, names = found.audit, quantile_names()
    return {
        "rows": audit.rows,
        "tokens": audit.tokens,
        "supervised_tokens": audit.supervised_tokens,
        "pairs": audit.pairs,
        "findings": [
            {"name": name, "title": f.title, "count": f.count, "where": list(f.where), "advice": ADVICE[name]}
            for name, f in _findings(audit).items()
        ],
        "lengths": dict(zip(names, audit.lengths, strict=False)),
        "supervised_lengths": dict(zip(names, audit.supervised_lengths, strict=False)),
        "run": _split_as_json(found.job) if found.job else None,
        "refused": str(found.refusal) if found.refusal else None,
        "examples": [{"where": e.where, "pieces": [asdict(piece) for piece in e.pieces]} for e in found.examples],
    }


def _findings(audit: Audit) -> dict[str, Finding]:
    return {name: getattr(audit, name) for name in ADVICE}


def _print_findings(out: Console, findings: Mapping[str, Finding]) -> None:
    table = plain_table("rows", "finding", numbers=["rows"])
    for name, finding in findings.items():
        if not finding.count:
            table.add_row(Text("0", style="dim"), Text(finding.title, style="dim"))
            continue
        places = list(finding.where[:_NAMED_PLACES]) + (["…"] if finding.count > _NAMED_PLACES else [])
        lines = Group(
            Text(finding.title, style="bold yellow"),
            Text(f"  at {', '.join(places)}"),
            Text(f"  {ADVICE[name]}", style="dim"),
        )
        table.add_row(Text(f"{finding.count:,}", style="bold yellow"), lines)
    out.print(table)
    out.print()


def print_example(out: Console, example: Shown) -> None:
    """Print a row with what is learnt of it marked, and coloured where there are colours."""
    out.print()
    out.print(
        Text.assemble((example.where, "bold"), (", as it is learnt («…»: what the model is to write)", "dim"))
    )
    text = Text()
    for piece in example.pieces:
        if piece.supervised:
            text.append("«", style="bold green").append(piece.text, style="green").append("»", style="bold green")
        else:
            text.append(piece.text)
    out.print(text, soft_wrap=True)


# --- partition ---


def print_partition(out: Console, job: Job) -> None:
    """Print who holds what, and how unequal that is."""
    clients = {client: len(rows) for client, rows in job.clients.items()}
    categories = sorted({name for counts in job.category_counts.values() for name in counts})
    if len(clients) > MOST_CLIENTS_SHOWN:
        _print_many_clients(out, job, clients, categories)
    elif len(categories) > MOST_CATEGORIES_SHOWN:
        _print_largest_categories(out, job, clients)
    else:
        _print_counts(out, job, clients, categories)
    out.print()
    for line in _statistics_lines(job):
        out.print(f"  {line}")
    out.print()
    out.print(_split_line(job))
    out.print(f"partition {job.partition.scheme}, hash {job.partition.hash[:12]}", style="dim")


def partition_as_json(job: Job) -> dict[str, object]:
    """Return a partition for scripts."""
    return {
        "scheme": job.partition.scheme,
        "options": dict(job.partition.options),
        "seed": job.partition.seed,
        "hash": job.partition.hash,
        "clients": {
            client: {"rows": len(rows), "categories": job.category_counts.get(client, {})}
            for client, rows in job.clients.items()
        },
        "statistics": job.statistics,
        **_split_as_json(job),
    }


def _print_counts(out: Console, job: Job, clients: Mapping[str, int], categories: list[str]) -> None:
    # What the clients' names and the sums leave is shared by the categories, whose names are cut to fit.
    taken = max(map(len, clients)) + len(str(sum(clients.values()))) + 4
    room = max((out.width - taken) // max(len(categories), 1) - 2, 5)
    short = [name if len(name) <= room else name[: room - 1] + "…" for name in categories]
    table = plain_table("client", *short, "all", numbers=[*short, "all"])
    for column in table.columns:
        column.no_wrap = True
    for client, rows in clients.items():
        counts = job.category_counts.get(client, {})
        cells = [Text(f"{counts[n]}") if counts.get(n) else Text("·", style="dim") for n in categories]
        table.add_row(Text(client), *cells, str(rows))
    sums = [sum(counts.get(name, 0) for counts in job.category_counts.values()) for name in categories]
    table.add_row(Text("all"), *map(str, sums), str(sum(clients.values())), style="bold")
    out.print(table)


def _print_largest_categories(out: Console, job: Job, clients: Mapping[str, int]) -> None:
    table = plain_table("client", "rows", "categories", "most of", numbers=["rows", "categories"])
    for client, rows in clients.items():
        counts = sorted(job.category_counts.get(client, {}).items(), key=lambda item: (-item[1], item[0]))
        most = ", ".join(f"{name} {count}" for name, count in counts[:3])
        table.add_row(Text(client), str(rows), str(len(counts)), Text(most))
    out.print(table)


def _print_many_clients(out: Console, job: Job, clients: Mapping[str, int], categories: list[str]) -> None:
    out.print(f"{len(clients)} clients; what they hold, by category:")
    numbers = ["rows", "clients", "fewest", "median", "most"]
    table = plain_table("category", *numbers, numbers=numbers)
    for name in categories:
        held = [counts[name] for counts in job.category_counts.values() if counts.get(name)]
        table.add_row(Text(name), f"{sum(held):,}", f"{len(held)}", *_spread(held))
    sizes = list(clients.values())
    table.add_row("all", f"{sum(sizes):,}", f"{len(sizes)}", *_spread(sizes), style="bold")
    out.print(table)


def _spread(counts: list[int]) -> tuple[str, str, str]:
    return f"{min(counts):,}", f"{np.median(counts):,.0f}", f"{max(counts):,}"


def _statistics_lines(job: Job) -> list[str]:
    found = {name: float("nan") if value is None else value for name, value in job.statistics.items()}
    lines = [
        "rows of a client: {size_min:,} to {size_max:,}, median {size_median:,.0f}, Gini {size_gini:.2f} "
        "(weighs like {effective_clients:.1f} equal clients)"
    ]
    if job.statistics["categories"] is not None:
        lines += [
            "categories of a client: {categories_min} to {categories_max} of {categories}",
            "mix of categories against the pooled one, 0 same to 1 nothing in common:",
            "  Jensen-Shannon: mean {jensen_shannon_mean:.2f}, max {jensen_shannon_max:.2f}",
            "  total variation: mean {total_variation_mean:.2f}, max {total_variation_max:.2f}",
            "label entropy ratio: {label_entropy_ratio:.2f} (1 all alike, 0 one category each)",
        ]
    if job.statistics["length_distance_mean"] is not None:
        lines.append(
            "lengths of rows against the pooled ones: mean {length_distance_mean:.1f}, max "
            "{length_distance_max:.1f} tokens apart"
        )
    return [line.format(**found) for line in lines]


# --- stats ---


def print_stats(out: Console, job: Job) -> None:
    """Print rows and tokens by category."""
    names = ["training", "validation", "held-out", "tokens", "learnt", *quantile_names()]
    table = plain_table("category", *names, numbers=names)
    for name, found in lengths(job).items():
        table.add_row(Text(name), *_cells(found))
    table.add_row("all", *_cells(total(job)), style="bold")
    out.print(table)
    out.print("min to max: tokens of a training row; learnt: share of the tokens that are targets", style="dim")
    out.print()
    out.print(_split_line(job))


def stats_as_json(job: Job) -> dict[str, object]:
    """Return rows and tokens by category for scripts."""
    return {
        "dataset": job.corpus.name,
        **_split_as_json(job),
        "categories": {name: _lengths_as_json(found) for name, found in lengths(job).items()},
        "all": _lengths_as_json(total(job)),
    }


def _cells(found: Lengths) -> list[str]:
    quantiles = [str(tokens) for tokens in found.quantiles] or ["-"] * len(quantile_names())
    counts = (found.training, found.validation, found.held_out, found.tokens)
    return [*(f"{count:,}" for count in counts), f"{found.supervised:.0%}", *quantiles]


def _lengths_as_json(found: Lengths) -> dict[str, object]:
    return {
        "training": found.training,
        "validation": found.validation,
        "held_out": found.held_out,
        "tokens": found.tokens,
        "supervised_share": found.supervised,
        "lengths": dict(zip(quantile_names(), found.quantiles, strict=False)),
    }


# --- all three ---


def _split_line(job: Job) -> str:
    corpus, removed = job.corpus, {name: n for name, n in job.partition.removed.items() if n}
    gone = ", ".join(f"{count:,} {_REMOVED.get(name, name)}" for name, count in removed.items())
    return (
        f"A run trains on {len(corpus.examples):,} rows of {len(job.clients)} clients, with "
        f"{len(corpus.validation):,} for validation and {len(corpus.held_out):,} held out; "
        + (f"removed: {gone}." if gone else "nothing is removed.")
    )


def _split_as_json(job: Job) -> dict[str, object]:
    return {
        "num_clients": len(job.clients),
        "training_rows": len(job.corpus.examples),
        "validation_rows": len(job.corpus.validation),
        "held_out_rows": len(job.corpus.held_out),
        "removed": job.partition.removed,
    }


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.0%}"
