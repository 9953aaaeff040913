"""How commands speak: results on standard output, everything else on standard error, JSON for scripts."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

AsJson = Annotated[
    bool, typer.Option("--json", help="Machine-readable JSON on standard output, and nothing else there.")
]

_PIPE_WIDTH = 120
"""Columns where there is no terminal to ask: files and pipes."""


def console() -> Console:
    """Return the console for results; plain text where there is no terminal or NO_COLOR is set."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_PIPE_WIDTH if piped else None, highlight=False, emoji=False, markup=False)


def notes() -> Console:
    """Return the console for what is no result, on standard error."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=not sys.stderr.isatty())


def print_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """Print ``value`` as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal that something takes a while."""
    quiet = notes()
    if not quiet.is_terminal:
        yield
        return
    with quiet.status(text):
        yield


def plain_table(*headings: str, numbers: Sequence[str] = (), title: str | None = None) -> Table:
    """Return a table without rules, whose columns named in ``numbers`` are aligned on the right."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold"
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left")
    return table
