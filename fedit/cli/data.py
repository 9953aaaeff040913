"""``fedit data``: look at rows, tokens and partitions before training."""

import typer

app = typer.Typer(name="data", help="Look at rows, tokens and partitions before training.")


@app.command("check")
def check() -> None:
    """Audit the rows."""


@app.command("partition")
def partition() -> None:
    """Deal the rows."""


@app.command("stats")
def stats() -> None:
    """Count the rows."""
