"""A study's result on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from fedit.report.numbers import number_text
from fedit.study.strategies import rounds_text, short


def print_study(console: Console, summary: Mapping[str, object], folder: Path) -> None:
    """Print every arm's most important numbers with their intervals, and where the report is."""
    arms = cast("dict[str, dict[str, Any]]", summary["arms"])
    generated = "exact_match" in next(iter(arms.values()))
    titles = ["held-out loss", *(["exact match", "ROUGE-L"] if generated else []), "tokens", "rate"]
    table = Table("arm", *titles, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for name, arm in arms.items():
        cells = [f"{arm['loss']:.3f} [dim]{_range(arm['ci']['loss'], '.2f')}[/]"]
        if generated:
            cells += [f"{arm['exact_match']:.0%} [dim]{_range(arm['ci']['exact_match'], '.0%')}[/]"]
            cells += [f"{arm['rouge_l']:.3f}"]
        rate = arm["learning_rate"]
        table.add_row(name, *cells, f"{arm['tokens']:,.0f}", "" if rate is None else f"{rate:g}")
    console.print(table)
    _print_strategies(console, summary, arms)
    seeds = cast("list[int]", summary["seeds"])
    over = "rows" if len(seeds) == 1 else f"rows and {len(seeds)} seeds"
    console.print(f"[dim]After each number its 95 % interval over {over}.[/]", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _print_strategies(console: Console, summary: Mapping[str, object], arms: Mapping[str, dict[str, Any]]) -> None:
    """Print what several federations sent, and their losses at the same number of bytes."""
    equal = cast("dict[str, Any]", summary["equal_bytes"])
    federations = {name: arm for name, arm in arms.items() if "client_bytes_up" in arm}
    if len(federations) < 2:
        return
    limit = "" if equal["budget_bytes"] is None else f"at {number_text(equal['budget_bytes'], 'bytes')}"
    titles = ["clients' loss", "error", "up", "down", "in all", "time", f"loss {limit}".strip(), "round"]
    table = Table("strategy", *titles, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for name, arm in federations.items():
        own = equal["arms"].get(name, {"loss": None, "rounds": []})
        table.add_row(
            short(name) + (" *" if arm["partial"] else ""),
            number_text(arm["per_client"].get("mean"), ".3f"),
            number_text(arm["aggregation_error"], ".2g"),
            number_text(arm["client_bytes_up"], "bytes"),
            number_text(arm["client_bytes_down"], "bytes"),
            number_text(arm["bytes_up"] + arm["bytes_down"], "bytes"),
            number_text(arm["seconds"], "duration"),
            number_text(own["loss"], ".3f"),
            rounds_text(own["rounds"]),
        )
    console.print(table)
    about = "Up and down: of a client in a round."
    if any(arm["partial"] for arm in federations.values()):
        about += " * The server's model lacks what clients keep; compare the clients' loss alone."
    console.print(f"[dim]{about}[/]", highlight=False)


def _range(bounds: list[float], form: str) -> str:
    return f"{bounds[0]:{form}}…{bounds[1]:{form}}"
