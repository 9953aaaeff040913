"""Reviews that a judge wrote earlier, in the format of the Vicuna blog's evaluation: two scores a question.

A review is a JSON line with ``question_id``, ``text`` (what the judge wrote) and ``score`` (two numbers, the first
for the answer that was shown first). Of GPT-4 such recordings exist; they show what its arithmetic adds up to
without asking anybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit.data.rowfiles import PlacedRow, read_rows
from fedit.errors import DataError
from fedit.evaluation.intervals import RESAMPLES
from fedit.judging.comparison import Comparison, Question, compare
from fedit.judging.prompts import LOWEST
from fedit.judging.verdicts import Verdict, from_scores, read

LOWEST_RECORDED = 0
"""GPT-4 gave scores of 0 on a scale that was to start at 1, and published sums contain them."""


@dataclass(frozen=True, slots=True)
class Reviews:
    """What was read from a file of reviews.

    questions:   with a valid review, averaged over a question's reviews.
    invalid:     reason -> reviews without a usable verdict.
    below_scale: reviews with a score under 1, which count all the same.
    """

    questions: tuple[Question, ...]
    reviews: int
    invalid: Mapping[str, int]
    below_scale: int


def is_review(record: Mapping[str, object]) -> bool:
    """Whether a JSON line is a review."""
    return "question_id" in record and ("score" in record or "text" in record)


def read_reviews(
    path: Path, *, reparse: bool = False, lengths: tuple[Mapping[str, int], Mapping[str, int]] | None = None
) -> Reviews:
    """Return the reviews in a file.

    reparse: read the scores from ``text``, as a live judge's are read, and not from ``score``.
    lengths: of the first and the second arm, question -> characters of its answer; None: not known.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    valid: dict[str, list[tuple[float, float]]] = {}
    categories: dict[str, str] = {}
    invalid: dict[str, int] = {}
    rows = read_rows(path)
    for row in rows:
        if not is_review(row.fields):
            raise DataError(f"{row.where}: expected a review with question_id, score and text.")
        verdict = _reparsed(row) if reparse else _scored(row)
        if verdict.invalid:
            invalid[verdict.invalid] = invalid.get(verdict.invalid, 0) + 1
            continue
        question = str(row.fields["question_id"])
        valid.setdefault(question, []).append((verdict.scores[0], verdict.scores[1]))
        if isinstance(category := row.fields.get("category"), str):
            categories[question] = category
    questions = [
        Question(
            question,
            categories.get(question),
            (sum(first for first, _ in scores) / len(scores), sum(second for _, second in scores) / len(scores)),
            None,
            _lengths(question, lengths),
        )
        for question, scores in valid.items()
    ]
    below = sum(min(scores) < LOWEST for all_scores in valid.values() for scores in all_scores)
    return Reviews(tuple(questions), len(rows), invalid, below)


def score_reviews(reviews: Reviews, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Return the comparison of the two arms of the reviews, called "first" and "second"."""
    invalid = sum(reviews.invalid.values())
    # One order only: who was shown first and who is better cannot be told apart.
    return compare("first", "second", reviews.questions, invalid=invalid, resamples=resamples, seed=seed)


def answer_lengths(path: Path) -> dict[str, int]:
    """Return the characters of each question's answer: rows with ``question_id`` and ``answers`` or ``text``.

    Raises:
        DataError: the file cannot be read or a row has neither.
    """
    lengths: dict[str, int] = {}
    for row in read_rows(path):
        match row.fields:
            case {"question_id": str() | int() as question, "answers": list() as answers}:
                lengths[str(question)] = sum(len(str(answer)) for answer in answers)
            case {"question_id": str() | int() as question, "text": str() as text}:
                lengths[str(question)] = len(text)
            case _:
                raise DataError(f"{row.where}: expected question_id, and answers (a list) or text.")
    return lengths


def _lengths(question: str, lengths: tuple[Mapping[str, int], Mapping[str, int]] | None) -> tuple[int, int] | None:
    if lengths is None or any(question not in known for known in lengths):
        return None
    return lengths[0][question], lengths[1][question]


def _scored(row: PlacedRow) -> Verdict:
    match row.fields.get("score"):
        case [float() | int() as a, float() | int() as b] if not isinstance(a, bool) and not isinstance(b, bool):
            return from_scores(float(a), float(b), LOWEST_RECORDED)
        case _:
            return Verdict(invalid="score is not two numbers")


def _reparsed(row: PlacedRow) -> Verdict:
    text = row.fields.get("text")
    if not isinstance(text, str):
        return Verdict(invalid="text is not there")
    return read("score", text, LOWEST_RECORDED)
