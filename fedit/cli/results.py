"""What a finished run prints: the table, a few answers side by side, where everything is, what to do next."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedit.cli.progress import duration
from fedit.launch import Result
from fedit.report.summary import (
    NOTHING_MEASURED,
    PREFERENCES,
    SHOWN_EXAMPLES,
    not_heard,
    protected,
    spread,
    traffic_text,
)


def print_result(console: Console, result: Result) -> None:
    """Print the result of a run for people."""
    summary = result.summary
    console.print()
    if "arms" in summary:
        _print_arms(console, _mapping(summary["arms"]))
        _print_examples(console, summary)
    else:
        _print_before_after(console, summary)
    _print_totals(console, result.folder, summary)


def _print_arms(console: Console, arms: Mapping[str, object]) -> None:
    table = Table(title="Held-out instructions of all categories", title_justify="left", header_style="bold")
    table.add_column("arm", no_wrap=True)
    for heading in ("loss", "exact match", "training tokens"):
        table.add_column(heading, justify="right")
    for name, values in arms.items():
        arm = _mapping(values)
        style = "bold green" if name == "federated" else None
        table.add_row(
            name,
            f"{_number(arm['loss']):.3f}",
            f"{_number(arm['exact_match']):.1%}",
            f"{_number(arm['tokens']):,.0f}",
            style=style,
        )
    console.print(table)
    console.print(
        "local:<client> trained alone for as many steps as in the federation had it always been chosen;\n"
        "local_total:<client> and centralised with as many tokens as the whole federation.",
        style="dim",
        highlight=False,
    )


def _print_examples(console: Console, summary: Mapping[str, object]) -> None:
    examples = summary.get("examples")
    if not isinstance(examples, list):
        return
    for example in spread(examples, SHOWN_EXAMPLES):
        console.print()
        console.print(Text(str(example["instruction"]), style="bold"))
        if example["context"]:
            console.print(Text(str(example["context"]), style="italic"))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        table.add_row("", "expected", Text(str(example["expected"]), style="cyan"))
        for name, answer in _mapping(example["answers"]).items():
            good = bool(_mapping(answer)["right"])
            mark = Text("✓" if good else "✗", style="green" if good else "red")
            table.add_row(mark, name, Text(str(_mapping(answer)["text"])))
        console.print(table)


def _print_before_after(console: Console, summary: Mapping[str, object]) -> None:
    if summary["held_out"] is None:
        console.print(NOTHING_MEASURED)
        return
    held_out = _mapping(summary["held_out"])
    before, after = _mapping(held_out["before"]), _mapping(held_out["after"])
    table = Table(title="Held-out rows", title_justify="left", header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name in (*PREFERENCES, "loss", "perplexity", "token_accuracy", "exact_match"):
        if name in after:
            table.add_row(name.replace("_", " "), f"{_number(before[name]):.3f}", f"{_number(after[name]):.3f}")
    for name, pair in _mapping(summary["per_category"]).items():
        both = _mapping(pair)
        table.add_row(
            f"  loss, {name}", f"{_number(both['before']):.3f}", f"{_number(both['after']):.3f}", style="dim"
        )
    console.print(table)


def _counted(count: object, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _print_totals(console: Console, folder: Path, summary: Mapping[str, object]) -> None:
    failed, told = summary["failed_updates"], not_heard(summary)
    console.print(
        f"\n{_counted(summary['rounds'], 'round')} over {_counted(summary['clients'], 'client')} in "
        f"{duration(_number(summary['seconds']))}: {_number(summary['tokens']):,.0f} tokens trained, "
        f"{traffic_text(summary, 'bytes_up')} up, {traffic_text(summary, 'bytes_down')} down"
        + (f", {failed} updates rejected" if failed else "")
        + (f".{told}" if told else ""),
        highlight=False,
        soft_wrap=True,
    )
    if said := protected(summary):
        console.print(f"{said.strip()} fedit privacy report {folder}", highlight=False, soft_wrap=True)
    for what, name in (
        ("report", "report.html"),
        ("summary", "summary.md"),
        ("partition", "partition.png"),
        ("learning curves", "curves.png"),
        ("adapter (PEFT)", "adapter"),
    ):
        if (folder / name).exists():
            console.print(f"  {what:16s} {folder / name}", highlight=False, soft_wrap=True)
    console.print(f"\nNext: [bold]fedit chat {folder}[/]", highlight=False, soft_wrap=True)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, found {value!r}")
    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
