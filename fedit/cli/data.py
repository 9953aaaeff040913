"""``fedit data``: look at rows, tokens and partitions before training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit.cli.jobs import read_job
from fedit.cli.output import AsJson, console, notes, print_json, working

if TYPE_CHECKING:
    from fedit.config import RunConfig
    from fedit.data.manifest import Partition
    from fedit.job import Job

app = typer.Typer(
    name="data",
    help="Look at rows, tokens and partitions before training.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB|RECIPE", help="A job file or a recipe's name; may be left out for key=value alone."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Settings that win over the job file.")
]

CHECK_EPILOG = """Examples:

fedit data check dataset=rows.jsonl

fedit data check dataset=rows.csv columns.instruction=question columns.response=answer

fedit data check demo --examples 3

fedit data check job.yaml max_length=256 --json"""

PARTITION_EPILOG = """Examples:

fedit data partition demo

fedit data partition dataset=rows.jsonl num_clients=20 partitioner=dirichlet alpha=0.1

fedit data partition job.yaml --out figures/partition"""

STATS_EPILOG = """Examples:

fedit data stats demo

fedit data stats dataset=rows.jsonl prompt_template=alpaca

fedit data stats job.yaml model=Qwen/Qwen3-0.6B --json"""


@app.command("check", epilog=CHECK_EPILOG)
def check(
    job: JobArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Training rows to show as they are learnt.")
    ] = 1,
) -> None:
    """Audit a job's rows: what is wrong, where, and what to do about it; how long rows are; what is learnt.

    Rows are loaded and tokenised exactly as in a run.
    What the model learns of an example stands between « and ».
    Findings alone are no error: the exit code is 2 only where a run would refuse.
    """
    config = _config(job, overrides)
    with working("reading and tokenising rows …"):
        from fedit.inspection import inspect

        found = inspect(config, examples=examples)
    from fedit.cli import datatables

    if as_json:
        print_json(datatables.check_as_json(found))
    else:
        datatables.print_check(console(), config, found)
    if found.refusal is not None:
        raise found.refusal


@app.command("partition", epilog=PARTITION_EPILOG)
def partition(
    job: JobArgument = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for partition.json, partition.png and partition.svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Deal a job's rows to clients and show who holds what, without training.

    The same settings and seed always deal the same.
    Other runs can follow the saved partition: partitioner=manifest partition_file=DIR/partition.json
    """
    prepared = _prepare(_config(job, overrides))
    files = _write(prepared, out) if out is not None else []
    from fedit.cli import datatables

    if as_json:
        print_json({**datatables.partition_as_json(prepared), "files": [str(path) for path in files]})
        return
    datatables.print_partition(console(), prepared)
    for path in files:
        console().print(f"  wrote {path}", soft_wrap=True)


@app.command("stats", epilog=STATS_EPILOG)
def stats(job: JobArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Count a job's rows and tokens by category, as a run would use them: cleaned, split and cut to max_length."""
    prepared = _prepare(_config(job, overrides))
    from fedit.cli import datatables

    if as_json:
        print_json(datatables.stats_as_json(prepared))
    else:
        datatables.print_stats(console(), prepared)


def _config(job: str | None, overrides: list[str] | None) -> "RunConfig":
    return read_job(job, overrides or []).config


def _prepare(config: "RunConfig") -> "Job":
    with working("reading, tokenising and dealing rows …"):
        from fedit.prepare import prepare

        job = prepare(config)
        _ = job.statistics
        return job


def _write(job: "Job", folder: Path) -> list[Path]:
    """Write the partition and, where rows have categories, its pictures; return the files."""
    from fedit.report.pictures import partition_figure

    dealt: Partition = job.partition
    dealt.save(folder / "partition.json")
    written = [folder / "partition.json"]
    if not any(job.category_counts.values()):
        notes().print("no pictures: the rows have no categories to draw")
        return written
    for suffix in (".png", ".svg"):
        partition_figure(job.category_counts, folder / f"partition{suffix}")
        written.append(folder / f"partition{suffix}")
    return written
