"""``fedit doctor``: is this machine able to run fedit, and if not, what to do."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fedit.cli.output import AsJson, console, notes, print_json

if TYPE_CHECKING:
    from fedit.diagnose import Check

EPILOG = """Examples:

fedit doctor

fedit doctor --no-smoke --json

fedit doctor --model path/to/model"""

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    as_json: AsJson = False,
    smoke: Annotated[
        bool, typer.Option("--smoke/--no-smoke", help="Also train two clients for one step, about 30 seconds.")
    ] = True,
    model: Annotated[
        str | None, typer.Option("--model", help="Base model of the smoke run. Default: the embedded one.")
    ] = None,
) -> None:
    """Check versions, hardware, disk, model and network, then train for a moment; say what to do about problems.

    The output is meant to be pasted into a report. Warnings leave the exit code 0; a problem makes it 1.
    The smoke run writes to a temporary folder; it downloads the default model if that is not here yet.
    """
    from fedit.diagnose import checks

    out = console()
    found: list[Check] = []
    group = ""
    for check in checks(model=model, smoke=smoke, say=lambda text: notes().print(text, style="dim")):
        found.append(check)
        if as_json:
            continue
        if check.group != group:
            group = check.group
            out.print(Text(group, style="bold"))
        _print(out, check)
    failed = any(check.status == "problem" for check in found)
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        _print_verdict(out, found)
    if failed:
        raise typer.Exit(1)


def _print(out: Console, check: "Check") -> None:
    line = Text.assemble((f"  {check.status:8s}", _STYLES[check.status]), f"{check.name}: {check.found}")
    out.print(line, soft_wrap=True)
    if check.status != "ok":
        out.print(f"          → {check.advice}", soft_wrap=True)


def _print_verdict(out: Console, found: "list[Check]") -> None:
    counts = Counter(check.status for check in found)
    out.print()
    style = "red" if counts["problem"] else "yellow" if counts["warning"] else "green"
    out.print(f"problems: {counts['problem']}, warnings: {counts['warning']}", style=f"bold {style}")
