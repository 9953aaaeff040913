"""What a sweep found: every point's numbers with intervals over seeds, and its differences to the first point."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit.errors import RunFolderError
from fedit.files import read_json
from fedit.report.charts.spec import Axis, HeatMap, Interval, Intervals
from fedit.report.document import Block, Column, Document, Fact, Facts, Figure, Headline, Note, Row, Section, Table
from fedit.report.numbers import Estimate, number_text
from fedit.report.record import bounds, mapping, number
from fedit.study.items import METRICS
from fedit.study.summary import Seed, difference, read_seeds
from fedit.sweep.plan import Plan, Point, point_folder

SCHEMA = 1
"""Version of ``summary.json``."""
KEPT = ("loss", "token_accuracy", "exact_match", "rouge_l")
COSTS = ("rounds", "tokens", "bytes_up", "bytes_down", "seconds", "learning_rate")
TITLES = {
    "loss": ("held-out loss", ".3f"),
    "token_accuracy": ("token accuracy", ".1%"),
    "exact_match": ("exact match", ".1%"),
    "rouge_l": ("ROUGE-L", ".3f"),
}


def summarise(plan: Plan, folder: Path) -> dict[str, object]:
    """Return the content of a sweep's ``summary.json``; all points are done."""
    first = _seeds(plan.points[0], folder)
    points = [_point(point, folder, first if place else None) for place, point in enumerate(plan.points)]
    finite = [one for one in points if number(one["loss"]) is not None]
    best = min(finite, key=lambda one: float(one["loss"]))["name"] if finite else None
    config = plan.points[0].settings.config
    return {
        "schema": SCHEMA,
        "model": config.model,
        "dataset": config.dataset,
        "axes": {name: list(values) for name, values in plan.axes.items()},
        "seeds": plan.points[0].settings.study.seeds_from(config.seed),
        "points": points,
        "best": best,
    }


def _seeds(point: Point, folder: Path) -> list[Seed]:
    config, study = point.settings.config, point.settings.study
    return read_seeds(point_folder(folder, point), study.seeds_from(config.seed))


def _point(point: Point, folder: Path, first: Sequence[Seed] | None) -> dict[str, Any]:
    """Return the numbers of a point's federation; those of other arms are in the study's own summary.

    first: the seeds of the first point, which differences are to; None: this is it.
    """
    own = point_folder(folder, point)
    arms = mapping(read_json(own / "summary.json")["arms"])
    role = next((name for name in arms if name.startswith("federated")), None) or next(iter(arms))
    arm = mapping(arms[role])
    found: dict[str, Any] = {
        "name": point.name,
        "settings": dict(point.values),
        "folder": own.relative_to(folder).as_posix(),
        "arm": role,
        **{name: arm[name] for name in KEPT if name in arm},
        "ci": arm["ci"],
        "per_seed": arm["per_seed"],
        **{name: arm[name] for name in COSTS if name in arm},
    }
    if first is not None:
        found["vs_first"] = _versus(_seeds(point, folder), first, role, point.settings.study.resamples)
    return found


def _versus(own: Sequence[Seed], first: Sequence[Seed], role: str, resamples: int) -> dict[str, object] | None:
    """Return the differences to the first point on the same rows; None where points have other rows or arms."""
    pairs = []
    for mine, theirs in zip(own, first, strict=True):
        other = theirs.items.get(role)
        if other is None or mine.items[role].rows != other.rows:
            return None
        pairs.append((mine.items[role], other))
    metrics = [name for name in METRICS if name in KEPT and all(_has(pair, name) for pair in pairs)]
    return {name: difference(pairs, name, resamples) for name in metrics}


def _has(pair: tuple[Any, Any], metric: str) -> bool:
    return metric in ("loss", "token_accuracy") or all(items.texts is not None for items in pair)


def sweep_report(folder: Path) -> Document:
    """Return the report on the finished sweep in ``folder``.

    Raises:
        RunFolderError: it holds no finished sweep.
    """
    path = folder / "summary.json"
    summary = read_json(path) if path.is_file() else {}
    if "points" not in summary or "axes" not in summary:
        raise RunFolderError(f"{folder} holds no finished sweep.")
    points = [mapping(one) for one in summary["points"]]
    seeds = len(summary["seeds"])
    blocks: list[Block] = [_headline(summary, points)]
    if seeds == 1:
        blocks.append(Note("One seed: intervals are over held-out rows and say nothing about other seeds."))
    sections = [
        Section("Summary", "summary", tuple(blocks)),
        Section("Points", "points", (_table(points, seeds), _whiskers(points, seeds), *_matrix(summary, points))),
        Section("What was swept", "axes", (_facts(summary),)),
    ]
    counts = f"{_count(len(points), 'point')}, {_count(seeds, 'seed')}"
    subtitle = f"{summary['model']} on {Path(str(summary['dataset'])).name}, {counts}"
    return Document(folder.resolve().name, subtitle, tuple(sections))


def _headline(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Headline:
    best = next((point for point in points if point["name"] == summary["best"]), None)
    if best is None:
        return Headline("No point has a finite held-out loss.", ())
    low, high = bounds(mapping(best["ci"]).get("loss"))
    loss = number_text(number(best["loss"]), ".3f")
    interval = f"95 % interval {number_text(low, '.3f')} to {number_text(high, '.3f')}"
    return Headline(
        f"The lowest held-out loss, {loss}, is that of {best['name']}. The best of many points looks better "
        "than it is: it was chosen by the numbers shown.",
        (Fact("held-out loss", loss, interval),),
    )


def _table(points: Sequence[Mapping[str, Any]], seeds: int) -> Table:
    metrics = [name for name in KEPT if any(name in point for point in points)]
    columns = [Column("point")]
    columns += [
        Column(TITLES[m][0], "interval", TITLES[m][1], "lowest" if m == "loss" else "highest") for m in metrics
    ]
    columns += [
        Column("loss minus the first", "interval", "+.3f"),
        Column("tokens", "number", ",d"),
        Column("up", "number", "bytes", "lowest"),
        Column("down", "number", "bytes", "lowest"),
        Column("time", "number", "duration"),
    ]
    rows = []
    for point in points:
        apart = mapping(mapping(point.get("vs_first") or {}).get("loss"))
        value = number(apart.get("difference"))
        rows.append(
            Row(
                (
                    point["name"],
                    *(_estimate(point, metric) for metric in metrics),
                    None if value is None else Estimate(value, *bounds(apart.get("ci"))),
                    *(number(point.get(name)) for name in ("tokens", "bytes_up", "bytes_down", "seconds")),
                )
            )
        )
    over = "held-out rows" if seeds == 1 else f"{seeds} seeds and the held-out rows of each"
    return Table(
        f"Every point, with 95 % intervals over {over}; costs are means over seeds", tuple(columns), tuple(rows)
    )


def _estimate(point: Mapping[str, Any], metric: str) -> Estimate | None:
    value = number(point.get(metric))
    return None if value is None else Estimate(value, *bounds(mapping(point["ci"]).get(metric)))


def _whiskers(points: Sequence[Mapping[str, Any]], seeds: int) -> Figure:
    rows = [(point["name"], _estimate(point, "loss")) for point in points]
    best = min((e.value for _, e in rows if e is not None), default=None)
    chart = Intervals(
        Axis("held-out loss (nats per token)", ".3f"),
        tuple(Interval(name, own, own.value == best) for name, own in rows if own is not None),
    )
    diverged = [name for name, own in rows if own is None]
    note = f" Without a finite loss: {', '.join(diverged)}." if diverged else ""
    caption = f"Dots are means over {_count(seeds, 'seed')}, lines 95 % intervals. Lower is better.{note}"
    return Figure("points-loss", "Held-out loss of every point", chart, f"{_count(len(rows), 'point')}.", caption)


def _matrix(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the losses as a table of two axes, where there are just two."""
    if len(summary["axes"]) != 2:
        return []
    (down, rows), (across, columns) = summary["axes"].items()
    losses = iter([number(point["loss"]) for point in points])
    values = tuple(tuple(next(losses) for _ in columns) for _ in rows)
    chart = HeatMap(down, across, "held-out loss", tuple(map(str, rows)), tuple(map(str, columns)), values, ".3f")
    return [
        Figure(
            "points-matrix",
            f"Held-out loss by {down} and {across}",
            chart,
            "Darker is larger.",
            "Means over seeds.",
        )
    ]


def _facts(summary: Mapping[str, Any]) -> Facts:
    axes = [Fact(name, ", ".join(map(str, values))) for name, values in summary["axes"].items()]
    return Facts((*axes, Fact("Seeds", ", ".join(map(str, summary["seeds"])))))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
