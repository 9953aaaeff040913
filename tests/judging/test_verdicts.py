import math

import pytest

from fedit.judging.verdicts import Verdict, from_scores, outcome_of, read, weigh


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 7", (8, 7)),
        ("8.5 9\nBoth are fine.", (8.5, 9)),
        ("\n  10, 1  \nwhy", (10, 1)),
        ("**8 7**\nwhy", (8, 7)),
        ("Scores: 8 7\nwhy", (8, 7)),
        ("(8, 7)", (8, 7)),
        ("[[8, 7]]", (8, 7)),
        ("First I solve it.\n\nOutput: (1, 7)", (1, 7)),
        ("I solved it.\nThe final scores are (4, 6).", (4, 6)),
        ("8 7\nSolved.\n(8, 7)", (8, 7)),
        ("<think>\n9 1\nno, it is the other\n</think>\n\n2 9", (2, 9)),
    ],
)
def test_scores_are_read_from_the_first_or_the_last_line(text, scores):
    assert read("score", text) == from_scores(*scores)
    assert read("score", text).scores == scores


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        "Answer 1 is better.",
        "8",
        "8 7 6",
        "8/10 7/10",
        "10/10",
        "8\n7",
        "The points are (2, -2) and (10, 4).\nSo it is ten.",  # coordinates are no scores
        "First:\n8 7\nThat is what answer 1 claims.",  # neither the first nor the last line
        "Assistant 1: 8\nAssistant 2: 7",
        "nan inf",
        "1e1 7",
        "eight seven",
    ],
)
def test_what_is_no_verdict_is_not_made_one(text):
    verdict = read("score", text)
    assert verdict.invalid
    assert verdict.scores == ()
    assert verdict.preference is None


@pytest.mark.parametrize("text", ["11 5", "5 10.5", "0 3", "-1 -1", "100 90", "(0, 10)"])
def test_numbers_outside_the_scale_are_invalid(text):
    assert "outside 1 to 10" in read("score", text).invalid


def test_the_end_of_the_scale_can_be_another():
    assert read("score", "0 10", lowest=0).scores == (0, 10)
    assert "outside 0 to 10" in read("score", "-1 10", lowest=0).invalid


def test_two_verdicts_that_differ_are_none():
    assert read("score", "8 7\nOn reflection:\n3 9").invalid == "two different verdicts"
    assert read("pairwise", "[[A]]\n\nFinal verdict: [[B]]").invalid == "two different verdicts"


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("[[A]]", 1),
        ("[[b]]", 0),
        ("Answer B quotes [[A]].\n\n[[B]]", 0),
        ("Equal.\nMy final verdict is: [[C]].", 0.5),
        ("Long talk.\n**Verdict: [[A]]**", 1),
    ],
)
def test_choices_are_read(text, preference):
    assert read("pairwise", text) == Verdict((), preference)


@pytest.mark.parametrize("text", ["A", "A is better", "[A]", "[[D]]", "[[A]] [[B]]", "The answer contains [[A]]"])
def test_other_words_are_no_choice(text):
    assert read("pairwise", text).invalid


def test_ratings_are_read():
    assert read("single", "Good.\nRating: [[7]]") == Verdict((7.0,))
    assert read("single", "[[7.5]]").scores == (7.5,)
    assert read("single", "[[0]]").invalid
    assert read("single", "[[11]]").invalid
    assert read("single", "7").invalid


def test_nearly_equal_scores_are_a_tie():
    assert from_scores(7, 7.1).preference == 0.5
    assert from_scores(1.1, 1).preference == 0.5
    assert from_scores(7.2, 7).preference == 1
    assert from_scores(7, 7.2).preference == 0
    assert from_scores(math.nan, 7).invalid


def test_a_preference_has_a_winner():
    assert [outcome_of(value) for value in (0.9, 0.5, 0.5 - 1e-16, 0.2)] == [1, 0.5, 0.5, 0]


# --- weighing ---


def logs(**shares):
    return {f"[[{name}]]": math.log(share) - 40 for name, share in shares.items()}


def test_weighed_choices_are_normalised_and_ties_count_half():
    verdict = weigh("pairwise", logs(A=0.03, B=0.01, C=0.04))
    assert verdict.preference == pytest.approx((0.03 + 0.02) / 0.08)


def test_weighed_scores_are_expectations():
    verdict = weigh("score", {"8 2": math.log(0.3), "4 2": math.log(0.1)})
    assert verdict.scores == pytest.approx((7, 2))
    assert verdict.preference == 1


def test_a_weighed_rating_is_an_expectation():
    assert weigh("single", {"[[2]]": math.log(0.5), "[[10]]": math.log(0.5)}).scores == pytest.approx((6,))


def test_tiny_likelihoods_do_not_vanish():
    assert weigh("pairwise", {"[[A]]": -9000.0, "[[B]]": -9001.0, "[[C]]": -9500.0}).preference == pytest.approx(
        1 / (1 + math.exp(-1))
    )
