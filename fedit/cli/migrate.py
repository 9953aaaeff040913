"""``fedit import``: jobs, rows, templates and adapters of other frameworks."""

from pathlib import Path
from typing import Annotated

import typer

from fedit.cli.output import AsJson, console, notes, plain_table, print_json

EPILOG = """Examples:

fedit import shepherd data/10 templates/alpaca.json run.sh --out imported/shepherd

fedit import shepherd lora-shepherd/10 data/10 --out imported/adapter

fedit import openfedllm training_scripts/run_sft.sh

fedit import fedllm-bench wildchat_50c.json all.sh

fedit import flowertune pyproject.toml"""


def import_(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="shepherd, openfedllm, fedllm-bench or flowertune.")],
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", help="Its files: data, templates, scripts with arguments, adapters."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the job. Default: imported/<tool>.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn another framework's data, templates, arguments and adapters into a job of fedit's.

    Writes job.yaml, what belongs to it, and NOTES.md: what was taken over value by value, what differs on purpose,
    what has no equivalent and what is left to decide. Nothing of theirs is run, and no pickle is loaded.
    """
    from fedit.migration.tools import import_from

    done = import_from(tool, paths, out or Path("imported") / tool)
    if as_json:
        print_json(done.as_dict())
        return
    results, draft = console(), done.draft
    table = plain_table(draft.tool, "value", "fedit", "value")
    for taken in draft.taken:
        table.add_row(taken.theirs, str(taken.value), taken.ours, str(taken.ours_value))
    results.print(table)
    for title, lines in (
        ("Differs, on purpose", draft.differs),
        ("No equivalent", [f"{name}: {why}" for name, why in draft.missing.items()]),
        ("Still to do", draft.open),
    ):
        if lines:
            results.print(f"\n{title}")
            for line in lines:
                results.print(f"  - {line}", soft_wrap=True)
    results.print(
        f"\nWritten: {done.folder}/job.yaml, NOTES.md{''.join(f', {name}' for name in sorted(draft.files))}"
    )
    notes().print(f"Look at it from here, since its paths count from here: fedit show {done.folder}/job.yaml")
