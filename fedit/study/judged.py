"""What ``fedit judge``, and people in ``fedit ui``, found about a study's answers, for the study's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit.evaluation.votes import FILE, read_votes, tally
from fedit.files import read_json
from fedit.report.document import Column, Fact, Row, Section, Table, Text
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
    tables = [_sums(first["comparisons"]), _ranking(first), _biases(first["comparisons"]), *_trust(judgements)]
    return Section(section.title, section.anchor, (*section.blocks, *(one for one in tables if one is not None)))


def votes_section(folder: Path) -> Section | None:
    """Return what people preferred in ``fedit ui``; None where nobody voted.

    Raises:
        DataError: a line of the file is no vote.
    """
    path = folder / FILE
    found = tally(read_votes(path)) if path.is_file() else None
    if found is None or not found.pairs:
        return None
    names = ("votes", "won", "lost", "tied", "both bad")
    columns = (Column("arm"), Column("against"), *(Column(name, "number", ",d") for name in names))
    rows = [
        Row(
            (
                pair.one,
                pair.other,
                *map(float, (pair.count, pair.wins, pair.losses, pair.ties, pair.both_bad)),
                Estimate(pair.win_rate, *pair.interval),
            )
        )
        for pair in found.pairs
    ]
    about = (
        f"{found.votes:,} blind votes. A tie, and a vote that both are bad, counts as half a win for each. "
        f"The answer shown first won {found.first_shown:,} of the {found.decided:,} decided."
    )
    table = Table(
        "Votes of people between two answers", (*columns, Column("win rate", "interval", ".1%")), tuple(rows)
    )
    return Section("Votes", "votes", (Text(about), table))


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


def _ranking(judgement: Mapping[str, Any]) -> Table | None:
    """Return the arms by strength; None for fewer than three."""
    rows = [
        Row((str(one["arm"]), Estimate(number(one["elo"]) or 0.0, *bounds(one["ci"]))))
        for one in judgement["ranking"]
    ]
    title = f"Ranking: Bradley-Terry strengths on an Elo scale, {judgement['baseline']} at 1000"
    return (
        Table(title, (Column("arm"), Column("Elo", "interval", ".0f", "highest")), tuple(rows)) if rows else None
    )


def _biases(comparisons: Sequence[Mapping[str, object]]) -> Table | None:
    """Return what may bend the verdicts: the lengths of the answers, and their order."""
    rows = []
    for one in comparisons:
        rate = number(one.get("length_controlled_win_rate"))
        controlled = bounds(one.get("length_controlled_win_rate_ci"))
        shares = (number(one.get(key)) for key in ("longer_wins", "position_consistency", "first_position_wins"))
        even = None if rate is None else Estimate(rate, *controlled)
        rows.append(Row((str(one["a"]), str(one["b"]), even, *shares)))
    columns = (
        Column("arm"),
        Column("against"),
        Column("win rate at equal lengths", "interval", ".1%"),
        Column("longer answer wins", "number", ".1%"),
        Column("same winner in both orders", "number", ".1%"),
        Column("first shown wins", "number", ".1%"),
    )
    return Table("What may bend the verdicts: lengths and order", columns, tuple(rows)) if rows else None


def _trust(judgements: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return how the judges did where the right verdict is known, and how far they agree with others."""
    canaries = [
        Row((own["mode"], str(one["name"]), *(number(one[key]) for key in ("tried", "passed", "missing"))))
        for own in judgements
        for one in own["canaries"]
    ]
    agreed = [
        Row(
            (
                own["mode"],
                f"{one['a']} / {one['b']}",
                number(one["n"]),
                *(number(one[key]) for key in ("spearman", "kappa", "same")),
            )
        )
        for own in judgements
        for one in own["agreement"]
    ]
    counts = [Column(name, "number", ",d") for name in ("tried", "passed", "no verdict")]
    tables = []
    if canaries:
        title = "Verdicts whose right outcome is known"
        tables.append(Table(title, (Column("mode"), Column("canary"), *counts), tuple(canaries)))
    if agreed:
        numbers = (Column("Spearman", "number", ".2f"), Column("Cohen's kappa", "number", ".2f"))
        columns = (Column("mode"), Column("arms"), Column("questions", "number", ",d"), *numbers)
        title = "Agreement with the other judge"
        tables.append(Table(title, (*columns, Column("same outcome", "number", ".1%")), tuple(agreed)))
    return tables


def _rating(arm: Mapping[str, object]) -> Estimate | None:
    rating = number(arm.get("mean_rating"))
    return None if rating is None else Estimate(rating, *bounds(arm.get("mean_rating_ci")))
