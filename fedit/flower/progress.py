"""How far a run is, read from its folder: rounds, losses, bytes, and who is late or left out and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedit.events import NOT_EVALUATED, Event, EventLog

TROUBLES = {
    "site_late": "did not answer in time",
    "site_trouble": "had trouble",
    "site_refused": "refuses the job",
    "site_left_out": "takes no part",
}
"""Events about a site -> what they say where they give no reason."""
CLEARED = "site_back"


@dataclass(frozen=True, slots=True)
class Late:
    """Somebody who did not deliver.

    who:   a site or a client; round: in which.
    """

    who: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run's own folder says of it.

    round, rounds: the newest whole round, and how many there will be; 0 rounds: it has not begun.
    train_loss:    of the clients in the newest round; loss: on held-out rows, the newest. None: not measured.
    unmeasured:    why nothing is measured on held-out rows; "": it is.
    privacy:       what of the privacy budget is spent, as the run's events say; "none" where they say nothing.
    bytes_up, bytes_down: of the tensors of all clients so far.
    updated:       seconds since 1970 of the newest event; None: there is none.
    late:          who did not deliver in the newest round, or is not back since.
    finished:      whether its summary is written.
    """

    round: int = 0
    rounds: int = 0
    train_loss: float | None = None
    loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    updated: float | None = None
    late: list[Late] = field(default_factory=list)
    finished: bool = False
    unmeasured: str = ""
    privacy: str = "none"


def read_progress(folder: Path) -> Progress:
    """Return how far the run in ``folder`` is; a run that wrote nothing yet is at the beginning."""
    events = [event for event in EventLog(folder).read() if event.get("arm", "federated") == "federated"]
    rounds = [event for event in events if event["event"] == "round"]
    return Progress(
        round=max((_whole(event["round"]) for event in rounds), default=0),
        rounds=max((_whole(e.get("rounds")) for e in events if e["event"] == "arm_started"), default=0),
        train_loss=_newest(rounds, "train_loss"),
        loss=_newest([event for event in events if event["event"] == "evaluation"], "loss"),
        bytes_up=sum(_whole(event.get("bytes_up")) for event in rounds),
        bytes_down=sum(_whole(event.get("bytes_down")) for event in rounds),
        updated=_newest(events, "time"),
        late=_late(events),
        finished=(folder / "summary.json").is_file(),
        unmeasured=next((str(event["reason"]) for event in events if event["event"] == NOT_EVALUATED), ""),
        privacy=_privacy(events),
    )


def _late(events: Sequence[Event]) -> list[Late]:
    """Return who is late: sites that are not back, and clients that failed in the newest round."""
    newest = max((_whole(event["round"]) for event in events if event["event"] == "round"), default=0)
    sites: dict[str, Late] = {}
    clients: list[Late] = []
    for event in events:
        kind, number = str(event["event"]), _whole(event["round"])
        if kind in TROUBLES:
            reason, site = str(event.get("reason") or TROUBLES[kind]), str(event.get("site"))
            sites[site] = Late(f"site {site}", number, reason)
        elif kind == CLEARED:
            sites.pop(str(event.get("site")), None)
        elif kind == "client_failed" and number == newest:
            clients.append(Late(f"client {event.get('client')}", number, str(event.get("reason"))))
    # Trouble that a whole round came after is over; a refusal is not.
    kept = [late for late in sites.values() if late.round >= newest or late.round == 0]
    return kept + clients


def _privacy(events: Sequence[Event]) -> str:
    """Return epsilon, and delta where it is there, of the newest event that accounts for them."""
    epsilon, delta = _newest(events, "epsilon"), _newest(events, "delta")
    if epsilon is None:
        return "none"
    return f"ε {epsilon:.3g}" + ("" if delta is None else f", δ {delta:.3g}")


def _newest(events: Sequence[Event], name: str) -> float | None:
    values = [value for event in events if isinstance(value := event.get(name), int | float)]
    return float(values[-1]) if values else None


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
