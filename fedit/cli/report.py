"""``fedit report``: a finished run as a page to read and to show, with twins for papers and scripts."""

from pathlib import Path
from typing import Annotated

import typer

from fedit.cli.output import console, notes, working

EPILOG = """Examples:

fedit report runs/first

fedit report runs/first --open

fedit report runs/first --out paper/first

fedit report studies/mine"""


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_DIR|STUDY_DIR", help="Folder of a finished run, study or sweep.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the report. Default: the run's folder.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Write the report of a finished run, study or sweep: a page that needs no network, Markdown, JSON, figures.

    report.html is one file: settings, comparison, answers side by side, who holds what, curves, drift,
    traffic and time. It holds the held-out instructions that are shown, and no training text.
    """
    from fedit.report.run_report import run_report
    from fedit.report.write import write_report
    from fedit.study.report import study_report
    from fedit.sweep.summary import sweep_report

    with working("writing the report …"):
        if (folder / "study.json").is_file():
            document = study_report(folder)
        else:
            document = sweep_report(folder) if (folder / "points").is_dir() else run_report(folder)
        page = write_report(document, out or folder)
    results = console()
    for what, name in (
        ("page", page),
        ("for papers", page.with_suffix(".md")),
        ("for scripts", page.with_suffix(".json")),
        ("figures", page.with_name("figures")),
    ):
        results.print(f"{what:12s} {name}", soft_wrap=True)
    if show and typer.launch(page.resolve().as_uri()) != 0:
        notes().print(f"no browser could be started; open {page} in one.", style="yellow")
