"""A study's result on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

TITLES = {"loss": "loss", "token_accuracy": "token acc.", "exact_match": "exact match", "rouge_l": "ROUGE-L"}


def print_study(console: Console, summary: Mapping[str, object], folder: Path) -> None:
    """Print every arm's numbers with their intervals, and where the report is."""
    arms = cast("dict[str, dict[str, object]]", summary["arms"])
    first = next(iter(arms.values()))
    metrics = [name for name in TITLES if name in first]
    table = Table("arm", *(TITLES[name] for name in metrics), "tokens", "rate", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for role, arm in arms.items():
        bounds = cast("dict[str, list[float]]", arm["ci"])
        rate = arm["learning_rate"]
        table.add_row(
            role,
            *(f"{arm[name]:.3f} [dim]{_range(bounds[name])}[/]" for name in metrics),
            f"{arm['tokens']:,.0f}",
            "" if rate is None else f"{rate:g}",
        )
    console.print(table)
    seeds = cast("list[int]", summary["seeds"])
    over = "rows" if len(seeds) == 1 else f"rows and {len(seeds)} seeds"
    console.print(f"[dim]In brackets: 95 % intervals over {over}.[/]", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _range(bounds: list[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
