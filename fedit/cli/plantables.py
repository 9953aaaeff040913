"""A plan as people read it."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedit.cli.datatables import print_example
from fedit.cli.output import plain_table
from fedit.cli.progress import duration
from fedit.inspection import first_example
from fedit.planning.amounts import Range
from fedit.planning.plan import Memory, Plan

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def print_plan(out: Console, plan: Plan) -> None:
    """Print what is predicted, what does not suffice, and what that rests on."""
    job, amounts = plan.job, plan.amounts
    config = job.config
    out.print(
        Text(f"{config.strategy} on {config.model}: {len(job.clients)} clients, {job.cohort_size} a round, "
             f"{config.num_rounds} rounds", style="bold")
    )  # fmt: skip
    table = plain_table("", "expected", "between", "", numbers=("expected", "between"))
    total = plan.total_seconds
    if total is None:
        table.add_row("time", "unknown", "", "measure it: without --no-measure" if plan.measured is None else "")
    else:
        table.add_row("time", _time(total.expected), f"{_time(total.low)} to {_time(total.high)}", _parts(plan))
    held = plan.memory
    _add(table, "peak memory", held.everything, _memory_note(plan, held))
    if held.device is not None:
        _add(table, "peak GPU memory", held.device, f"of {size(held.device_free or 0)} free")
    _add(table, "sent up", amounts.bytes_up, f"{size(amounts.client_up)} a client and round")
    _add(table, "sent down", amounts.bytes_down, f"{size(amounts.client_down)} a client and round")
    _add(table, "disk", amounts.disk, f"of {size(plan.disk_free)} free")
    table.add_row(
        "trained",
        f"{amounts.trainable:,}",
        "",
        f"parameters, {amounts.trainable / amounts.layers.base:.2%} of the base",
    )
    table.add_row("steps", f"{amounts.steps.expected:,.0f}", _between(amounts.steps, "{:,.0f}"), _steps(plan))
    table.add_row("tokens", f"{amounts.tokens.expected:,.0f}", _between(amounts.tokens, "{:,.0f}"), "in training")
    if amounts.epsilon is not None:
        table.add_row(
            "epsilon", f"{amounts.epsilon.expected:.4g}", _between(amounts.epsilon, "{:.4g}"), config.privacy
        )
    elif config.privacy != "none":
        table.add_row("epsilon", "unbounded", "", "more noise, or poisson selection: fedit privacy plan")
    out.print(table, soft_wrap=True)
    for line in plan.advice:
        out.print(Text.assemble(("! ", "bold yellow"), line), soft_wrap=True)
    out.print(Text("What this rests on", style="bold"))
    for line in plan.assumptions:
        out.print(Text(f"- {line}"), soft_wrap=True)


def print_row(out: Console, plan: Plan) -> None:
    """Print a training row with what is learnt of it."""
    print_example(out, first_example(plan.job))


def size(amount: float) -> str:
    """Return bytes as people say them."""
    for unit, name in _UNITS:
        if amount >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount:.0f} B"


def _add(table: Table, name: str, amount: Range, note: str) -> None:
    table.add_row(
        name, size(amount.expected), "" if amount.exact else f"{size(amount.low)} to {size(amount.high)}", note
    )


def _between(amount: Range, form: str) -> str:
    return "" if amount.exact else f"{form.format(amount.low)} to {form.format(amount.high)}"


def _time(seconds: float) -> str:
    return duration(max(seconds, 1.0))


def _parts(plan: Plan) -> str:
    longest = sorted(plan.seconds.items(), key=lambda item: -item[1].expected)[:3]
    return ", ".join(f"{name} {_time(span.expected)}" for name, span in longest if span.expected >= 1)


def _memory_note(plan: Plan, held: Memory) -> str:
    free = "" if held.free is None else f" of {size(held.free)} free"
    if plan.workers == 1:
        return f"one process{free}"
    return f"server {size(held.server)}, each of {plan.workers} workers {size(held.client)}{free}"


def _steps(plan: Plan) -> str:
    steps = plan.amounts.steps_per_client
    if steps is None:
        return f"{plan.job.config.local_tokens:,} tokens a client and round"
    few, many = steps
    return f"{few:,} a client and round" if few == many else f"{few:,} to {many:,} a client and round"
