"""The section of a study's report that compares its federations: what they sent, and equal bytes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedit.report.charts.spec import Axis, Lines, Reference, Series
from fedit.report.document import Block, Column, Figure, Note, Row, Section, Table, Text
from fedit.report.numbers import Estimate, number_text
from fedit.report.record import bounds, mapping, number
from fedit.study.summary import Seed
from fedit.study.traffic import MEGA, Course, read_courses

MOST_CURVES = 8
"""Strategies drawn in one chart; more could not be told apart."""


def strategies_section(
    summary: Mapping[str, object], arms: Mapping[str, Mapping[str, object]], seeds: Sequence[Seed]
) -> Section | None:
    """Return the federations side by side; None where there are not several, or the study is an older one.

    summary: content of ``summary.json``; arms: of it, in the order they are listed.
    """
    courses = read_courses(seeds, list(arms))
    equal = mapping(summary.get("equal_bytes"))
    if len(courses) < 2 or not equal:
        return None
    blocks: list[Block] = [_side_by_side({role: arms[role] for role in courses})]
    if partial := [role for role in courses if arms[role].get("partial")]:
        names = " and ".join(map(short, partial))
        blocks.append(
            Note(
                f"Clients of {names} keep some of what they train. The server's model is then nobody's, and its "
                "loss not comparable: of these look at the clients' mean loss, of what each client runs.",
                "warning",
            )
        )
    if at_equal := mapping(equal.get("arms")):
        blocks += [_equal_bytes(equal, at_equal, list(courses)), Text(_about(equal, at_equal))]
    whole = {role: own for role, own in courses.items() if role not in partial}
    blocks += _curves(whole, number(mapping(arms.get("base")).get("loss")))
    return Section("Strategies", "strategies", tuple(blocks))


def short(role: str) -> str:
    """Return an arm's strategy, or the arm's name where it is the job's own."""
    return role.partition(":")[2] or role


def _side_by_side(arms: Mapping[str, Mapping[str, object]]) -> Table:
    columns = (
        Column("strategy"),
        Column("held-out loss", "interval", ".3f"),
        Column("clients, mean loss", "number", ".3f", "lowest"),
        Column("aggregation error", "number", ".2g"),
        Column("up, client and round", "number", "bytes", "lowest"),
        Column("down", "number", "bytes", "lowest"),
        Column("up in all", "number", "bytes", "lowest"),
        Column("down in all", "number", "bytes", "lowest"),
        Column("time", "number", "duration"),
    )
    rows = [
        Row(
            (
                short(role),
                "not comparable" if arm.get("partial") else _loss(arm, bounds(mapping(arm["ci"])["loss"])),
                number(mapping(arm.get("per_client")).get("mean")),
                number(arm.get("aggregation_error")),
                *(number(arm.get(f"client_bytes_{way}")) for way in ("up", "down")),
                *(number(arm.get(f"bytes_{way}")) for way in ("up", "down")),
                number(arm.get("seconds")),
            )
        )
        for role, arm in arms.items()
    ]
    return Table("Strategies at equal rounds and steps; means over seeds", columns, tuple(rows))


def _equal_bytes(equal: Mapping[str, object], arms: Mapping[str, object], roles: Sequence[str]) -> Table:
    first = str(equal["first"])
    columns = (
        Column("strategy"),
        Column("held-out loss", "interval", ".3f", "lowest"),
        Column(f"minus {short(first)}", "interval", "+.3f"),
        Column("interval over"),
        Column("after round"),
        Column("tokens", "number", ",d"),
        Column("bytes", "number", "bytes"),
    )
    rows = []
    for role in (role for role in roles if role in arms):
        own = mapping(arms[role])
        apart = mapping(own.get("vs_first"))
        difference = number(apart.get("difference"))
        rows.append(
            Row(
                (
                    short(role),
                    _loss(own, bounds(own["ci"])),
                    None if difference is None else Estimate(difference, *bounds(apart["ci"])),
                    str(own["ci_over"] or "none"),
                    rounds_text(own["rounds"]),
                    number(own["tokens"]),
                    number(own["bytes"]),
                )
            )
        )
    limit = number_text(number(equal["budget_bytes"]), "bytes")
    return Table(f"At equal bytes: the last evaluation within {limit}, up and down", columns, tuple(rows))


def _about(equal: Mapping[str, object], arms: Mapping[str, object]) -> str:
    rule = "as study.byte_budget_megabytes says" if equal["given"] else "what the thriftiest strategy took in all"
    text = (
        f"The budget is {rule}, of all clients together. Intervals of differences are over seeds, which are "
        "paired; of losses they are over seeds and rows only where a strategy is at its end, since losses of "
        "single rows are kept of the last round alone. They are not to be compared with each other."
    )
    waiting = [short(role) for role, own in arms.items() if not any(_rounds(mapping(own)["rounds"]))]
    if waiting:
        text += (
            f" The budget ends before the first evaluation after a round of {', '.join(waiting)}: the base model."
        )
    return text


def _loss(own: Mapping[str, object], ends: tuple[float | None, float | None]) -> Estimate | None:
    loss = number(own.get("loss"))
    return None if loss is None else Estimate(loss, *ends)


def rounds_text(rounds: object) -> str:
    """Return the rounds of all seeds, once where they are the same."""
    return ", ".join(map(str, sorted(set(_rounds(rounds)))))


def _rounds(rounds: object) -> list[int]:
    return [int(number(one) or 0) for one in rounds] if isinstance(rounds, list) else []


def _curves(courses: Mapping[str, Sequence[Course]], base: float | None) -> list[Figure]:
    """Return charts of the loss over what was sent, of eight strategies each and so with curves to tell apart."""
    roles = list(courses)
    parts = [roles[start : start + MOST_CURVES] for start in range(0, len(roles), MOST_CURVES)]
    references = () if base is None else (Reference("base model", base),)
    found = []
    for index, part in enumerate(parts, start=1):
        series = tuple(Series(short(role), _points(courses[role])) for role in part)
        of = f", {index} of {len(parts)}" if len(parts) > 1 else ""
        ends = "; ".join(f"{one.name} {number_text(one.points[-1][1], '.3f')}" for one in series)
        chart = Lines(
            Axis("megabytes, up and down", ",.4g", zero=True),
            Axis("held-out loss (nats per token)", ".3f"),
            series,
            references,
        )
        caption = "Means over seeds, from the first model on. Lower is better; further left is cheaper."
        found.append(
            Figure(f"strategies-bytes-{index}", f"Loss over bytes{of}", chart, f"At the end: {ends}.", caption)
        )
    return found


def _points(courses: Sequence[Course]) -> tuple[tuple[float, float | None], ...]:
    """Return (megabytes, loss) of every evaluation, both means over seeds; no loss where an arm diverged."""
    points = []
    for same in zip(*(course.points for course in courses), strict=True):
        loss = float(np.mean([point.loss for point in same]))
        sent = float(np.mean([point.bytes for point in same])) / MEGA
        points.append((sent, loss if math.isfinite(loss) else None))
    return tuple(points)
