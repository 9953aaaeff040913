"""What can be said about answers without a judge, over a set of questions and each of its categories."""

from collections.abc import Sequence
from dataclasses import asdict

from fedit.errors import DataError
from fedit.evaluation.answerfiles import Answered
from fedit.evaluation.constraints import constraint_report
from fedit.evaluation.grading import grade
from fedit.evaluation.questions import Question, questions_sha256
from fedit.evaluation.rouge import text_statistics

Pair = tuple[Question, Answered]


def evaluate_answers(questions: Sequence[Question], answers: Sequence[Answered]) -> dict[str, object]:
    """Return whatever applies to the set, as JSON values.

    Keys: ``questions_sha256``; ``overall``; ``per_category``, category -> the same as ``overall``. There:

    questions:    how many.
    exact_match:  share of answers that meet their check, of ``graded`` questions that have one; None without any.
    rouge_l, mean_words, empty, distinct_1, distinct_2, repetition, length_ratio: over the answers of all turns,
                  see `fedit.evaluation.rouge.TextStatistics`.
    constraints:  `fedit.evaluation.constraints.ConstraintReport` as a dict; None where no question has any.

    Args:
        questions: as `load_questions` gives them, or some of them.
        answers: one a question, in any order. References come from the questions.

    Raises:
        DataError: a question was not answered, or an answer belongs to no question or to other turns.
    """
    pairs = _paired(questions, answers)
    categories = sorted({q.category for q in questions if q.category is not None})
    return {
        "questions_sha256": questions_sha256(questions),
        "overall": _measure(pairs),
        "per_category": {name: _measure([p for p in pairs if p[0].category == name]) for name in categories},
    }


def _paired(questions: Sequence[Question], answers: Sequence[Answered]) -> list[Pair]:
    if not questions:
        raise DataError("there are no questions, so no answers can be evaluated.")
    by_id = {answered.question_id: answered for answered in answers}
    if len(by_id) != len(answers):
        raise DataError(f"{len(answers)} answers to {len(by_id)} different questions; give one answer a question.")
    known = {question.question_id for question in questions}
    unanswered, unasked = sorted(known - by_id.keys()), sorted(by_id.keys() - known)
    if unanswered or unasked:
        raise DataError(
            f"questions and answers do not belong together: {_some('not answered', unanswered)}, "
            f"{_some('answered but not asked', unasked)}. Evaluate answers with the questions that were asked."
        )
    for question in questions:
        if by_id[question.question_id].turns != question.turns:
            raise DataError(
                f"question '{question.question_id}' has other turns than the answer was given to; evaluate "
                "answers with the questions that were asked."
            )
    return [(question, by_id[question.question_id]) for question in questions]


def _some(what: str, names: Sequence[str]) -> str:
    shown = f" ({', '.join(names[:5])})" if names else ""
    return f"{len(names)} {what}{shown}"


def _measure(pairs: Sequence[Pair]) -> dict[str, object]:
    texts = [text for _, answered in pairs for text in answered.answers]
    references = [text for q, _ in pairs for text in q.reference or (None,) * len(q.turns)]
    marks = [grade(q.check, answered.answers[-1]) for q, answered in pairs if q.check is not None]
    cases = [(q.turns[-1], q.constraints, answered.answers[-1]) for q, answered in pairs if q.constraints]
    return {
        "questions": len(pairs),
        "graded": len(marks),
        "exact_match": sum(marks) / len(marks) if marks else None,
        **asdict(text_statistics(texts, references)),
        "constraints": asdict(constraint_report(cases)) if cases else None,
    }
