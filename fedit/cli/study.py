"""``fedit study``: the same rows and budgets for every arm, with seeds and intervals."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedit.cli.errors import Interrupted
from fedit.cli.flags import with_setting_flags
from fedit.cli.jobs import read_job
from fedit.cli.run import AsJson, JobArgument, Overrides
from fedit.cli.sweep import run_points

EPILOG = """Examples:

fedit study paper-mini --out studies/mini

fedit study demo study.seeds=3 study.arms=base,federated,centralised --out studies/demo

fedit study job.yaml study.learning_rates=1e-4,3e-4,1e-3 validation=10 --out studies/mine"""


@with_setting_flags
def study(
    job: JobArgument = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the study; one that is begun goes on. Default: studies/<job>."),
    ] = None,
    as_json: AsJson = False,
    *,
    flags: Mapping[str, object],
) -> None:
    """Compare the federation with its baselines: base, clients alone, everything in one place, other strategies.

    All arms see the same rows and model at equal token budgets; what to compare stands in the job's section
    study, as study.name=value on the command line. Interrupted, the same command goes on where it was.
    Ends with summary.json, report.html and figures in the folder. A job with a section sweep is a study at each
    of its points, as fedit sweep runs it.
    """
    settings = read_job(job, overrides or [], flags)
    if settings.sweep:
        run_points(job, overrides or [], flags, out, as_json=as_json)
        return
    folder = out or Path("studies") / (Path(job).stem if job and "=" not in job else "study")
    console = Console(stderr=as_json)
    from fedit.cli.live import live
    from fedit.cli.studytables import print_study
    from fedit.study.run import run_study

    try:
        with live(console, settings.config) as listener:
            summary = run_study(settings, folder, listener=listener)
    except KeyboardInterrupt:
        raise Interrupted(f"what is done is kept in {folder}; go on with the same command") from None
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_study(console, summary, folder)
