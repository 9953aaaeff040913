"""What applies to a set of questions is measured, over all of them and in each category."""

import json
from dataclasses import replace

import pytest

from fedit.data.checks import choice_check, number_check
from fedit.errors import DataError
from fedit.evaluation.answerfiles import Answered
from fedit.evaluation.constraints import Constraint
from fedit.evaluation.measures import evaluate_answers
from fedit.evaluation.questions import Question, questions_sha256

NO_COMMA = Constraint("punctuation:no_comma", {})
QUESTIONS = [
    Question("1", "math", ("2+2?",), ("It is 4",), number_check(4)),
    Question("2", "math", ("2+3?",), None, number_check(5)),
    Question("3", "trivia", ("Rome?", "Sure?"), ("", "yes I am"), choice_check("B"), (NO_COMMA,)),
    Question("4", None, ("Write.",)),
]
TEXTS = {"1": ("It is 4",), "2": ("four, I think",), "3": ("A, maybe", "yes"), "4": ("",)}


def answered(questions=QUESTIONS, texts=TEXTS):
    return [Answered(q.question_id, q.category, q.turns, texts[q.question_id], q.reference) for q in questions]


def test_what_applies_is_measured_overall_and_by_category():
    found = evaluate_answers(QUESTIONS, answered()[::-1])
    assert found["questions_sha256"] == questions_sha256(QUESTIONS)
    assert sorted(found["per_category"]) == ["math", "trivia"]
    overall, math, trivia = found["overall"], found["per_category"]["math"], found["per_category"]["trivia"]
    assert (overall["questions"], overall["graded"], overall["exact_match"]) == (4, 3, pytest.approx(1 / 3))
    assert overall["rouge_l"] == pytest.approx((1.0 + 0.5) / 2)
    assert overall["length_ratio"] == pytest.approx(4 / 6)
    assert overall["empty"] == pytest.approx(1 / 5)
    assert overall["mean_words"] == pytest.approx((3 + 3 + 2 + 1) / 5)
    # the last turn's answer is what checks and constraints are about
    assert overall["constraints"]["prompt_strict"] == 1.0
    assert overall["constraints"]["prompts"] == 1
    assert (math["questions"], math["exact_match"], math["rouge_l"]) == (2, 0.5, 1.0)
    assert math["constraints"] is None
    assert trivia["exact_match"] == 0.0
    json.dumps(found, allow_nan=False)


def test_what_does_not_apply_is_none():
    plain = [QUESTIONS[3]]
    overall = evaluate_answers(plain, answered(plain))["overall"]
    names = ("exact_match", "rouge_l", "length_ratio", "constraints")
    assert [overall[name] for name in names] == [None] * 4
    assert evaluate_answers(plain, answered(plain))["per_category"] == {}


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([], [], "there are no questions"),
        (QUESTIONS, answered()[1:], r"1 not answered \(1\), 0 answered but not asked\. "),
        (QUESTIONS[:2], answered(), r"0 not answered, 2 answered but not asked \(3, 4\)"),
        (QUESTIONS, [*answered(), answered()[0]], "5 answers to 4 different questions"),
        ([replace(QUESTIONS[3], turns=("Read.",))], answered(QUESTIONS[3:]), "question '4' has other turns"),
    ],
)
def test_answers_to_other_questions_are_refused(questions, answers, message):
    with pytest.raises(DataError, match=message):
        evaluate_answers(questions, answers)
