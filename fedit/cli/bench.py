"""``fedit bench``: tasks of lm-evaluation-harness on every arm of a run or a study."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedit.cli.errors import Interrupted
from fedit.cli.output import AsJson, console, notes, plain_table, print_json, working

EPILOG = """Examples:

fedit bench runs/first --tasks examples/benchmarks/facts.yaml

fedit bench runs/study --tasks facts.yaml,rules.yaml --arms base,federated --limit 200

fedit bench runs/first --tasks mmlu --fewshot 5 --json"""


def bench(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Runs, studies, arms of runs, PEFT folders of LoRA adapters."),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks", metavar="FILE|NAME,…", help="Task files (.yaml), or names of lm-eval's tasks and groups."
        ),
    ],
    arms: Annotated[
        list[str] | None,
        typer.Option("--arms", metavar="ARM,…", help="Only these; local means all local:CLIENT. Default: all."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The first so many documents of each task, to try it out.")
    ] = None,
    fewshot: Annotated[
        int | None,
        typer.Option("--fewshot", min=0, help="Examples before each question. Default: as each task says."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the prompt template of the training instead of plain text.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="ARM", help="Compare with this arm. Default: federated."),
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", metavar="DIR", help="A folder of task files whose names --tasks may use."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Base model, where it is not the one that was trained on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: bench in the first folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks of lm-evaluation-harness on base, local, federated and centralised models.

    One base is held in memory for all. Each arm's result of each task is kept in --out: the same command goes on
    after Ctrl-C, and asks nothing twice. A task file may name Python functions beside it, which are run: use
    files that you trust. Needs the extra harness.
    """
    from fedit.harness.library import installed_version

    installed_version()
    with working("loading lm-eval …"):
        from fedit.harness import bench as run
        from fedit.harness.run import choose_arms
        from fedit.ui.arms import find_arms

    found = find_arms(folders, model=model)
    for note in found.notes:
        notes().print(note, style="dim", soft_wrap=True)
    folder = out or folders[0] / "bench"
    with _progress(notes()) as on_progress:
        try:
            summary = run(
                choose_arms(found.arms, _parts(arms or [])),
                _parts(tasks),
                out=folder,
                include=include or (),
                limit=limit,
                fewshot=fewshot,
                chat=chat,
                reference=reference,
                on_progress=on_progress,
                say=lambda text: notes().print(text, style="dim"),
            )
        except KeyboardInterrupt:
            raise Interrupted(f"results are kept in {folder}; the same command goes on from there") from None
    if as_json:
        print_json(summary)
        return
    _show(console(), summary)
    console().print(f"in full: {folder / 'bench.json'}", soft_wrap=True)


def _parts(given: list[str]) -> list[str]:
    """Return what was given once or several times, each with commas."""
    return [part.strip() for text in given for part in text.split(",") if part.strip()]


def _show(screen: Console, summary: Mapping[str, object]) -> None:
    reference = str(summary["reference"])
    for name, task in cast("dict[str, dict[str, Any]]", summary["tasks"]).items():
        few = f", {task['fewshot']} examples" if task["fewshot"] else ""
        part = "" if task["documents"] == task["of"] else f" of {task['of']}"
        title = f"{name} (version {task['version'] or 'none'}): {task['documents']}{part} documents{few}"
        screen.print(_table(title, task["metrics"], reference))
        screen.print()
    for name, group in cast("dict[str, dict[str, Any]]", summary["groups"]).items():
        screen.print(_table(f"{name}: {len(group['tasks'])} tasks", group["metrics"], reference))
        screen.print()


def _table(title: str, metrics: Mapping[str, Any], reference: str) -> Any:  # noqa: ANN401  (rich's table)
    minus = f"{reference} minus it"
    table = plain_table(
        "metric", "arm", "value", "std. error", minus, numbers=("value", "std. error"), title=title
    )
    for metric, own in metrics.items():
        shown = metric.removesuffix(",none")
        for arm, number in own["arms"].items():
            paired = own.get("reference_minus", {}).get(arm)
            table.add_row(
                shown,
                arm,
                _number(number["value"], ".4f"),
                _number(number["stderr"], ".4f"),
                "" if paired is None else "{estimate:+.4f} [{low:+.4f}, {high:+.4f}]".format(**paired),
            )
            shown = ""
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


@contextmanager
def _progress(screen: Console) -> Iterator[Callable[[str, str, int, int], None]]:
    """Yield a function that shows how far an arm is in a task: bars on a terminal, elsewhere a line at the end."""
    if not screen.is_terminal:
        yield (
            lambda arm, task, done, total: (
                screen.print(f"{arm}: {task} {'done' if total else 'kept'}") if done == total else None
            )
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen) as bar:
        places: dict[tuple[str, str], Any] = {}

        def tell(arm: str, task: str, done: int, total: int) -> None:
            if (arm, task) not in places:
                places[arm, task] = bar.add_task(f"{arm}: {task}")
            bar.update(places[arm, task], completed=done or 1, total=total or 1)

        yield tell
