"""``fedit run``, ``fedit resume`` and ``fedit show``."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedit.cli.completion import jobs
from fedit.cli.errors import Interrupted
from fedit.cli.flags import default_text, section, with_setting_flags
from fedit.cli.jobs import read_job
from fedit.cli.output import console, print_json
from fedit.settings import Settings

JobArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB|RECIPE",
        help="A job file (YAML or TOML) or a recipe's name; see fedit list recipes.",
        autocompletion=jobs,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]…", help="Settings that win over the job file.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run. Default: runs/<job>, or the next free one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable JSON on standard output, nothing else.")]

EPILOG = """Examples:

fedit run demo --out runs/first

fedit run demo num_rounds=3 lora_r=8

fedit run dataset=rows.jsonl num_clients=10 partitioner=dirichlet alpha=0.5 --out runs/mine

fedit run job.yaml --learning_rate 1e-4 --strategy fedit"""


@with_setting_flags
def run(
    job: JobArgument = None,
    overrides: Overrides = None,
    out: Out = None,
    replace: Annotated[bool, typer.Option("--replace", help="Delete the run that --out holds, if any.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all that a run checks, say what it takes, and write no folder."),
    ] = False,
    as_json: AsJson = False,
    *,
    flags: Mapping[str, object],
) -> None:
    """Train a federation: who holds what, rounds, held-out results, an adapter and pictures in one folder.

    Settings come from the job file, then key=value arguments, then flags. The folder is complete
    in itself; Ctrl-C or a crash loses at most the round in progress: fedit resume goes on.
    """
    settings = read_job(job, overrides or [], flags)
    folder = out or _free_folder(job)
    if dry_run:
        _check(settings, folder, replace=replace, as_json=as_json)
        return
    if replace and (folder / "run.json").is_file():
        shutil.rmtree(folder)
    _execute(settings, folder, resumed=False, as_json=as_json)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of an interrupted run.")],
    as_json: AsJson = False,
) -> None:
    """Go on with an interrupted run from its last whole round; the result is the same, bit for bit.

    A finished run is left alone. Settings, data and model must be what they were.
    """
    from fedit.runfolder import read_config, read_summary

    if (folder / "run.json").is_file() and (summary := read_summary(folder)) is not None:
        if as_json:
            typer.echo(json.dumps(summary))
        else:
            typer.echo(f"{folder} is finished: nothing to resume. Look at {folder / 'summary.md'}")
        return
    if not (folder / "run.json").is_file():
        from fedit.errors import RunFolderError

        raise RunFolderError(
            f"{folder} holds no run: there is no run.json in it. Start one with: fedit run JOB --out {folder}"
        )
    _execute(Settings(read_config(folder)), folder, resumed=True, as_json=as_json)


@with_setting_flags
def show(
    job: JobArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    all_settings: Annotated[bool, typer.Option("--all", help="Defaults too.")] = False,
    *,
    flags: Mapping[str, object],
) -> None:
    """Print a job's settings as resolved, where each comes from, and what they imply.

    Nothing is trained; rows are read and dealt, the model's shapes are looked at.
    """
    from fedit.config import RunConfig
    from fedit.implications import implications

    settings = read_job(job, overrides or [], flags)
    implied = implications(settings.config)
    if as_json:
        typer.echo(json.dumps({"settings": settings.config.model_dump(mode="json"), "implies": implied}))
        return
    from rich.table import Table

    console = Console()
    table = Table("setting", "value", "from", box=None, header_style="bold", pad_edge=False)
    values = settings.config.model_dump(mode="json")
    group = ""
    for name, field in RunConfig.model_fields.items():
        origin = settings.origins.get(name, "")
        if not (origin or all_settings):
            continue
        if section(field) != group:
            group = section(field)
            table.add_row(f"[bold cyan]{group}[/]", "", "")
        table.add_row(f"  {name}", _plain(values[name]), origin or f"default {default_text(field)}".strip())
    console.print(table if table.row_count else "all settings have their defaults (--all shows them)")
    console.print("\n[bold]What they imply[/]")
    for name, value in implied.items():
        console.print(f"  {name.replace('_', ' ')}: [cyan]{_plain(value)}[/]", highlight=False)


def _check(settings: Settings, folder: Path, *, replace: bool, as_json: bool) -> None:
    """Make sure that a run could start in ``folder``, which stays as it is, and print what it takes."""
    from fedit.planning.plan import plan
    from fedit.runfolder import refuse_taken, refuse_unwritable
    from fedit.tracking.trackers import check_trackers

    if not replace:
        refuse_taken(folder)
    check_trackers(settings.config.report_to)
    refuse_unwritable(folder)
    found = plan(settings.config, measured=False)
    if as_json:
        print_json(found.as_dict())
        return
    from fedit.cli.plantables import print_plan

    out = console()
    print_plan(out, found)
    out.print(f"nothing is wrong with it; it would be written to {folder}", soft_wrap=True)


def _execute(settings: Settings, folder: Path, *, resumed: bool, as_json: bool) -> None:
    console = Console(stderr=as_json)
    from fedit.cli.live import live
    from fedit.cli.results import print_result
    from fedit.launch import resume as go_on
    from fedit.launch import run as start

    try:
        with live(console, settings.config, folder) as listener:
            if resumed:
                result = go_on(folder, listener=listener)
            else:
                result = start(settings.config, folder, listener=listener)
    except KeyboardInterrupt:
        saved = (folder / "run.json").is_file()
        hint = (
            f"the last whole round is saved; go on with: fedit resume {folder}"
            if saved
            else "nothing was saved yet"
        )
        raise Interrupted(hint) from None
    if as_json:
        typer.echo(json.dumps(result.summary))
    else:
        print_result(console, result)


def _free_folder(job: str | None) -> Path:
    name = Path(job).stem if job and "=" not in job else "run"
    base = Path("runs") / name
    candidates = [base, *(base.with_name(f"{name}-{i}") for i in range(2, 10_000))]
    return next(folder for folder in candidates if not (folder / "run.json").exists())


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
