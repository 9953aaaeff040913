"""Do two judges agree? Verdicts on the same questions: of another model, of recorded reviews, of people."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit.data.rowfiles import missing
from fedit.errors import ConfigError, DataError
from fedit.evaluation.votes import Vote, is_vote, read_votes
from fedit.files import reason
from fedit.judging.cache import read_records
from fedit.judging.comparison import Comparison
from fedit.judging.prompts import HIGHEST
from fedit.judging.recorded import is_review, read_reviews
from fedit.judging.statistics import cohen_kappa, outcomes_of, spearman
from fedit.judging.verdicts import TIE_WITHIN

Opinions = Mapping[tuple[str, str], Mapping[str, tuple[float, float]]]
"""(a, b) -> question -> by how much a is better, and the outcome for a: 1, 0.5 or 0."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the questions that both judged.

    spearman: rank correlation of how much better a is; None where one judge always says the same.
    kappa:    Cohen's kappa of win, tie and loss; None where it is undefined.
    same:     share of questions with the same of the three.
    """

    a: str
    b: str
    n: int
    spearman: float | None
    kappa: float | None
    same: float | None

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        numbers = {"spearman": self.spearman, "kappa": self.kappa, "same": self.same}
        return {"a": self.a, "b": self.b, "n": self.n, **numbers}


def read_opinions(path: Path, arms: Sequence[str], pairs: Iterable[tuple[str, str]]) -> Opinions:
    """Return what another judge found about ``pairs``: from its verdicts, recorded reviews or people's votes.

    arms: as the user named them; the scores of recorded reviews are of the first two.

    Raises:
        DataError: the file cannot be used, or holds no verdict on any of the pairs.
        ConfigError: it holds reviews, and there are more than two arms.
    """
    if not path.is_file():
        raise DataError(missing(path))
    try:
        records = read_records(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    if records and is_review(records[0]):
        if len(arms) != 2:
            raise ConfigError(
                f"{path} holds reviews of two arms, without their names, and there are {len(arms)} arms here; "
                "give the two files of the reviewed arms, in the reviews' order."
            )
        reviewed = {q.question_id: (q.difference, q.outcome) for q in read_reviews(path).questions}
        known: Opinions = {(arms[0], arms[1]): reviewed}
    elif records and is_vote(records[0]):
        known = _from_votes(read_votes(path))
    else:
        known = _from_verdicts(path, records)
    opinions = {(a, b): known.get((a, b)) or _turned(known.get((b, a), {})) for a, b in pairs}
    if not any(opinions.values()):
        raise DataError(
            f"{path} holds no valid verdict on a pair of arms that is compared here; the arms here are "
            f"{', '.join(arms)}."
        )
    return opinions


def agreement(comparisons: Iterable[Comparison], opinions: Opinions) -> list[Agreement]:
    """Return how far the judge of ``comparisons`` agrees with the one of ``opinions``, pair by pair."""
    found = []
    for comparison in comparisons:
        a, b = comparison.a, comparison.b
        theirs = opinions.get((a, b), {})
        ours = {q.question_id: (q.difference, q.outcome) for q in comparison.questions}
        both = [question for question in ours if question in theirs]
        if both:
            found.append(_agreement(a, b, [ours[q] for q in both], [theirs[q] for q in both]))
    return found


def _agreement(a: str, b: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> Agreement:
    own, other = [outcome for _, outcome in ours], [outcome for _, outcome in theirs]
    return Agreement(
        a,
        b,
        len(ours),
        spearman([difference for difference, _ in ours], [difference for difference, _ in theirs]),
        cohen_kappa(own, other),
        sum(x == y for x, y in zip(own, other, strict=True)) / len(own),
    )


def _from_verdicts(path: Path, records: Iterable[Mapping[str, object]]) -> Opinions:
    """Return a mean over repeats, then orders, for each pair and question of a file of verdicts."""
    last: dict[tuple[str, tuple[str, ...], object], Mapping[str, object]] = {}
    judges: set[tuple[str, str]] = set()
    for record in records:
        match record:
            case {"purpose": "comparison", "question_id": id, "shown": list() as arms, "verdict": dict() as found}:
                judges.add((str(record.get("model")), str(record.get("mode"))))
                if "invalid" not in found:
                    last[str(id), tuple(map(str, arms)), str(record.get("repeat"))] = found
    if len(judges) > 1:
        kinds = ", ".join(sorted(f"{model} ({mode})" for model, mode in judges))
        raise DataError(f"{path} holds verdicts of several judges or modes, {kinds}; give a file of one.")
    shown: dict[tuple[str, ...], dict[str, list[Mapping[str, object]]]] = {}
    for (question, order, _), verdict in last.items():
        shown.setdefault(order, {}).setdefault(question, []).append(verdict)
    if any(len(arms) == 1 for arms in shown):
        return _from_ratings({arms[0]: questions for arms, questions in shown.items() if len(arms) == 1})
    opinions: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for a, b in {(min(pair), max(pair)) for pair in shown if len(pair) == 2}:
        forwards, backwards = shown.get((a, b), {}), shown.get((b, a), {})
        for question in forwards.keys() & backwards.keys():
            first, scored = _mean(forwards[question])
            second, _ = _mean(backwards[question])
            difference = (first - second) / 2
            within = TIE_WITHIN if scored else 0.0
            opinions.setdefault((a, b), {})[question] = (difference, float(outcomes_of([difference], within)[0]))
    return opinions


def _from_votes(votes: Iterable[Vote]) -> Opinions:
    """Return the mean of the blind votes on each pair and question of a question set."""
    shares = {"first": 1.0, "second": 0.0}
    said: dict[tuple[str, str], dict[str, list[float]]] = {}
    for vote in votes:
        if vote.blind and vote.question_id:
            first = shares.get(vote.winner, 0.5)
            a, b = sorted((vote.first, vote.second))
            own = said.setdefault((a, b), {}).setdefault(vote.question_id, [])
            own.append(first if a == vote.first else 1 - first)
    opinions: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for pair, questions in said.items():
        for question, outcomes in questions.items():
            difference = sum(outcomes) / len(outcomes) - 0.5
            opinions.setdefault(pair, {})[question] = (difference, float(outcomes_of([difference])[0]))
    return opinions


def _mean(verdicts: Sequence[Mapping[str, object]]) -> tuple[float, bool]:
    """Return by how much the first answer is better, on average, and whether that is in points."""
    values, scored = [], False
    for verdict in verdicts:
        match verdict:
            case {"scores": [float() | int() as a, float() | int() as b]} if max(abs(a), abs(b)) <= HIGHEST:
                values.append(float(a - b))
                scored = True
            case {"preference": float() | int() as preference} if 0 <= preference <= 1:
                values.append(float(preference) - 0.5)
    return (sum(values) / len(values) if values else 0.0), scored


def _from_ratings(ratings: Mapping[str, Mapping[str, list[Mapping[str, object]]]]) -> Opinions:
    means: dict[str, dict[str, float]] = {}
    for arm, questions in ratings.items():
        for question, verdicts in questions.items():
            values = [float(score) for v in verdicts if (score := _rating(v.get("scores"))) is not None]
            if values:
                means.setdefault(arm, {})[question] = sum(values) / len(values)
    opinions: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for a in means:
        for b in means:
            if a < b:
                for question in means[a].keys() & means[b].keys():
                    difference = means[a][question] - means[b][question]
                    outcome = float(outcomes_of([difference], TIE_WITHIN)[0])
                    opinions.setdefault((a, b), {})[question] = (difference, outcome)
    return opinions


def _rating(scores: object) -> float | None:
    """Return the one score of a rating; None where there is none."""
    match scores:
        case [float() | int() as score, *_] if not isinstance(score, bool) and abs(score) <= HIGHEST:
            return float(score)
    return None


def _turned(opinions: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    return {question: (-difference, 1 - outcome) for question, (difference, outcome) in opinions.items()}
