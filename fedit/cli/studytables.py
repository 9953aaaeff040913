"""A study's result on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table


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
    seeds = cast("list[int]", summary["seeds"])
    over = "rows" if len(seeds) == 1 else f"rows and {len(seeds)} seeds"
    console.print(f"[dim]After each number its 95 % interval over {over}.[/]", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _range(bounds: list[float], form: str) -> str:
    return f"{bounds[0]:{form}}…{bounds[1]:{form}}"
