"""``fedit privacy audit``: what a finished run's models and uploads tell of the rows that were trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedit.cli.output import AsJson, console, notes, plain_table, print_json

EPILOG = """Examples:

fedit privacy audit runs/first

fedit privacy audit runs/first --rounds 0 --json

fedit privacy audit runs/first --shadows 8"""


def audit(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished simulation.")],
    rows: Annotated[
        int, typer.Option("--rows", help="Most rows of either kind, trained on and held out, to compare.")
    ] = 500,
    references: Annotated[
        int, typer.Option("--references", help="Secrets that were never trained on to rank a canary among.")
    ] = 1000,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Most rounds to look at, evenly spaced; 0: all that are there.")
    ] = 5,
    shadows: Annotated[
        int, typer.Option("--shadows", help="Shadow models to train for LiRA, an even number; they take long.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure what leaked: are rows that were trained on told from others, are planted secrets known?

    Looks at the base, at adapters after rounds, at the final one and at uploads that the run kept (keep_uploads).
    Writes audit.json into the run's folder and a section into its report. Canaries are planted by canaries=N.
    """
    from fedit.privacy.audit.run import AuditOptions
    from fedit.privacy.audit.run import audit as run

    options = AuditOptions(rows, references, rounds, shadows)
    said = notes()
    found: dict[str, Any] = run(folder, options, lambda text: said.print(text, style="dim"))
    for warning in found["warnings"]:
        said.print(warning, style="yellow")
    if as_json:
        print_json(found)
        return
    results = console()
    results.print(_membership(found))
    if any("canaries" in model for model in found["models"]):
        results.print(_canaries(found))
    results.print(f"report {folder / 'report.html'}; for scripts {folder / 'audit.json'}", soft_wrap=True)


def _membership(found: Mapping[str, Any]) -> object:
    """Return a line a model and score."""
    headings = ("AUC", "95 % interval", "balanced accuracy", "TPR at 1 % FPR", "epsilon at least")
    table = plain_table("model", "score", *headings, numbers=headings, title="Members told from other rows")
    for model in found["models"]:
        for name, one in model["membership"].get("scores", {}).items():
            auc, caught = one["auc"], one["tpr_at_fpr"].get("0.01")
            table.add_row(
                _name(model),
                name,
                f"{auc['value']:.3f}",
                f"{auc['low']:.3f} to {auc['high']:.3f}",
                f"{one['balanced_accuracy']['value']:.3f}",
                "—" if caught is None else f"{caught['value']:.3f}",
                f"{one['epsilon_lower_bound']:.2f}",
            )
        if why := model["membership"].get("left_out"):
            table.add_row(_name(model), why)
    return table


def _canaries(found: Mapping[str, Any]) -> object:
    """Return a line a model and number of repetitions."""
    headings = ("planted", "trained on", "mean exposure", "highest", "extracted")
    table = plain_table("model", *headings, numbers=headings, title="Planted secrets, exposure in bits")
    for model in found["models"]:
        for one in model.get("canaries", {}).get("by_repetitions", ()):
            table.add_row(
                _name(model),
                f"{one['canaries']} of {one['repetitions']}",
                f"{one['times_trained_on']:.1f}",
                f"{one['exposure_mean']:.2f}",
                f"{one['exposure_highest']:.2f}",
                f"{one['extracted']} of {one['canaries']}",
            )
    return table


def _name(model: Mapping[str, Any]) -> str:
    named = {"base": "base", "final": f"final (round {model['round']})", "round": f"round {model['round']}"}
    return named.get(model["kind"], f"{model['client']} in round {model['round']}")
