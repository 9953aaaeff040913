"""What a run's models and uploads tell of the rows that were trained on: the report's section on its audit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedit.report.charts.spec import Axis, Interval, Intervals, Lines, Reference, Series
from fedit.report.document import Block, Column, Figure, Note, Row, Section, Table, Text
from fedit.report.numbers import Estimate, number_text

SCORES: Mapping[str, str] = {
    "loss": "low loss",
    "reference": "loss against a reference",
    "zlib": "loss over compressed size",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
    "lira": "LiRA-lite",
    "lira_offline": "LiRA-lite, offline",
}
"""Score -> what a report calls it."""

SHOWN = ("loss", "reference", "min_k_plus_plus")
"""Scores that are followed over rounds."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What a score is worth: see `fedit.privacy.audit.separation.Separation`; caught: at 1 % and 0.1 %."""

    score: str
    auc: Estimate
    accuracy: Estimate
    caught: Estimate | None
    caught_few: Estimate | None
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a model knows of the canaries that were planted so often."""

    repetitions: int
    canaries: int
    trained_on: float | None
    mean: Estimate
    highest: float | None
    extracted: int


@dataclass(frozen=True, slots=True)
class Audited:
    """One model: kind is base, round, final or upload; left_out: why its rows say nothing."""

    kind: str
    round: int
    client: str
    members: int
    others: int
    attacks: Sequence[Attack] = ()
    left_out: str = ""
    exposures: Sequence[Exposure] = ()

    @property
    def name(self) -> str:
        """What a report calls it."""
        named = {"base": "base", "round": f"round {self.round}", "final": f"final (round {self.round})"}
        return named.get(self.kind, f"upload of {self.client}, round {self.round}")


@dataclass(frozen=True, slots=True)
class Audit:
    """All that was found; references: a canary was ranked among so many; claim: epsilon that the run claims."""

    models: Sequence[Audited]
    references: int
    chance: float
    claim: float | None = None
    warnings: Sequence[str] = field(default_factory=tuple)


def leakage_section(audit: Audit) -> Section | None:
    """Return tables and pictures of an audit; None where nothing was looked at."""
    final = next((model for model in audit.models if model.kind == "final"), None)
    if final is None:
        return None
    blocks: list[Block] = [Text(_said(audit, final)), *(Note(text, "warning") for text in audit.warnings)]
    if final.attacks:
        blocks += [_attack_figure(final), _attack_table(audit)]
    if final.left_out:
        blocks.append(Note(final.left_out))
    if figure := _rounds_figure(audit):
        blocks.append(figure)
    if final.exposures:
        blocks += [_exposure_figure(audit), _exposure_table(audit)]
    blocks.append(
        Note(
            "An attack that fails proves nothing about better ones. Thresholds are judged on rows that did not "
            "choose them; intervals are 95 %, over rows or canaries of this one run. The bound of epsilon takes "
            "rows for independent, which those of one run are not quite."
        )
    )
    return Section("What leaked", "leakage", tuple(blocks))


def _said(audit: Audit, final: Audited) -> str:
    parts = []
    if final.attacks:
        best = max(final.attacks, key=lambda attack: attack.auc.value)
        sure = best.auc.low is not None and best.auc.low > 0.5
        seen = "members are told from others" if sure else "members are hardly told from others"
        parts.append(
            f"Of the final adapter {seen}: the best of {len(final.attacks)} scores, "
            f"{SCORES.get(best.score, best.score)}, has an AUC of {number_text(best.auc.value, '.3f')} over "
            f"{final.members:,} rows that were trained on and {final.others:,} that were not (0.5 is guessing)."
        )
    if final.exposures:
        total = sum(one.canaries for one in final.exposures)
        parts.append(
            f"{sum(one.extracted for one in final.exposures)} of {total} planted secrets can be read out of it "
            "word for word."
        )
    if audit.claim is not None:
        parts.append(f"The run claims an epsilon of at most {number_text(audit.claim, '.2f')}.")
    return " ".join(parts)


def _attack_figure(final: Audited) -> Figure:
    rows = tuple(Interval(SCORES.get(one.score, one.score), one.auc) for one in final.attacks)
    said = "; ".join(f"{SCORES.get(a.score, a.score)}: {number_text(a.auc.value, '.2f')}" for a in final.attacks)
    return Figure(
        "leakage-membership",
        "How well the final adapter's members are told from other rows",
        Intervals(Axis("AUC", ".2f"), rows, (Reference("guessing", 0.5),)),
        f"AUC with intervals, one row a score. {said}.",
        "The chance that a row that was trained on scores higher than one that was not. 1 is certainty.",
    )


def _attack_table(audit: Audit) -> Table:
    few = any(attack.caught_few for model in audit.models for attack in model.attacks)
    columns = [
        Column("model"),
        Column("score"),
        Column("rows", "number", ",d"),
        Column("AUC", "interval", ".3f"),
        Column("balanced accuracy", "interval", ".3f"),
        Column("found at 1 % false alarms", "interval", ".1%"),
        *([Column("at 0.1 %", "interval", ".1%")] if few else []),
        Column("epsilon, at least", "number", ".2f"),
    ]
    rows = []
    for model in audit.models:
        for one in model.attacks:
            last = [one.caught_few] if few else []
            cells = (
                model.name,
                SCORES.get(one.score, one.score),
                model.members,
                one.auc,
                one.accuracy,
                one.caught,
            )
            rows.append(Row((*cells, *last, one.epsilon), model.kind == "final"))
    return Table("Membership inference, model by model", tuple(columns), tuple(rows), folded=len(rows) > 12)


def _rounds_figure(audit: Audit) -> Figure | None:
    """Return how the scores fare over rounds; None where there is but one model of all."""
    of_all = [model for model in audit.models if model.kind != "upload" and model.attacks]
    uploads = [model for model in audit.models if model.kind == "upload" and model.attacks]
    series = [_followed(of_all, score, SCORES[score], emphasis=score == "reference") for score in SHOWN]
    if uploads:
        series.append(_followed(uploads, "reference", "single uploads"))
    series = [one for one in series if len(one.points) > 1]
    if not series:
        return None
    said = "; ".join(f"{one.name}: {number_text(one.points[-1][1], '.2f')}" for one in series)
    return Figure(
        "leakage-rounds",
        "Membership over the rounds",
        Lines(Axis("round", whole=True), Axis("AUC", ".2f"), tuple(series), (Reference("guessing", 0.5),)),
        f"AUC after rounds. At the end, {said}.",
        "Bands are intervals. Of single uploads: loss against what was sent, the mean over those of a round.",
    )


def _followed(models: Sequence[Audited], score: str, name: str, *, emphasis: bool = False) -> Series:
    """Return a score's AUC by round, the mean over models of the same round, which then have no band."""
    by_round: dict[int, list[Estimate]] = {}
    for model in models:
        for one in model.attacks:
            if one.score == score:
                by_round.setdefault(model.round, []).append(one.auc)
    points = tuple((float(r), sum(e.value for e in found) / len(found)) for r, found in sorted(by_round.items()))
    band = tuple((float(r), e[0].low, e[0].high) for r, e in sorted(by_round.items()) if len(e) == 1)
    return Series(name, points, band if len(band) == len(points) else (), emphasis=emphasis)


def _exposure_figure(audit: Audit) -> Figure:
    of_all = [model for model in audit.models if model.kind != "upload"]
    series = []
    for repetitions in sorted({one.repetitions for model in of_all for one in model.exposures}):
        found = [(m.round, one) for m in of_all for one in m.exposures if one.repetitions == repetitions]
        points = tuple((float(r), one.mean.value) for r, one in found)
        banded = all(one.mean.has_interval for _, one in found)
        band = tuple((float(r), one.mean.low, one.mean.high) for r, one in found) if banded else ()
        series.append(Series(f"planted {_times(repetitions)}", points, band))
    said = "; ".join(f"{one.name}: {number_text(one.points[-1][1], '.1f')} bits" for one in series)
    most = math.log2(audit.references)
    return Figure(
        "leakage-exposure",
        "How far planted secrets stand out",
        Lines(
            Axis("round", whole=True),
            Axis("exposure (bits)", ".1f", zero=True),
            tuple(series),
            (Reference("not known", audit.chance), Reference("ahead of all references", most)),
        ),
        f"Mean exposure after rounds. At the end, {said}.",
        f"Each is ranked among {audit.references:,} secrets of the same name that were never trained on: "
        f"{number_text(audit.chance, '.2f')} bits is what secrets have that a model does not know, "
        f"{number_text(most, '.1f')} those that come first.",
    )


def _exposure_table(audit: Audit) -> Table:
    columns = (
        Column("model"),
        Column("planted"),
        Column("trained on, mean times", "number", ".1f"),
        Column("mean exposure", "interval", ".2f"),
        Column("highest", "number", ".2f"),
        Column("read out", "text"),
    )
    rows = tuple(
        Row(
            (
                model.name,
                f"{one.canaries:,}, {_times(one.repetitions)} each",
                one.trained_on,
                one.mean,
                one.highest,
                f"{one.extracted} of {one.canaries}",
            ),
            model.kind == "final",
        )
        for model in audit.models
        for one in model.exposures
    )
    return Table("Planted secrets, model by model", columns, rows, folded=len(rows) > 12)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
