"""``fedit privacy``: what noise is worth, what a job's privacy comes to, what a run has promised and spent."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit.cli.flags import with_setting_flags
from fedit.cli.jobs import read_job
from fedit.cli.output import AsJson, console, print_json
from fedit.cli.run import JobArgument, Overrides

if TYPE_CHECKING:
    from fedit.privacy.accounting import Epsilon

app = typer.Typer(help="Privacy: accounting, planning, reports.", no_args_is_help=True)

Rate = Annotated[float, typer.Option("--sampling-rate", help="Probability that a client (or example) takes part.")]
Steps = Annotated[int, typer.Option("--steps", help="Rounds (or optimizer steps).")]
Delta = Annotated[float, typer.Option("--delta", help="Chance that the guarantee fails.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")]


_EXAMPLE = "--sampling-rate 0.05 --steps 200 --delta 1e-5"


@app.command("epsilon", epilog=f"Example: fedit privacy epsilon --noise-multiplier 1 {_EXAMPLE}")
def epsilon(
    noise_multiplier: Annotated[
        float, typer.Option("--noise-multiplier", help="Standard deviation of the noise over the clip norm.")
    ],
    sampling_rate: Rate,
    steps: Steps,
    delta: Delta,
    as_json: AsJson = False,
) -> None:
    """Print what noise is worth: epsilon of so many rounds whose clients each take part by a coin."""
    from fedit.privacy.accounting import epsilon as account

    _print_spent(noise_multiplier, account(noise_multiplier, sampling_rate, steps, delta), delta, as_json)


@app.command("calibrate", epilog=f"Example: fedit privacy calibrate --epsilon 8 {_EXAMPLE}")
def calibrate(
    target: Annotated[float, typer.Option("--epsilon", help="What may be spent.")],
    sampling_rate: Rate,
    steps: Steps,
    delta: Delta,
    as_json: AsJson = False,
) -> None:
    """Print the least noise that spends at most an epsilon: the inverse of fedit privacy epsilon."""
    from fedit.privacy.plan import noise_for

    noise, spent = noise_for(target, sampling_rate, steps, delta)
    _print_spent(noise, spent, delta, as_json)


@app.command("plan", epilog="Example: fedit privacy plan job.yaml privacy_options.noise_multiplier=1")
@with_setting_flags
def plan(
    job: JobArgument = None, overrides: Overrides = None, as_json: AsJson = False, *, flags: Mapping[str, object]
) -> None:
    """Say before training what epsilon a job's settings give, how loud the noise is, and what would help.

    Nothing is trained; rows are read and dealt, the model's shapes are looked at.
    """
    from fedit.privacy.plan import plan as planned

    found = planned(read_job(job, overrides or [], flags).config)
    if as_json:
        print_json(found.as_dict())
        return
    out = console()
    out.soft_wrap = True
    for line in found.lines():
        out.print(line)


@app.command("report", epilog="Example: fedit privacy report runs/first")
def report(folder: RunDir, as_json: AsJson = False) -> None:
    """Print whom a run protects from whom, what it has spent so far, and what it does not protect."""
    from fedit.privacy.folder import statement_of
    from fedit.privacy.report import THREATS

    found = statement_of(folder)
    if as_json:
        print_json(found.as_dict())
        return
    out = console()
    out.soft_wrap = True
    out.print(found.opening)
    out.print("\nAgainst whom")
    for line in THREATS:
        out.print(f"- {line}")
    out.print("\nGuarantees")
    for name, value, detail in found.guarantees:
        out.print(f"- {name}: {value}{f' ({detail})' if detail else ''}")
    if found.unprotected:
        out.print("\nNot protected")
        for line in found.unprotected:
            out.print(f"- {line}")


def _print_spent(noise: float, spent: "Epsilon", delta: float, as_json: bool) -> None:
    from fedit.privacy.accounting import finite

    if as_json:
        found = {"epsilon": finite(spent.value), "epsilon_rdp": finite(spent.rdp)}
        print_json({**found, "noise_multiplier": noise, "delta": delta})
        return
    epsilons = f"epsilon {spent.shown} at delta {delta:g} (RDP: {spent.shown_rdp})"
    console().print(f"noise multiplier {noise:.6g}: {epsilons}")
