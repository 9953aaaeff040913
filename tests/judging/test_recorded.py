import json
import os
from pathlib import Path

import pytest

from fedit.errors import DataError
from fedit.judging.recorded import answer_lengths, read_reviews, score_reviews

DATA = Path(os.environ.get("FEDIT_DATA", "nowhere")) / "vicuna80" / "blog_eval"
needs_reviews = pytest.mark.skipif(
    not DATA.is_dir(), reason="FEDIT_DATA names no folder with vicuna80/blog_eval (recorded reviews)"
)
CLEAN, NEW, SMALL = "vicuna-13b_20230322-clean-lang", "vicuna-13b_20230322-new-hp-fp16", "vicuna-7b_20230322-fp16"
SUMS = {
    f"{CLEAN}/review_llama-13b_vicuna-13b.jsonl": (513.0, 694.0),
    f"{CLEAN}/review_alpaca-13b_vicuna-13b.jsonl": (583.0, 704.0),
    f"{CLEAN}/review_bard_vicuna-13b.jsonl": (664.0, 655.5),
    f"{CLEAN}/review_gpt35_vicuna-13b.jsonl": (693.0, 638.0),
    "others/review_llama_alpaca-13b.jsonl": (525.0, 605.0),
    f"{SMALL}/review_alpaca-13b_vicuna-7b.jsonl": (583.0, 684.5),
}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="reviews.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def review(question, score, text="8 7\nGood."):
    return {"question_id": question, "score": score, "text": text}


def test_recorded_scores_add_up(write):
    reviews = read_reviews(write(review(1, [8, 9]), review(2, [6.5, 9]), review(3, [7, 7])))
    found = score_reviews(reviews).as_dict()
    assert (found["sum_a"], found["sum_b"]) == (21.5, 25)
    assert found["relative"] == 21.5 / 25
    assert found["ci"][0] < found["relative"] < found["ci"][1]
    assert (found["n"], found["win"], found["tie"], found["loss"], found["invalid"]) == (3, 0, 1, 2, 0)


def test_reviews_of_one_question_are_averaged_first(write):
    found = score_reviews(read_reviews(write(review(1, [8, 2]), review(1, [4, 2]), review(2, [1, 1])))).as_dict()
    assert (found["n"], found["sum_a"], found["sum_b"]) == (2, 7, 3)


@pytest.mark.parametrize(
    "score", [None, [8], [8, 7, 6], ["8", "7"], [-1, -1], [11, 5], [True, 5], "8 7", [float("nan"), 5]]
)
def test_a_score_that_is_none_is_counted_and_left_out(write, score):
    reviews = read_reviews(write(review(1, [8, 9]), review(2, score)))
    assert sum(reviews.invalid.values()) == 1
    found = score_reviews(reviews).as_dict()
    assert (found["sum_a"], found["sum_b"], found["n"], found["invalid"]) == (8, 9, 1, 1)


def test_a_score_of_zero_counts_as_it_was_given(write):
    reviews = read_reviews(write(review(1, [0, 10]), review(2, [5, 5])))
    assert (reviews.below_scale, reviews.invalid) == (1, {})
    assert score_reviews(reviews).scores.sum_b == 15


def test_texts_are_read_again_instead(write):
    path = write(
        review(1, [1, 1], "8 7\nGood."),
        review(2, [1, 1], "First I solve it.\nOutput: (2, 9)"),
        review(3, [1, 1], "Neither.\nAssistant 1: 5\nAssistant 2: 6"),
        {"question_id": 4, "score": [1, 1]},
    )
    reviews = read_reviews(path, reparse=True)
    assert {q.question_id: q.scores for q in reviews.questions} == {"1": (8, 7), "2": (2, 9)}
    assert reviews.invalid == {"no line with a verdict": 1, "text is not there": 1}


def test_without_any_valid_review_there_is_no_number(write):
    found = score_reviews(read_reviews(write(review(1, [-1, -1])))).as_dict()
    assert (found["sum_a"], found["relative"], found["ci"], found["invalid"]) == (None, None, None, 1)


def test_a_sum_of_zero_has_no_ratio(write):
    found = score_reviews(read_reviews(write(review(1, [5, 0]), review(2, [3, 0])))).as_dict()
    assert (found["sum_b"], found["relative"], found["ci"]) == (0, None, None)
    json.dumps(found, allow_nan=False)


def test_what_is_no_review_is_placed(write):
    with pytest.raises(DataError, match=r"reviews\.jsonl:2: expected a review"):
        read_reviews(write(review(1, [1, 1]), {"answer": "x"}))


def test_lengths_are_those_of_the_answers(write):
    first = write({"question_id": 1, "text": "x" * 10}, {"question_id": 2, "text": "x" * 30}, name="a.jsonl")
    second = write({"question_id": "1", "answers": ["x" * 12, "y" * 8]}, name="b.jsonl")
    lengths = (answer_lengths(first), answer_lengths(second))
    reviews = read_reviews(write(review(1, [8, 9]), review(2, [9, 1])), lengths=lengths)
    assert [question.lengths for question in reviews.questions] == [(10, 20), None]
    found = score_reviews(reviews).as_dict()
    assert (found["mean_length_a"], found["mean_length_b"], found["longer_wins"]) == (10, 20, 1.0)
    with pytest.raises(DataError, match="expected question_id"):
        answer_lengths(write({"question_id": 1}, name="c.jsonl"))


# --- GPT-4's own reviews ---


@needs_reviews
@pytest.mark.parametrize("name", SUMS)
def test_the_sums_of_gpt4s_reviews_are_reproduced(name):
    reviews = read_reviews(DATA / "review" / name)
    found = score_reviews(reviews).as_dict()
    assert (found["sum_a"], found["sum_b"]) == SUMS[name]
    assert found["relative"] == pytest.approx(SUMS[name][0] / SUMS[name][1])
    assert (found["n"], found["invalid"]) == (80, 0)


@needs_reviews
def test_the_interval_of_alpaca_beside_the_small_vicuna():
    reviews = read_reviews(DATA / "review" / SMALL / "review_alpaca-13b_vicuna-7b.jsonl")
    assert score_reviews(reviews).scores.relative.bounds() == pytest.approx([0.826, 0.878], abs=0.004)


@needs_reviews
def test_math_reviews_that_have_no_verdict_line_are_counted_and_never_guessed():
    """Questions 68 to 70: prose with coordinates, sums, and scores in all forms but the one that was asked for."""
    read_whole, counted = 0, 0
    for path in sorted((DATA / "review").rglob("*.jsonl")):
        recorded = {q.question_id: q.scores for q in read_reviews(path).questions}
        reparsed = read_reviews(path, reparse=True)
        assert all(question.scores == recorded[question.question_id] for question in reparsed.questions), path
        missing = recorded.keys() - {question.question_id for question in reparsed.questions}
        assert missing <= {"68", "69", "70"}
        assert sum(reparsed.invalid.values()) == len(missing)
        counted += len(missing)
        read_whole += 3 - len(missing)
    # Five of the 39 end with a line like "Output: (1, 7)".
    assert (counted, read_whole) == (34, 5)


@needs_reviews
def test_the_longer_answer_wins_in_three_of_four_reviews():
    answers = {
        path.stem.removeprefix("answer_"): answer_lengths(path) for path in (DATA / "answer").glob("*.jsonl")
    }
    lengths = (answers["alpaca-13b"], answers["vicuna-13b"])
    reviews = read_reviews(DATA / "review" / CLEAN / "review_alpaca-13b_vicuna-13b.jsonl", lengths=lengths)
    found = score_reviews(reviews)
    assert found.lengths.longer_wins > 0.9
    assert found.win_rate.estimate < found.lengths.controlled.estimate  # the shorter arm gains
