"""Learning rates that run through the whole federation, not anew in every round."""

import math
from collections.abc import Callable

from fedit.types import LocalTraining

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
}
"""Name -> share of the learning rate after a share t in [0, 1] of the decay."""


def learning_rate(training: LocalTraining, round: int, done: int, total: int, ahead: int = 1) -> float:
    """Return the learning rate of a step.

    round: 1-based; done: steps (or tokens) already taken in this round; total: those the round has;
    ahead: those that this step takes, so that a warm-up does not begin with a step of no length.
    Both counts enter as whole numbers, so a run cut into more rounds of fewer steps gets the
    same rates, bit for bit.
    """
    position = (round - 1) * total + done
    horizon = training.num_rounds * total
    warmup = training.warmup_ratio * horizon
    if position < warmup:
        return training.learning_rate * (position + ahead) / (warmup + ahead)
    t = (position - warmup) / max(horizon - warmup, 1)
    share = SCHEDULES[training.schedule](min(t, 1.0))
    return training.learning_rate * (training.min_lr_ratio + (1 - training.min_lr_ratio) * share)
