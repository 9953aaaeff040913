"""``fedit sweep``: every combination of some settings' values, with seeds and intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from fedit.cli.errors import Interrupted
from fedit.cli.flags import with_setting_flags
from fedit.cli.run import AsJson, JobArgument, Overrides

EPILOG = """Examples:

fedit sweep demo lora_r=4,8,16 --seeds 3 --out sweeps/ranks

fedit sweep job.yaml strategy=fedavg,flora learning_rate=1e-3,3e-3 --seeds 3

fedit sweep job.yaml   (with a section sweep, such as sweep: {lora_r: [4, 8]})

fedit sweep job.yaml lora_r=4,8 --check"""


@with_setting_flags
def sweep(
    job: JobArgument = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the sweep; one that is begun goes on. Default: sweeps/<job>."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="How many seeds, or which: 3, or 0,7,9. Default: study.seeds.")
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, help="Points at a time. Default: as many as use all cores or GPUs."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check all combinations and train none.")] = False,
    as_json: AsJson = False,
    *,
    flags: Mapping[str, object],
) -> None:
    """Train the federation at every combination of values: those separated by commas, and the job's section sweep.

    Each combination is a study of its own with all seeds. All are checked before the first starts, and all that is
    wrong is named at once. Interrupted, the same command goes on where it was. Ends with summary.json, report.html
    and figures in the folder.
    """
    run_points(job, overrides or [], flags, out, seeds, parallel, check, as_json)


def run_points(
    job: str | None,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    out: Path | None,
    seeds: str | None = None,
    parallel: int | None = None,
    check: bool = False,
    as_json: bool = False,
) -> None:
    """Check all points of a sweep, train them and print what came of it."""
    from fedit.settings import parse_value
    from fedit.sweep.plan import check as check_points
    from fedit.sweep.plan import plan
    from fedit.sweep.run import is_done

    chosen = None if seeds is None else parse_value(f"[{seeds}]" if "," in seeds else seeds)
    points = plan(job, overrides, flags, seeds=cast("Any", chosen))
    folder = out or Path("sweeps") / (Path(job).stem if job and "=" not in job else "sweep")
    console = Console(stderr=as_json)
    if check:
        check_points(points.points)
        for point in points.points:
            is_done(point, folder)  # or the folder is another sweep's
        names = [point.name for point in points.points]
        if as_json:
            typer.echo(json.dumps({"points": names}))
        else:
            console.print(f"{len(names)} points can work:", highlight=False)
            for name in names:
                console.print(f"  {name}", highlight=False, markup=False)
        return
    from fedit.cli.live import live
    from fedit.sweep.run import run_sweep

    try:
        with live(console, points.points[0].settings.config) as listener:
            summary = run_sweep(points, folder, parallel=parallel, listener=listener)
    except KeyboardInterrupt:
        raise Interrupted(f"what is done is kept in {folder}; go on with the same command") from None
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print(console, summary, folder)


def _print(console: Console, summary: Mapping[str, object], folder: Path) -> None:
    from fedit.report.numbers import number_text

    points = cast("list[dict[str, Any]]", summary["points"])
    graded = any("exact_match" in point for point in points)
    titles = ["held-out loss", "minus the first", *(["exact match"] if graded else []), "tokens", "sent", "time"]
    table = Table("point", *titles, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for point in points:
        apart = (point.get("vs_first") or {}).get("loss")
        row = [
            f"{number_text(point['loss'], '.3f')} [dim]{_range(point['ci'].get('loss'), '.2f')}[/]",
            "" if apart is None else f"{apart['difference']:+.3f} [dim]{_range(apart['ci'], '+.2f')}[/]",
        ]
        if graded:
            row.append(f"{point['exact_match']:.0%}")
        row += [
            f"{point['tokens']:,.0f}",
            number_text(point["bytes_up"] + point["bytes_down"], "bytes"),
            number_text(point["seconds"], "duration"),
        ]
        style = "bold green" if point["name"] == summary["best"] else None
        table.add_row(point["name"], *row, style=style)
    console.print(table)
    seeds = cast("list[int]", summary["seeds"])
    over = "rows" if len(seeds) == 1 else f"rows and {len(seeds)} seeds"
    console.print(f"[dim]After each number its 95 % interval over {over}; times and bytes are of a seed.[/]")
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _range(bounds: list[float] | None, form: str) -> str:
    return "" if bounds is None else f"{bounds[0]:{form}}…{bounds[1]:{form}}"
