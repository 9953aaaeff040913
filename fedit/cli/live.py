"""Live progress of a run: bars and a table on a terminal, one aligned line a round anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedit.cli.progress import Progress, duration, sparkline
from fedit.config import RunConfig
from fedit.events import Event, EventLog, Listener

MOST_BARS = 12
"""Bars that stand on the screen; more only while so many are unfinished."""


class LiveRun:
    """Listens to a run's events and keeps the display up to date."""

    def __init__(self, console: Console, config: RunConfig, folder: Path | None = None) -> None:
        """Begin with an empty display; folder: the run's, whose log tells what was before it went on."""
        self._console = console
        limit = config.privacy_options.get("epsilon")
        self._progress = Progress(
            config.num_rounds,
            float(limit) if isinstance(limit, int | float) else None,
            past=lambda arm: EventLog(folder).history() if folder is not None and arm == "federated" else [],
        )
        self._config = config
        self._bars = Bars(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._rounds: dict[str, TaskID] = {}
        self._client: TaskID | None = None
        self._losses: dict[str, list[float]] = {}
        self._spent: dict[str, object] = {}
        self._status = Text("preparing data and model …", style="dim")
        self._handlers: dict[str, Callable[[Event], None]] = {
            "preparing": lambda event: self._line(str(event["text"]), "dim"),
            "estimate": self._on_estimate,
            "study_estimate": self._on_study,
            "arm_started": self._on_arm,
            "resumed": self._on_resumed,
            "step": lambda event: self._set(""),  # the panel tells of clients
            "round": self._on_round,
            "evaluating": self._on_evaluating,
            "evaluation": self._on_evaluation,
            "answering": self._on_answering,
            "client_failed": self._on_failure,
            "stopped_early": self._on_stopped,
            "budget_spent": self._on_budget,
            "tracking_failed": lambda event: self._line(
                f"{event['tracker']} is told no more, the run goes on: {event['reason']}", "yellow"
            ),
            "reporting": lambda event: self._set("writing summary and pictures …"),
        }

    def __rich__(self) -> Group:
        return Group(self._bars, self._progress, self._status)

    def hear(self, event: Event) -> None:
        """Take one event into account."""
        self._progress.hear(event)
        handler = self._handlers.get(str(event["event"]))
        if handler is not None:
            handler(event)

    def _on_estimate(self, event: Event) -> None:
        seconds, rate = _float(event["seconds"]), _float(event["tokens_per_second"])
        finish = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        extra = "; the baselines come on top" if event["compare"] else ""
        self._line(
            f"estimate: {duration(seconds)} for {_float(event['tokens']):,.0f} tokens at {rate:,.0f} a second "
            f"and {event['evaluations']} evaluations, done about {finish}{extra}",
            "cyan",
        )

    def _on_study(self, event: Event) -> None:
        answers = int(_float(event["answers"]))
        more = f"evaluations and {answers:,} answers of full length" if answers else "evaluations"
        self._line(
            f"estimate: {event['trainings']} trainings over {event['seeds']} seeds, "
            f"{_float(event['tokens']):,.0f} tokens at {_float(event['tokens_per_second']):,.0f} a second: about "
            f"{duration(_float(event['seconds']))} with {more}",
            "cyan",
        )

    def _on_arm(self, event: Event) -> None:
        self._bar(str(event["arm"]), int(_float(event["rounds"])))

    def _on_resumed(self, event: Event) -> None:
        self._line(f"{event['arm']}: resumed after round {event['round']}", "cyan")
        self._bar(str(event["arm"]), self._config.num_rounds, done=int(_float(event["round"])))

    def _on_round(self, event: Event) -> None:
        arm = str(event["arm"])
        if "epsilon" in event:
            self._spent[arm] = event["epsilon"]
        if arm in self._rounds:
            self._bars.update(self._rounds[arm], completed=int(_float(event["round"])))
        if not self._console.is_terminal:
            loss = event["train_loss"]
            shown = f"{_float(loss):.3f}" if loss is not None else "    -"
            told = f"delivered {event['delivered']}/{_count(event['cohort'])}  train loss {shown}"
            if "epsilon" in event:
                told = f"epsilon {_epsilon(event['epsilon'])} spent"
            self._console.print(
                f"{arm:24s} round {event['round']:>3}/{self._config.num_rounds}  {told}  "
                f"up {_float(event['bytes_up']) / 1e6:.1f} MB  {_float(event['seconds']):.1f} s",
                highlight=False,
                soft_wrap=True,
            )
        if not event["aggregated"]:
            self._line(f"{arm}: round {event['round']} had too few updates; the adapter stays as it was", "yellow")

    def _on_evaluating(self, event: Event) -> None:
        self._set("measuring held-out loss …")

    def _on_evaluation(self, event: Event) -> None:
        arm, loss = str(event["arm"]), _float(event["loss"])
        losses = self._losses.setdefault(arm, [])
        losses.append(loss)
        preferred = event.get("preference_accuracy")
        told = "" if preferred is None else f", preferences {_float(preferred):.1%}"
        if arm in self._rounds:
            spent = f"  epsilon {_epsilon(self._spent[arm])}" if arm in self._spent else ""
            note = f"held-out loss {loss:.3f}{told} {sparkline(losses)}{spent}"
            self._bars.update(self._rounds[arm], note=note)
        if not self._console.is_terminal:
            self._console.print(
                f"{arm:24s} round {event['round']:>3}/{self._config.num_rounds}  held-out loss {loss:.3f}{told}",
                highlight=False,
                soft_wrap=True,
            )

    def _on_answering(self, event: Event) -> None:
        self._set(f"answering held-out instructions: {event['subject']} {event['done']}/{event['total']}")

    def _on_failure(self, event: Event) -> None:
        self._line(f"round {event['round']}: update of {event['client']} rejected: {event['reason']}", "yellow")

    def _on_stopped(self, event: Event) -> None:
        self._line(
            f"stopped after round {event['round']}: no better validation loss in {event['patience']} evaluations",
            "cyan",
        )

    def _on_budget(self, event: Event) -> None:
        self._line(
            f"ended after round {event['round']} of {event['rounds']}: epsilon {_epsilon(event['epsilon'])} is "
            f"spent, and another round would go beyond {_epsilon(event['limit'])}; the last model is kept",
            "yellow",
        )

    def _bar(self, arm: str, total: int, done: int = 0) -> None:
        if arm in self._rounds:
            self._bars.update(self._rounds[arm], completed=done)
        else:
            self._rounds[arm] = self._bars.add_task(f"{arm[:34]:26s}", total=total, completed=done, note="")
            # A study trains dozens of arms: those that are done make room.
            shown = [task for task in self._bars.tasks if task.visible]
            for task in [task for task in shown if task.finished][: max(len(shown) - MOST_BARS, 0)]:
                self._bars.update(task.id, visible=False)

    def _set(self, text: str) -> None:
        self._status = Text(text, style="dim")

    def _line(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def live(console: Console, config: RunConfig, folder: Path | None = None) -> Iterator[Listener]:
    """Yield a listener that shows a run's progress while the block lasts; folder: the run's, if it may go on."""
    display = LiveRun(console, config, folder)
    if not console.is_terminal:
        yield display.hear
        return
    with Live(display, console=console, refresh_per_second=4, transient=False):
        yield display.hear
        display._set("")


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _epsilon(value: object) -> str:
    return f"{_float(value):.3g}" if isinstance(value, int | float) else "unbounded"


def _count(value: object) -> int:
    return len(value) if isinstance(value, list) else 0
