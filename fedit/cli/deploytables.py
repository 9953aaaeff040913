"""What ``fedit deploy status`` shows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from fedit.cli.output import plain_table
from fedit.cli.progress import duration

if TYPE_CHECKING:
    from fedit.flower.control import RunStatus, SiteStatus

_STYLES = {"online": "green", "offline": "red", "running": "green", "finished": "cyan", "failed": "red"}


def as_json(
    where: str, problem: str | None, sites: "Sequence[SiteStatus]", runs: "Sequence[RunStatus]"
) -> dict[str, object]:
    """Return the status for programs."""
    return {
        "server": {"address": where, "up": problem is None, "reason": problem},
        "sites": [asdict(site) for site in sites],
        "runs": [run.as_dict() for run in runs],
    }


def status_view(
    where: str, problem: str | None, sites: "Sequence[SiteStatus]", runs: "Sequence[RunStatus]"
) -> RenderableType:
    """Return the status for people."""
    up = ("up", "green") if problem is None else ("down", "red")
    parts: list[RenderableType] = [Text.assemble("server ", (where, "bold"), " is ", up)]
    if problem is not None:
        parts.append(Text(problem, style="red"))
    if sites:
        parts += [Text(), _sites(sites)]
    parts += [Text(), _runs(runs) if runs else Text("no runs yet", style="dim")]
    late = [(run, one) for run in runs for one in run.progress.late if run.state not in ("finished", "stopped")]
    if late:
        parts += [Text(), Text("late or left out", style="bold")]
        parts += [Text(f"  {run.name}, round {one.round}: {one.who}: {one.reason}") for run, one in late]
    reasons = [run for run in runs if run.reason and run.state in ("failed", "waiting")]
    parts += [Text(f"  {run.name}: {run.reason}", style="red") for run in reasons]
    return Group(*parts)


def _sites(sites: "Sequence[SiteStatus]") -> RenderableType:
    table = plain_table("site", "state", "since")
    for site in sites:
        table.add_row(site.name, Text(site.state, style=_STYLES.get(site.state, "dim")), _since(site.since))
    return table


def _runs(runs: "Sequence[RunStatus]") -> RenderableType:
    numbers = ("round", "train loss", "held-out loss", "up MB", "down MB", "starts")
    table = plain_table("run", "state", *numbers, "privacy spent", "last event", numbers=numbers)
    for run in runs:
        done = run.progress
        table.add_row(
            run.name,
            Text(run.state, style=_STYLES.get(run.state, "yellow")),
            f"{done.round} of {done.rounds}" if done.rounds else str(done.round),
            _loss(done.train_loss),
            "not measured" if done.unmeasured else _loss(done.loss),
            f"{done.bytes_up / 1e6:.1f}",
            f"{done.bytes_down / 1e6:.1f}",
            str(run.starts),
            done.privacy,
            _since(done.updated),
        )
    return table


def node_view(facts: Mapping[str, object]) -> RenderableType:
    """Return what a site's own folder says of its node."""
    running, joined, ready = facts["running"], facts["joined"], facts["worker_ready"]
    return Group(
        Text.assemble("node ", (str(facts["site"]), "bold"), " is ", _yes(running, "running", "not running")),
        Text.assemble(f"server {facts['server']}: ", _yes(joined, "joined", "not joined")),
        Text.assemble("worker: ", _yes(ready, "ready", "not ready")),
    )


def _yes(value: object, yes: str, no: str) -> tuple[str, str]:
    return (yes, "green") if value else (no, "red")


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _since(moment: float | None) -> str:
    """Return how long ago something was."""
    return "-" if moment is None else f"{duration(max(time.time() - moment, 0.0))} ago"
