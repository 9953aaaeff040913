"""What federations sent and how far that took them: side by side, and at the same number of bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedit.arms import FEDERATED
from fedit.evaluation.intervals import bootstrap, nested_bootstrap, ratio_of_sums
from fedit.events import Event, EventLog
from fedit.report.record import mapping, number
from fedit.study.items import Items
from fedit.study.personal import read_personal
from fedit.study.summary import Seed, training_folder

MEGA = 1_000_000
Budget = float | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation: after which round, and what all clients together had taken and sent by then.

    bytes: up and down. loss: on the held-out rows; infinite where the arm diverged.
    """

    round: int
    tokens: int
    bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Course:
    """One federation at one seed.

    points:   its evaluations in order, the first before any round.
    each_up:  bytes of an update that arrived, each_down: of a broadcast to a client; means over the run.
    error:    aggregation error, mean over the rounds that have one; None without any.
    partial:  clients keep what the server's model would need: its losses are nobody's.
    """

    points: tuple[Point, ...]
    each_up: float
    each_down: float
    error: float | None
    partial: bool

    @property
    def bytes(self) -> int:
        """All that was sent, up and down."""
        return self.points[-1].bytes

    def at(self, budget: float) -> Point:
        """Return the last evaluation that no more bytes than ``budget`` had led to."""
        return [point for point in self.points if point.bytes <= budget][-1]


def read_course(folder: Path) -> Course:
    """Return the course of the training in ``folder``, from its events."""
    personal = read_personal(folder)
    return course_of(EventLog(folder).history(), partial=personal is not None and personal.partial)


def course_of(events: Sequence[Event], *, partial: bool = False) -> Course:
    """Return the course that an arm's events tell of; an evaluation is one of what was sent up to its round."""
    rounds = [event for event in events if event["event"] == "round"]
    points = []
    for event in events:
        if event["event"] == "evaluation":
            before = [own for own in rounds if _of(own, "round") <= _of(event, "round")]
            loss = number(event.get("loss"))
            sent = sum(_of(own, "bytes_up") + _of(own, "bytes_down") for own in before)
            tokens = sum(_of(own, "tokens") for own in before)
            points.append(
                Point(int(_of(event, "round")), int(tokens), int(sent), math.inf if loss is None else loss)
            )
    errors = [error for own in rounds if (error := number(own.get("aggregation_error"))) is not None]
    asked: float = sum(len(cohort) for own in rounds if isinstance(cohort := own.get("cohort"), list))
    delivered: float = sum(_of(own, "delivered") for own in rounds)
    for event in events:  # how many came is withheld where clients are private; bytes are then expected ones
        if promised := mapping(event.get("privacy")):
            asked = delivered = (number(promised.get("expected_cohort")) or 0) * len(rounds)
    return Course(
        tuple(points),
        sum(_of(own, "bytes_up") for own in rounds) / max(delivered, 1),
        sum(_of(own, "bytes_down") for own in rounds) / max(asked, 1),
        float(np.mean(errors)) if errors else None,
        partial,
    )


def read_courses(seeds: Sequence[Seed], roles: Sequence[str]) -> dict[str, list[Course]]:
    """Return the courses of the federations among ``roles``, one a seed, in the order of both."""
    return {
        role: [read_course(training_folder(seed, role)) for seed in seeds]
        for role in roles
        if role.partition(":")[0] == FEDERATED
    }


def costs(courses: Sequence[Course]) -> dict[str, object]:
    """Return what a federation's entry in ``summary.json`` says of its traffic, on average over seeds."""
    errors = [course.error for course in courses if course.error is not None]
    return {
        "client_bytes_up": float(np.mean([course.each_up for course in courses])),
        "client_bytes_down": float(np.mean([course.each_down for course in courses])),
        "aggregation_error": float(np.mean(errors)) if errors else None,
        "partial": any(course.partial for course in courses),
    }


def equal_bytes(
    seeds: Sequence[Seed], courses: Mapping[str, Sequence[Course]], budget: Budget, *, resamples: int
) -> dict[str, object]:
    """Return ``equal_bytes`` of ``summary.json``: every federation at the last evaluation within a budget.

    budget: megabytes of all clients together, up and down; "auto": of the federation that took least, what it took
            at the seed where it took most. Federations whose server's model is not whole take no part.

    Where every seed is at its end, the interval is over seeds and rows; otherwise losses of single rows were not
    kept, and it is over seeds. Differences to the first federation are paired by seed, always over seeds.
    """
    whole = {role: own for role, own in courses.items() if not any(course.partial for course in own)}
    if not whole:
        return {"budget_bytes": None, "given": budget != "auto", "first": None, "arms": {}}
    limit = (
        float(min(max(course.bytes for course in own) for own in whole.values()))
        if budget == "auto"
        else budget * MEGA
    )
    points = {role: [course.at(limit) for course in own] for role, own in whole.items()}
    first = next(iter(points))
    arms: dict[str, dict[str, object]] = {}
    for role, own in points.items():
        ended = all(point == course.points[-1] for point, course in zip(own, whole[role], strict=True))
        arms[role] = {
            **_loss(own, [seed.items[role] for seed in seeds] if ended else None, resamples),
            "per_seed": [_finite(point.loss) for point in own],
            "rounds": [point.round for point in own],
            "finished": ended,
            "tokens": float(np.mean([point.tokens for point in own])),
            "bytes": float(np.mean([point.bytes for point in own])),
        }
        if role != first:
            apart = [a.loss - b.loss for a, b in zip(own, points[first], strict=True)]
            difference, bounds = _over_seeds(apart, resamples)
            arms[role]["vs_first"] = {"difference": difference, "ci": bounds}
    return {"budget_bytes": limit, "given": budget != "auto", "first": first, "arms": arms}


def _loss(points: Sequence[Point], items: Sequence[Items] | None, resamples: int) -> dict[str, object]:
    """Return the loss, its interval, and what that is over; None where there is nothing to draw from."""
    if items is not None:
        whole = nested_bootstrap([own.column("loss") for own in items], ratio_of_sums, resamples=resamples)
        over = "rows" if len(points) == 1 else "seeds and rows"
        return {"loss": whole.estimate, "ci": whole.bounds(), "ci_over": over}
    loss, bounds = _over_seeds([point.loss for point in points], resamples)
    return {"loss": loss, "ci": bounds, "ci_over": "seeds" if bounds else None}


def _over_seeds(values: Sequence[float], resamples: int) -> tuple[float | None, list[float] | None]:
    """Return the mean over seeds and its interval; neither where an arm diverged, no interval of one seed."""
    if not all(map(math.isfinite, values)):
        return None, None
    interval = bootstrap(values, resamples=resamples)
    return interval.estimate, interval.bounds() if len(values) > 1 else None


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _of(event: Event, name: str) -> float:
    return number(event.get(name)) or 0.0
