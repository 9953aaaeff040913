"""One arm beside another: sums, wins and losses, intervals, length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit.evaluation.intervals import (
    RESAMPLES,
    Interval,
    bootstrap,
    difference_of_means,
    minimum_detectable_difference,
    permutation_test,
    ratio_of_sums,
    sign_test,
)
from fedit.judging.statistics import Tally, length_controlled_win_rate, longer_wins, outcomes_of, tally, win_rate
from fedit.judging.verdicts import TIE_WITHIN, outcome_of


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge found on one question, averaged over repeats and orders.

    scores:     of a and of b; None where the judge only prefers.
    preference: for a, from 0 to 1; None where the judge only scores.
    lengths:    characters of the two answers; None where they are not known.
    """

    question_id: str
    category: str | None
    scores: tuple[float, float] | None
    preference: float | None
    lengths: tuple[int, int] | None

    @property
    def difference(self) -> float:
        """By how much a is better: in points, or else how far the preference is from a tie."""
        if self.scores is not None:
            return self.scores[0] - self.scores[1]
        return (self.preference or 0.0) - 0.5

    @property
    def outcome(self) -> float:
        """1 if a wins, 0.5 for a tie, 0 if b wins."""
        if self.scores is not None:
            return float(outcomes_of([self.difference], TIE_WITHIN)[0])
        return outcome_of(self.preference or 0.0)

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        a, b = self.scores if self.scores is not None else (None, None)
        judged = {"a": a, "b": b, "preference": self.preference, "outcome": self.outcome}
        return {"question_id": self.question_id, "category": self.category, **judged}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of two arms on the same questions.

    relative: sum of a over sum of b, with its interval; above 1 where a is better.
    """

    sum_a: float
    sum_b: float
    relative: Interval
    difference: Interval
    permutation_p: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """What length has to do with winning, over the questions whose lengths are known.

    longer_wins: share of decided questions that the longer answer won; None without any.
    controlled:  win rate of a at equal lengths.
    """

    mean_a: float
    mean_b: float
    longer_wins: float | None
    controlled: Interval


@dataclass(frozen=True, slots=True)
class Order:
    """How much the order of the answers decides.

    consistency: share of question repeats whose verdict is the same in both orders.
    first_wins:  share of decided verdicts for the answer that was shown first; 0.5 is no bias.
    """

    consistency: float | None
    first_wins: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm ``a`` beside arm ``b``, over the questions that were judged in full.

    unmatched:  questions that only one of the two arms has.
    left_out:   questions without a valid verdict in each order.
    invalid:    verdicts that could not be read.
    detectable: smallest true mean difference, in points or in preference, that so many questions would have found
                with 80 % power at the 5 % level.
    """

    a: str
    b: str
    questions: tuple[Question, ...]
    unmatched: int
    left_out: int
    invalid: int
    tally: Tally
    win_rate: Interval | None
    sign_p: float
    detectable: float | None
    scores: Scores | None = None
    preference: Interval | None = None
    lengths: Lengths | None = None
    order: Order | None = None
    per_category: dict[str, dict[str, object]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file; ``ci`` and names ending in ``_ci`` are 95 % intervals."""
        found: dict[str, object] = {
            "a": self.a,
            "b": self.b,
            "n": len(self.questions),
            "unmatched": self.unmatched,
            "left_out": self.left_out,
            "invalid": self.invalid,
            **_sums(self.questions),
            "ci": _finite(self.scores.relative) if self.scores else None,
            "win": self.tally.win,
            "tie": self.tally.tie,
            "loss": self.tally.loss,
            "win_rate": self.win_rate.estimate if self.win_rate else None,
            "win_rate_ci": self.win_rate.bounds() if self.win_rate else None,
            "sign_test_p": self.sign_p,
            "minimum_detectable_difference": self.detectable,
        }
        if self.scores:
            found["mean_difference"] = self.scores.difference.estimate
            found["mean_difference_ci"] = self.scores.difference.bounds()
            found["permutation_test_p"] = self.scores.permutation_p
        if self.preference:
            found["mean_preference"] = self.preference.estimate
            found["mean_preference_ci"] = self.preference.bounds()
        if self.lengths:
            found["mean_length_a"] = self.lengths.mean_a
            found["mean_length_b"] = self.lengths.mean_b
            found["longer_wins"] = self.lengths.longer_wins
            found["length_controlled_win_rate"] = self.lengths.controlled.estimate
            found["length_controlled_win_rate_ci"] = self.lengths.controlled.bounds()
        if self.order:
            found["position_consistency"] = self.order.consistency
            found["first_position_wins"] = self.order.first_wins
        return {**found, "per_category": self.per_category, "questions": [q.as_dict() for q in self.questions]}


def compare(
    a: str,
    b: str,
    questions: Sequence[Question],
    *,
    unmatched: int = 0,
    left_out: int = 0,
    invalid: int = 0,
    order: Order | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Return what the questions add up to; every interval draws questions, with their numbers of both arms."""
    outcomes = [question.outcome for question in questions]
    differences = [question.difference for question in questions]
    scores = [question.scores for question in questions if question.scores is not None]
    preferences = [question.preference for question in questions if question.preference is not None]
    return Comparison(
        a,
        b,
        tuple(questions),
        unmatched,
        left_out,
        invalid,
        tally(outcomes),
        win_rate(outcomes, resamples=resamples, seed=seed) if outcomes else None,
        sign_test(np.asarray(outcomes) - 0.5),
        minimum_detectable_difference(differences),
        scores=_scores(scores, resamples, seed) if scores else None,
        preference=bootstrap(preferences, resamples=resamples, seed=seed) if preferences else None,
        lengths=_lengths(questions, resamples, seed),
        order=order,
        per_category=_per_category(questions),
    )


def _scores(pairs: Sequence[tuple[float, float]], resamples: int, seed: int) -> Scores:
    values = np.asarray(pairs)
    sum_a, sum_b = (float(total) for total in values.sum(axis=0))
    return Scores(
        sum_a,
        sum_b,
        bootstrap(values, ratio_of_sums, resamples=resamples, seed=seed),
        bootstrap(values, difference_of_means, resamples=resamples, seed=seed),
        permutation_test(values[:, 0] - values[:, 1], resamples=resamples, seed=seed),
    )


def _lengths(questions: Sequence[Question], resamples: int, seed: int) -> Lengths | None:
    known = [question for question in questions if question.lengths is not None]
    if not known:
        return None
    outcomes = [question.outcome for question in known]
    lengths_a, lengths_b = np.array([question.lengths for question in known], dtype=np.float64).T
    return Lengths(
        float(lengths_a.mean()),
        float(lengths_b.mean()),
        longer_wins(outcomes, lengths_a, lengths_b),
        length_controlled_win_rate(outcomes, lengths_a, lengths_b, resamples=resamples, seed=seed),
    )


def _per_category(questions: Sequence[Question]) -> dict[str, dict[str, object]]:
    groups: dict[str, list[Question]] = {}
    for question in questions:
        if question.category is not None:
            groups.setdefault(question.category, []).append(question)
    found: dict[str, dict[str, object]] = {}
    for name, members in sorted(groups.items()):
        counts = tally([question.outcome for question in members])
        tallied = {"n": counts.n, "win": counts.win, "tie": counts.tie, "loss": counts.loss}
        found[name] = {**tallied, "win_rate": (counts.win + 0.5 * counts.tie) / counts.n, **_sums(members)}
    return found


def _finite(interval: Interval) -> list[float] | None:
    """Return an interval's bounds; None where a sum of zero leaves none."""
    return interval.bounds() if math.isfinite(interval.low) else None


def _sums(questions: Sequence[Question]) -> dict[str, object]:
    scores = [question.scores for question in questions if question.scores is not None]
    if not scores:
        return {"sum_a": None, "sum_b": None, "relative": None}
    sum_a, sum_b = sum(a for a, _ in scores), sum(b for _, b in scores)
    return {"sum_a": sum_a, "sum_b": sum_b, "relative": sum_a / sum_b if sum_b else None}
