"""What a round does with slow clients; durations are known before anybody trains, so none is trained in vain."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from fedit import registry
from fedit.clock import Duration
from fedit.errors import ConfigError
from fedit.pace import STRAGGLERS
from fedit.pace.base import Asked

Dropped = list[tuple[Asked, str]]
"""Clients that are not waited for, and why."""


@dataclass(frozen=True)
class Stragglers(ABC):
    """A policy for slow clients. A subclass is a frozen dataclass whose fields are its options."""

    @property
    def needs_clock(self) -> bool:
        """Whether it looks at durations."""
        return True

    def contacts(self, size: int) -> int:
        """Return how many clients are asked where the updates of ``size`` are wanted."""
        return size

    @abstractmethod
    def sort(self, asked: Sequence[Asked], size: int) -> tuple[list[Asked], Dropped, float]:
        """Return whose update is waited for, who is dropped and why, and the seconds that the round takes.

        asked: with their durations; size: updates that are wanted.
        """


@dataclass(frozen=True)
class WaitAll(Stragglers):
    """Wait for everybody."""

    @property
    def needs_clock(self) -> bool:
        """Whether it looks at durations: no."""
        return False

    def sort(self, asked: Sequence[Asked], size: int) -> tuple[list[Asked], Dropped, float]:
        """Keep all; the slowest says how long the round takes."""
        return list(asked), [], _longest(asked)


@dataclass(frozen=True)
class Deadline(Stragglers):
    """Drop clients that take longer than a deadline; the weights of the others are normalised among them.

    seconds: simulated ones, from the broadcast to the last byte of the update.
    """

    seconds: float

    def __post_init__(self) -> None:
        _refuse_no_time("deadline", self.seconds)

    def sort(self, asked: Sequence[Asked], size: int) -> tuple[list[Asked], Dropped, float]:
        """Keep who is in time; a round in which somebody is not takes until the deadline."""
        kept = [one for one in asked if _duration(one).total <= self.seconds]
        dropped = [(one, _late(one, self.seconds)) for one in asked if _duration(one).total > self.seconds]
        return kept, dropped, self.seconds if dropped else _longest(kept)


@dataclass(frozen=True)
class OverSelect(Stragglers):
    """Ask more clients than are wanted and take the first, which favours fast ones.

    The protocol is that of Bonawitz et al., 2019, arXiv:1902.01046.

    factor: clients asked over clients wanted, rounded up.
    """

    factor: float = 1.3

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"option 'factor' of stragglers 'over_select' is {self.factor}; expected 1 or more.")

    def contacts(self, size: int) -> int:
        """Return the wanted size times the factor, rounded up."""
        # 1.1 * 10 is 11.000…02, of which the next whole number would be 12.
        return math.ceil(round(self.factor * size, 9))

    def sort(self, asked: Sequence[Asked], size: int) -> tuple[list[Asked], Dropped, float]:
        """Keep the first; ties by id."""
        order = sorted(asked, key=lambda one: (_duration(one).total, one.client_id))
        kept = sorted(order[:size], key=lambda one: one.client_id)
        dropped = [
            (one, f"not waited for: {size} of {len(order)} were faster (its round takes {_seconds(one)})")
            for one in sorted(order[size:], key=lambda one: one.client_id)
        ]
        return kept, dropped, _longest(kept)


@dataclass(frozen=True)
class PartialWork(Stragglers):
    """Let slow clients take as many steps as fit before a deadline; who cannot take one is dropped.

    seconds: simulated ones, from the broadcast to the last byte of the update.
    """

    seconds: float

    def __post_init__(self) -> None:
        _refuse_no_time("partial_work", self.seconds)

    def sort(self, asked: Sequence[Asked], size: int) -> tuple[list[Asked], Dropped, float]:
        """Cut the steps of those who would be late."""
        kept: list[Asked] = []
        dropped: Dropped = []
        for one in asked:
            duration = _duration(one)
            if duration.total <= self.seconds:
                kept.append(one)
            elif steps := duration.steps_within(self.seconds):
                how = replace(one.training, steps=steps, epochs=None, tokens=None)
                kept.append(replace(one, training=how, duration=duration.cut(steps)))
            else:
                dropped.append((one, f"too slow for a single step: {_late(one, self.seconds)}"))
        return kept, dropped, self.seconds if dropped else _longest(kept)


def build_stragglers(name: str, options: Mapping[str, object]) -> Stragglers:
    """Return the policy called ``name`` (or "file.py:Class") with its options.

    Raises:
        UnknownName: no such policy.
        ConfigError: no such option, or a value of the wrong type or size.
    """
    return cast(Stragglers, registry.build("stragglers", name, options, STRAGGLERS, Stragglers))


def _duration(asked: Asked) -> Duration:
    if asked.duration is None:
        raise ValueError("a policy for stragglers needs a clock")
    return asked.duration


def _seconds(asked: Asked) -> str:
    return f"{_duration(asked).total:.3f} simulated s"


def _late(asked: Asked, deadline: float) -> str:
    return f"late: its round takes {_seconds(asked)}, the deadline is {deadline:g}"


def _longest(asked: Sequence[Asked]) -> float:
    return max((one.duration.total for one in asked if one.duration is not None), default=0.0)


def _refuse_no_time(name: str, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ConfigError(f"option 'seconds' of stragglers '{name}' is {seconds}; expected more than 0.")
