"""ROUGE-L against rouge-score, and the plain numbers about texts against their definitions."""

import json
import os
import random
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from fedit.evaluation.rouge import distinct_n, lcs_length, repetition_rate, rouge_l, text_statistics, words

DOLLY = Path(os.environ.get("FEDIT_DATA") or "nowhere") / "dolly15k" / "dolly15k.jsonl"
SCORER = RougeScorer(["rougeL"], use_stemmer=False)
ITEMS = st.lists(st.sampled_from("abcde"), max_size=80)
ASCII_TEXT = st.text(st.characters(max_codepoint=126, min_codepoint=9), max_size=200)


def lcs_by_table(first, second):
    """The textbook's quadratic table."""
    row = [0] * (len(second) + 1)
    for item in first:
        above = row
        row = [0]
        for at, other in enumerate(second):
            row.append(above[at] + 1 if item == other else max(above[at + 1], row[at]))
    return row[-1]


def expected(answer, reference):
    return SCORER.score(reference, answer)["rougeL"].fmeasure


@given(ITEMS, ITEMS)
def test_the_longest_common_subsequence_is_the_tables(first, second):
    assert lcs_length(first, second) == lcs_by_table(first, second)
    assert lcs_length(first, second) == lcs_length(second, first)


@given(ITEMS, st.data())
def test_a_part_in_order_is_common_as_a_whole(items, data):
    part = [item for item in items if data.draw(st.booleans())]
    assert lcs_length(items, part) == len(part)


@given(ASCII_TEXT, ASCII_TEXT)
def test_rouge_l_is_rouge_scores_on_any_ascii_text(answer, reference):
    assert rouge_l(answer, reference) == pytest.approx(expected(answer, reference), abs=1e-12)


def test_rouge_l_is_rouge_scores_on_long_texts_of_few_words():
    generator = random.Random(0)
    for length in (1, 10, 64, 65, 500):
        answer, reference = (" ".join(generator.choices(["the", "a", "of", "ran"], k=length)) for _ in "xy")
        assert rouge_l(answer, reference) == pytest.approx(expected(answer, reference), abs=1e-12)


@pytest.mark.skipif(not DOLLY.is_file(), reason="FEDIT_DATA names no folder with dolly15k/dolly15k.jsonl")
def test_rouge_l_is_rouge_scores_on_real_answers():
    with DOLLY.open(encoding="utf-8") as file:
        answers = [text for line in islice(file, 4000) if (text := json.loads(line)["response"]).isascii()]
    for answer, reference in pairwise(answers[::40]):
        assert rouge_l(answer, reference) == pytest.approx(expected(answer, reference), abs=1e-12)


def test_rouge_l_of_equal_texts_is_one_and_of_strangers_and_silence_zero():
    assert rouge_l("The cat, sat!", "the CAT sat") == 1.0
    assert rouge_l("one two", "three four") == 0.0
    assert rouge_l("", "three") == rouge_l("three", "") == rouge_l("", "") == rouge_l("…", "…") == 0.0
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)


def test_words_of_other_scripts_count_too():
    assert words("Schöne Grüße, Привет_мир 42!") == ["schöne", "grüße", "привет", "мир", "42"]
    assert rouge_l("добрый день", "Добрый вечер") == 0.5


def test_distinct_n_is_different_by_all_over_all_texts():
    assert distinct_n(["a b a", "b c"], 1) == pytest.approx(3 / 5)
    assert distinct_n(["a b a", "b c"], 2) == 1.0  # no pair reaches over the end of a text
    assert distinct_n(["a", ""], 2) == 0.0


@given(st.lists(ASCII_TEXT, min_size=1, max_size=5), st.integers(1, 3))
def test_saying_everything_twice_halves_distinct_n(texts, n):
    assert distinct_n(texts * 2, n) == pytest.approx(distinct_n(texts, n) / 2)


def test_repetition_is_the_share_of_four_grams_seen_before():
    assert repetition_rate("a b c d e f") == 0.0
    assert repetition_rate("a b c") == 0.0
    assert repetition_rate("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition_rate("no " * 23) == pytest.approx(19 / 20)


def test_statistics_leave_out_answers_without_a_reference_where_they_need_one():
    found = text_statistics(["a b c d", "a b", " ", "x"], ["a b", None, None, "?!"])
    assert found.mean_words == pytest.approx(7 / 4)
    assert found.empty == 0.25
    assert found.length_ratio == 2.0
    assert found.rouge_l == pytest.approx(2 / 3)
    assert found.distinct_1 == pytest.approx(5 / 7)
    assert found.repetition == 0.0
    alone = text_statistics(["a"], [None])
    assert alone.length_ratio is None
    assert alone.rouge_l is None


def test_statistics_of_nothing_or_of_uneven_lists_are_refused():
    with pytest.raises(ValueError, match="no answers"):
        text_statistics([], [])
    with pytest.raises(ValueError, match="zip"):
        text_statistics(["a", "b"], [None])
