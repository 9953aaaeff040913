"""What the owner of a long run wants to see of the arm at work: losses, traffic, time left, memory, clients."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedit.events import Event
from fedit.report.numbers import number_text

SPARKS = "▁▂▃▄▅▆▇█"
MOST_CLIENTS = 6
"""Clients of a round that stand on the screen, those that were heard of last."""
MEMORY_SECONDS = 2.0
"""Between two looks at the memory."""


@dataclass
class _Arm:
    """What was heard of one arm.

    began: the clock when it was first heard of in this process, and at which round it was then.
    clients: of the round under way -> what was heard of each last.
    """

    rounds: int
    began: float
    start: int = 0
    round: int = 0
    train: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    epsilon: object = None
    delivered: int = 0
    asked: int = 0
    clients: dict[str, Event] = field(default_factory=dict)


class Progress:
    """A panel about the arm that was heard of last."""

    def __init__(
        self,
        rounds: int,
        limit: float | None = None,
        *,
        past: Callable[[str], Sequence[Event]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing heard.

        rounds: of an arm; limit: the epsilon that the rounds may spend.
        past: arm -> what its log held when the run went on; None: nothing is known of it.
        """
        self._rounds, self._limit, self._past, self._clock = rounds, limit, past, clock
        self._arms: dict[str, _Arm] = {}
        self._now: str | None = None
        self._estimated: float | None = None
        self._memory = (-1e9, "")

    def hear(self, event: Event) -> None:
        """Take one event into account."""
        kind = event["event"]
        if kind == "estimate":
            self._estimated = _float(event["seconds"])
        name = event.get("arm")
        if not isinstance(name, str) or kind not in ("arm_started", "resumed", "step", "round", "evaluation"):
            return
        if name not in self._arms or kind == "arm_started":
            self._begin(name, event)
        self._now = name
        if kind != "resumed":
            self._take(self._arms[name], event)

    def _begin(self, name: str, event: Event) -> None:
        total = event.get("rounds")
        self._arms[name] = own = _Arm(total if isinstance(total, int) else self._rounds, self._clock())
        if event["event"] == "resumed" and self._past is not None:
            for old in self._past(name):
                self._take(own, old)
        own.start = own.round = max(own.round, int(_float(event["round"])) if event["event"] == "resumed" else 0)

    def _take(self, own: _Arm, event: Event) -> None:
        match event["event"]:
            case "step":
                own.clients.pop(str(event["client"]), None)
                own.clients[str(event["client"])] = event
            case "round":
                own.round = int(_float(event["round"]))
                own.clients = {}
                cohort = event["cohort"]
                own.delivered = int(_float(event["delivered"]))
                own.asked = len(cohort) if isinstance(cohort, list) else 0
                own.bytes_up += _float(event["bytes_up"])
                own.bytes_down += _float(event.get("bytes_down", 0))
                own.epsilon = event.get("epsilon", own.epsilon)
                if isinstance(loss := event.get("train_loss"), int | float):
                    own.train.append(float(loss))
            case "evaluation":
                if isinstance(loss := event["loss"], int | float):
                    own.held_out.append((int(_float(event["round"])), float(loss)))

    def __rich__(self) -> Panel | Text:
        """Return the panel; nothing before the first arm."""
        if self._now is None:
            return Text("")
        own = self._arms[self._now]
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        for title, text in self._lines(own):
            grid.add_row(title, text)
        title = f"{self._now}: round {min(own.round + 1, own.rounds)} of {own.rounds}"
        return Panel(grid, title=Text(title), title_align="left", border_style="dim", expand=False)

    def _lines(self, own: _Arm) -> list[tuple[str, Text]]:
        lines = [("train loss", f"{own.train[-1]:.3f}  {sparkline(own.train)}")] if own.train else []
        if own.held_out:
            best = min(own.held_out, key=lambda pair: pair[1])
            at_best = f"  best {best[1]:.3f} after round {best[0]}" if best != own.held_out[-1] else ""
            shown = sparkline([loss for _, loss in own.held_out])
            lines.append(("held-out loss", f"{own.held_out[-1][1]:.3f}  {shown}{at_best}"))
        if own.bytes_up or own.bytes_down:
            up, down = (number_text(own_bytes, "bytes") for own_bytes in (own.bytes_up, own.bytes_down))
            last = f"  {own.delivered} of {own.asked} clients delivered in the last round" if own.asked else ""
            lines.append(("sent", f"{up} up, {down} down{last}"))
        if own.epsilon is not None or self._limit is not None:
            spent = own.epsilon if own.epsilon is not None else 0.0
            told = f"{_float(spent):.3g}" if isinstance(spent, int | float) else "unbounded"
            lines.append(
                ("epsilon", told + (f" of {self._limit:g} spent" if self._limit is not None else " spent"))
            )
        lines.append(("time", self._time(own)))
        if memory := self._memory_text():
            lines.append(("memory", memory))
        lines += [("clients" if not n else "", text) for n, text in enumerate(_clients(own.clients))]
        return [(title, Text(text)) for title, text in lines]

    def _time(self, own: _Arm) -> str:
        gone = self._clock() - own.began
        done, left = own.round - own.start, own.rounds - own.round
        if left <= 0:
            return f"{duration(gone)}, the rounds are done"
        if done > 0:
            expected = gone / done * left
        elif self._estimated is not None:
            expected = max(self._estimated - gone, 0.0)
        else:
            return f"{duration(gone)} gone"
        at = time.strftime("%H:%M", time.localtime(time.time() + expected))
        return f"{duration(gone)} gone, about {duration(expected)} left, done about {at}"

    def _memory_text(self) -> str:
        if self._clock() - self._memory[0] >= MEMORY_SECONDS:
            self._memory = (self._clock(), memory_text())
        return self._memory[1]


def _clients(clients: dict[str, Event]) -> list[str]:
    """Return a line for each client that trains, the newest last, and how many more there are."""
    shown = list(clients.items())[-MOST_CLIENTS:]
    lines = []
    for name, event in shown:
        told = f"{name}  step {event['step']}"
        if "loss" in event:  # private training tells none
            told += f"  loss {_float(event['loss']):.3f}  {_float(event['tokens']):,.0f} tokens"
        lines.append(told)
    return lines + ([f"and {len(clients) - len(shown)} more"] if len(clients) > len(shown) else [])


def memory_text() -> str:
    """Return what this process and those it started take, and what is free; "" where that cannot be known."""
    try:
        import psutil  # type: ignore[import-untyped]  # ships no types; PEFT brings it
    except ImportError:
        return ""
    own = psutil.Process()
    taken, others = own.memory_info().rss, 0
    for child in own.children(recursive=True):
        try:
            taken += child.memory_info().rss
            others += 1
        except psutil.Error:
            continue  # it ended meanwhile
    beside = f" with {others} processes beside this one" if others else ""
    free = number_text(float(psutil.virtual_memory().available), "bytes")
    return f"{number_text(float(taken), 'bytes')}{beside}, {free} free{_gpu_text()}"


def _gpu_text() -> str:
    """Return what is in use on the first GPU; "" where this process uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return ""
    free, whole = torch.cuda.mem_get_info()
    return f"; GPU {number_text(float(whole - free), 'bytes')} of {number_text(float(whole), 'bytes')}"


def duration(seconds: float) -> str:
    """Return seconds in words that people use.

    >>> duration(42), duration(600), duration(9000)
    ('42 s', '10 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def sparkline(values: Sequence[float]) -> str:
    """Return a line of eight-step bars, of the newest twenty values.

    >>> sparkline([3.0, 2.0, 1.0])
    '█▅▁'
    """
    shown = values[-20:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * 7)] for value in shown)


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
