"""How the rounds went: drift of the clients, what averaging loses, failures, traffic and time."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedit.report.charts.spec import Axis, Bars, Lines, Series, Stack
from fedit.report.document import Block, Column, Fact, Facts, Figure, Note, Row, Section, Table, Text
from fedit.report.numbers import MISSING, number_text, shrunk
from fedit.report.sections.curves import Points, thinned

Event = Mapping[str, object]
"""An event of a run's log, as `docs/run-folder.md` describes it."""

MOST_BARS = 120
"""Rounds with a bar of their own; of more, a bar is the sum of several."""

_ROUND = Axis("round", ",d", whole=True)


def rounds_section(
    rounds: Sequence[Event],
    failures: Sequence[Event] = (),
    *,
    left_under_way: int = 0,
    resumed: int = 0,
    stopped_early: bool = False,
) -> Section:
    """Return the course of the rounds from the events ``round`` and ``client_failed`` of the federation.

    left_under_way: clients that had started when the last round ended.
    resumed: how often the run was interrupted and went on.
    """
    delivered = sum(_integer(event, "delivered") for event in rounds)
    asked = delivered + sum(_integer(event, "failed") for event in rounds)
    skipped = [str(event["round"]) for event in rounds if event.get("aggregated") is False]
    text = f"{len(rounds):,} rounds asked for {asked:,} updates and got {delivered:,}."
    if any(event.get("withheld") for event in rounds):
        text = f"{len(rounds):,} rounds. Who took part in them, and how many, is withheld: clients are private."
    if dropped := sum(_integer(event, "dropped") for event in rounds):
        text += f" {dropped:,} more clients were asked and not waited for, being late or more than were wanted."
    if flushed := [str(event["round"]) for event in rounds if event.get("flushed")]:
        text += f" Round {', '.join(flushed)} took a buffer that was not full, as nobody was left to come."
    if left_under_way:
        text += f" {left_under_way:,} clients were under way when the rounds were over, and are not waited for."
    if resumed:
        text += f" The run was interrupted and resumed {'once' if resumed == 1 else f'{resumed:,} times'}."
    if stopped_early:
        text += " It stopped early, as the validation loss no longer fell."
    blocks: list[Block] = [Text(text)]
    if skipped:
        some = f"{', '.join(skipped[:10])}{' …' if len(skipped) > 10 else ''}"
        blocks.append(Note(f"Too few updates came in round {some}: the adapter stayed as it was.", "warning"))
    blocks += [figure for figure in _diagnostics(rounds) if figure is not None]
    if failures:
        blocks += _failures(rounds, failures)
    blocks.append(_table(rounds))
    return Section("Rounds", "rounds", tuple(blocks))


def communication_section(
    rounds: Sequence[Event], evaluations: Sequence[Event] = (), under_way: Sequence[Event] = ()
) -> Section:
    """Return traffic and time from the events ``round``, ``evaluation`` and ``under_way`` of the federation."""
    names = ("bytes_up", "bytes_down", "raw_bytes_up", "raw_bytes_down")
    sent = [*rounds, *under_way]
    up, down, raw_up, raw_down = (sum(_value(event, name) or 0.0 for event in sent) for name in names)
    training = sum(_value(event, "seconds") or 0.0 for event in rounds)
    scoring = sum(_value(event, "seconds") or 0.0 for event in evaluations)
    updates = sum(_integer(event, "delivered") for event in rounds)
    each = number_text(up / updates, "bytes") if updates else MISSING
    about_up = _joined(f"{each} an update", shrunk(raw_up, up))
    facts = (
        Fact("From clients to the server", number_text(up, "bytes"), about_up),
        Fact("From the server to clients", number_text(down, "bytes"), shrunk(raw_down, down)),
        Fact("Training", number_text(training, "duration"), "wall-clock time of the rounds"),
        Fact("Evaluation", number_text(scoring, "duration"), "of the federation's adapter"),
    )
    blocks: list[Block] = [Facts(facts)]
    if rounds:
        labels, sums = _grouped(rounds, ("bytes_up", "bytes_down", "seconds"))
        of = "round" if len(labels) == len(rounds) else "rounds"
        traffic = (Stack("clients to server", sums["bytes_up"]), Stack("server to clients", sums["bytes_down"]))
        blocks += [
            Figure(
                "traffic",
                "Traffic",
                Bars(of, Axis("bytes sent", "bytes"), labels, traffic),
                f"Bytes by round; in all {number_text(up, 'bytes')} up and {number_text(down, 'bytes')} down.",
                "Sizes of the tensors as they are sent.",
                half=True,
            ),
            Figure(
                "time",
                "Time",
                Bars(of, Axis("seconds", ",.3g"), labels, (Stack("training", sums["seconds"]),)),
                f"Bars of the time by round: {number_text(training, 'duration')} in all.",
                "Wall-clock time of local training and aggregation.",
                half=True,
            ),
        ]
    if (course := _loss_over_traffic(rounds, evaluations)) is not None:
        blocks.append(course)
    return Section("Communication and time", "communication", tuple(blocks))


def _diagnostics(rounds: Sequence[Event]) -> list[Figure | None]:
    """Return four small charts: training loss, drift, agreement, aggregation error."""
    norms = [
        ("of the mean update", "mean_update_norm"), ("mean of the clients", "update_norm_mean"),
        ("largest of the clients", "update_norm_max"),
    ]  # fmt: skip
    errors = [
        _estimate(rounds, "this algorithm", "aggregation_error", "aggregation_error_se"),
        _estimate(rounds, "averaging A and B apart", "aggregation_bias", "aggregation_bias_error"),
    ]
    if _alike(rounds):
        errors.pop()
    return [
        _small(
            "training-loss",
            "Training loss",
            Axis("nats per token", ".3f"),
            [Series("training loss", thinned(_course(rounds, "train_loss")))],
            "Mean over the cohort, on its own rows while it trains.",
        ),
        _small(
            "drift",
            "Client drift",
            Axis("Euclidean norm of updates", ".3g", zero=True),
            [Series(name, thinned(_course(rounds, key))) for name, key in norms],
            "How far clients move, and how far their mean does.",
        ),
        _small(
            "agreement",
            "Agreement of updates",
            Axis("mean pairwise cosine", ".2f", zero=True),
            [Series("cosine", thinned(_course(rounds, "pairwise_cosine")))],
            "1: all clients move the same way; 0: at right angles.",
        ),
        _small(
            "aggregation-error",
            "Aggregation error",
            Axis("distance as a share of the movement", ".1%", zero=True),
            [series for series in errors if any(value is not None for _, value in series.points)],
            "How far the new model is from the mean of the clients' models"
            + ("; the band is one standard error." if any(series.band for series in errors) else "."),
        ),
    ]


def _estimate(rounds: Sequence[Event], name: str, key: str, error: str) -> Series:
    """Return the course of an estimate with its standard error around it where there is one."""
    band = [
        (x, y - e, y + e)
        for event in rounds
        if (y := _value(event, key)) is not None
        and (e := _value(event, error)) is not None
        and (x := _integer(event, "round")) is not None
    ]
    return Series(name, thinned(_course(rounds, key)), thinned(tuple(band)))


def _alike(rounds: Sequence[Event]) -> bool:
    """Return whether the algorithm's error is that of averaging A and B apart, up to rounding, in every round."""
    pairs = [(_value(event, "aggregation_error"), _value(event, "aggregation_bias")) for event in rounds]
    return all(
        one is not None and two is not None and math.isclose(one, two, rel_tol=0.01, abs_tol=1e-4)
        for one, two in pairs
    )


def _small(name: str, title: str, y: Axis, series: Sequence[Series], caption: str) -> Figure | None:
    """Return a chart over the rounds; None where nothing was measured."""
    if not any(value is not None for one in series for _, value in one.points):
        return None
    said = "; ".join(f"{one.name} {_ends(one.points, y.form)}" for one in series)
    return Figure(name, title, Lines(_ROUND, y, tuple(series)), f"{title} by round: {said}.", caption, half=True)


def _failures(rounds: Sequence[Event], failures: Sequence[Event]) -> list[Block]:
    reasons = Counter(str(event.get("reason", "unknown")) for event in failures)
    rows = tuple(
        Row(
            (
                reason,
                count,
                ", ".join(sorted({str(e.get("client")) for e in failures if e.get("reason") == reason})[:8]),
            )
        )
        for reason, count in reasons.most_common(20)
    )
    columns = (Column("reason"), Column("updates", "number", ",d"), Column("clients (up to eight)"))
    labels, sums = _grouped(rounds, ("delivered", "failed"))
    stacks = (Stack("delivered", sums["delivered"]), Stack("failed", sums["failed"]))
    chart = Bars("round", Axis("updates", ",d", whole=True), labels, stacks)
    said = f"Bars of delivered and failed updates by round; {len(failures):,} failed in all."
    return [Figure("failures", "Failed updates", chart, said), Table("Why updates failed", columns, rows)]


def _table(rounds: Sequence[Event]) -> Table:
    names = [
        ("updates", "delivered", ",d"), ("failed", "failed", ",d"), ("not waited for", "dropped", ",d"),
        ("tokens", "tokens", ",d"), ("training loss", "train_loss", ".3f"),
        ("mean update norm", "update_norm_mean", ".3g"), ("cosine", "pairwise_cosine", ".3f"),
        ("diversity", "diversity", ".2f"),
        ("aggregation error", "aggregation_error", ".1%"), ("of A and B apart", "aggregation_bias", ".1%"),
        ("seconds", "seconds", ".1f"),
    ]  # fmt: skip
    known = [(title, key, form) for title, key, form in names if any(_value(e, key) is not None for e in rounds)]
    columns = (Column("round"), *(Column(title, "number", form) for title, _, form in known))
    shown = rounds if len(rounds) <= MOST_BARS else [*rounds[: MOST_BARS // 2], *rounds[-MOST_BARS // 2 :]]
    caption = (
        "All rounds" if shown is rounds else f"The first and the last {MOST_BARS // 2} of {len(rounds):,} rounds"
    )
    rows = tuple(Row((str(event["round"]), *(_value(event, key) for _, key, _ in known))) for event in shown)
    return Table(caption, columns, rows, folded=True)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _loss_over_traffic(rounds: Sequence[Event], evaluations: Sequence[Event]) -> Figure | None:
    """Return the held-out loss over all bytes sent so far."""
    sent, total = {0: 0.0}, 0.0
    for event in rounds:
        total += (_value(event, "bytes_up") or 0.0) + (_value(event, "bytes_down") or 0.0)
        sent[_integer(event, "round")] = total
    points: Points = tuple(
        (sent[number], _value(event, "loss"))
        for event in evaluations
        if (number := _integer(event, "round")) in sent
    )
    if sum(y is not None for _, y in points) < 2:
        return None
    axes = Axis("bytes sent, both ways", "bytes", zero=True), Axis("held-out loss (nats per token)", ".3f")
    said = f"Held-out loss {_ends(points, '.3f')} over {number_text(total, 'bytes')}."
    chart = Lines(*axes, (Series("federated", thinned(points), emphasis=True),))
    return Figure("loss-traffic", "Held-out loss over traffic", chart, said, "What a lower loss costs in bytes.")


def _grouped(rounds: Sequence[Event], keys: Sequence[str]) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Return labels and sums of the rounds, or of equally many neighbours where there are too many."""
    each = -(-len(rounds) // MOST_BARS) if rounds else 1
    groups = [rounds[start : start + each] for start in range(0, len(rounds), each)]
    labels = tuple(
        str(group[0]["round"]) if each == 1 else f"{group[0]['round']}-{group[-1]['round']}" for group in groups
    )
    return labels, {key: tuple(sum(_value(e, key) or 0.0 for e in group) for group in groups) for key in keys}


def _course(events: Iterable[Event], key: str) -> Points:
    return tuple((float(_integer(event, "round")), _value(event, key)) for event in events)


def _ends(points: Points, form: str) -> str:
    known = [y for _, y in points if y is not None]
    return f"from {number_text(known[0], form)} to {number_text(known[-1], form)}" if known else "unknown"


def _value(event: Event, key: str) -> float | None:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _integer(event: Event, key: str) -> int:
    return int(_value(event, key) or 0)
