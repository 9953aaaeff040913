"""What ``fedit judge`` found about a study's answers, for the study's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit.files import read_json
from fedit.report.document import Column, Fact, Row, Section, Table
from fedit.report.numbers import Estimate
from fedit.report.record import bounds, mapping, number
from fedit.report.sections.results import JudgedPair, Judgement, judge_section

MODES = ("score", "pairwise", "single")
"""Ways of judging, the paper's first: a report shows the first that was used, and ratings where there are any."""


def read_judgements(folder: Path) -> list[dict[str, Any]]:
    """Return the judgements of a study's answers, in the order of `MODES`.

    Raises:
        RunFolderError: one cannot be read.
    """
    paths = [folder / f"judgement-{mode}" / "judgement.json" for mode in MODES]
    return [read_json(path) for path in paths if path.is_file()]


def judged_section(folder: Path) -> Section | None:
    """Return the judge's wins, losses and sums of scores; None where nobody judged."""
    judgements = read_judgements(folder)
    if not judgements:
        return None
    first = judgements[0]
    arms = [mapping(arm) for arm in judgements[-1]["arms"]]
    section = judge_section(
        Judgement(
            " ".join(str(first["judge"][key]) for key in ("kind", "model") if first["judge"].get(key)),
            tuple(pair for one in first["comparisons"] if (pair := _pair(one)) is not None),
            {str(arm["name"]): rating for arm in arms if (rating := _rating(arm)) is not None},
            tuple(fact for one in judgements for fact in _facts(one)),
            ". ".join(str(warning) for one in judgements for warning in one["warnings"]),
        )
    )
    sums = _sums(first["comparisons"])
    return section if sums is None else Section(section.title, section.anchor, (*section.blocks, sums))


def _facts(judgement: Mapping[str, Any]) -> list[Fact]:
    """Return how it was judged."""
    verdicts, mode = judgement["verdicts"], judgement["mode"]
    return [
        Fact("Mode", str(mode), f"{judgement['repeats']} repeats in every order"),
        Fact(f"Verdicts, {mode}", f"{verdicts['valid']:,} valid", f"{verdicts['invalid']:,} invalid, left out"),
        *(
            Fact(f"Prompt {own['name']}", f"version {own['version']}", f"SHA-256 {own['sha256']}")
            for own in judgement["templates"]
        ),
    ]


def _pair(comparison: Mapping[str, object]) -> JudgedPair | None:
    rate = number(comparison.get("win_rate"))
    if rate is None:
        return None
    n, win, tie, loss = (int(number(comparison.get(key)) or 0) for key in ("n", "win", "tie", "loss"))
    estimate = Estimate(rate, *bounds(comparison.get("win_rate_ci")))
    return JudgedPair(str(comparison["a"]), str(comparison["b"]), n, win, tie, loss, estimate)


def _sums(comparisons: Sequence[Mapping[str, object]]) -> Table | None:
    """Return the paper's table: sums of the two arms' scores over the questions, and the one over the other."""
    rows = [
        Row(
            (
                str(one["a"]),
                str(one["b"]),
                number(one.get("sum_a")),
                number(one.get("sum_b")),
                Estimate(relative, *bounds(one.get("ci"))),
            )
        )
        for one in comparisons
        if (relative := number(one.get("relative"))) is not None
    ]
    if not rows:
        return None
    columns = (
        Column("arm"),
        Column("against"),
        Column("sum of scores", "number", ".1f"),
        Column("sum of the other's", "number", ".1f"),
        Column("relative score", "interval", ".3f"),
    )
    return Table("Sums of scores from 1 to 10 over the questions, and their ratio", columns, tuple(rows))


def _rating(arm: Mapping[str, object]) -> Estimate | None:
    rating = number(arm.get("mean_rating"))
    return None if rating is None else Estimate(rating, *bounds(arm.get("mean_rating_ci")))
