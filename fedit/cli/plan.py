"""``fedit plan``: what a job takes before it is run."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from fedit.cli.flags import with_setting_flags
from fedit.cli.jobs import read_job
from fedit.cli.output import AsJson, console, notes, print_json
from fedit.cli.run import JobArgument, Overrides

EPILOG = """Examples:

fedit plan demo

fedit plan dataset=rows.jsonl num_clients=20 num_rounds=50

fedit plan job.yaml --no-measure --json"""


@with_setting_flags
def plan(
    job: JobArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Arithmetic alone: at once, with times unknown.")
    ] = False,
    *,
    flags: Mapping[str, object],
) -> None:
    """Predict a job's time, memory, traffic, disk and privacy, and show a row as it is learnt.

    Runs a few seconds of the job itself on this machine, in a folder that goes away: its model, its
    rows, its processes. What the numbers rest on is said below them.
    """
    begun = time.perf_counter()
    settings = read_job(job, overrides or [], flags)
    with _telling() as say:
        from fedit.planning.plan import plan as planned

        found = planned(settings.config, measured=not no_measure, begun=begun, say=say)
    if as_json:
        print_json(found.as_dict())
        return
    from fedit.cli import plantables

    out = console()
    plantables.print_plan(out, found)
    plantables.print_row(out, found)


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done."""
    quiet = notes()
    if not quiet.is_terminal:
        yield lambda text: None
        return
    with quiet.status("loading libraries …") as status:
        yield status.update
