"""Which numbers of an event are shown as curves, and what they are called."""

import math
import re
from collections.abc import Mapping

from fedit.events import Event

KINDS = ("round", "evaluation")
"""Events whose numbers make curves; their step is the round."""
_NESTED = ("per_category", "clients")
_LEFT_OUT = ("round", "time")
_UNUSUAL = re.compile(r"[^\w./ -]")


def points(event: Event) -> dict[str, float]:
    """Return name -> number of an event, named as in ``events.jsonl``: "round/train_loss", "evaluation/loss"."""
    kind = str(event["event"])
    if kind not in KINDS:
        return {}
    found: dict[str, float] = {}
    for name, value in event.items():
        if name in _LEFT_OUT:
            continue
        if isinstance(value, Mapping) and name in _NESTED:
            found |= {
                f"{kind}/{name}/{inner}": n for inner, one in value.items() if (n := _number(one)) is not None
            }
        elif (number := _number(value)) is not None:
            found[f"{kind}/{name}"] = number
    return {_UNUSUAL.sub("_", name): number for name, number in found.items()}


def _number(value: object) -> float | None:
    """Return a finite number; None for all else, also for the loss of an arm that diverged."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
