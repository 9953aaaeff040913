"""The final number of a solution and the option an answer chooses."""

import json
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.data.checks import gsm8k_check
from fedit.evaluation.extract import as_number, chosen_letter, final_number
from fedit.evaluation.grading import grade

GSM8K = Path(os.environ.get("FEDIT_DATA") or "nowhere") / "gsm8k"
NUMBERS = st.decimals(min_value=-(10**12), max_value=10**12, places=2)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("no digits, only words", None),
        ("18", "18"),
        ("It makes 3 + 4 = 7 in all.", "7"),
        ("1,080", "1080"),
        ("12,345,678.5 dollars", "12345678.5"),
        ("in 1999, 2000", "2000"),
        ("$18.00.", "18"),
        ("£-3 or -$3", "-3"),
        ("the change is \u22124 °C", "-4"),
        ("5-3", "3"),  # a minus between numbers is no sign
        ("(5)-3", "3"),
        ("x=-3", "-3"),
        ("- 5 apples", "5"),  # a bullet is none either
        (".5", "0.5"),
        ("No.5", "5"),
        ("7 kg of CO2", "7"),
        ("version 3.14.15", "3.14"),
        ("25%", "25"),
        ("**18**", "18"),
        ("\\boxed{18}", "18"),
        ("#### 18\nThat was 1 problem.", "18"),
        ("#### $1,080", "1080"),
        ("#### **7**\nNext question: 3", "7"),
        ("#### 7\n#### 8", "7"),
        ("#### 18.", "18"),
        ("#### 2. Add them up\nso it is 9", "9"),
        ("#### 12) Add them up\nso it is 9", "9"),
        ("##### 3 is a heading, 4 is not", "4"),
        ("#### Step 3\n6 in all", "6"),
    ],
)
def test_the_final_number_is_the_marked_one_or_the_last(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


@given(NUMBERS, st.sampled_from(["{}", "It is {}.", "So 3 of 4 are {} dollars", "#### {}\nas 5 > 4", "${}"]))
def test_a_number_is_read_however_it_is_written(number, sentence):
    for text in (f"{number}", f"{number:,}", f"{number:f}"):
        assert final_number(sentence.format(text)) == number
        assert as_number(text) == number


@pytest.mark.parametrize("text", ["", "x", "18 apples", "1 2", "1,08", "#### 18"])
def test_what_is_more_or_less_than_a_number_is_none(text):
    assert as_number(text) is None


@given(st.text())
def test_any_text_has_at_most_one_number_and_letter(text):
    number, letter = final_number(text), chosen_letter(text)
    assert number is None or number.is_finite()
    assert letter is None or re.fullmatch("[A-Z]", letter)


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        " b) ",
        "(b)",
        "B.",
        "B) Rome",
        "(B) Rome",
        "B: Rome",
        "**B**",
        '"B"',
        "Option B",
        "option (B) is right",
        "B is right",
        "B, because I know",
        "The answer is B",
        "The answer is B because C is not.",
        "Answer: b",
        "**Answer:** B",
        "Final answer: **(B)**\n",
        "The correct option is (B).",
        "the answer is:\nB",
        "The answer would be option B.",
        "A. No, that is Paris.\nC. No.\nSo the answer is B.",
        "A. Let me think. Answer: B",
        "Option C is wrong, so the answer is B",
        "It must be (B).",
    ],
)
def test_a_letter_is_found_where_an_answer_gives_it(text):
    assert chosen_letter(text) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Rome",
        "Because",
        "A good idea",
        "I think so",
        "It is B",
        "The answer is A good one",
        "Answer: a lot",
        "answer: all of them",
        "The answer is not B",
        "B and C",
        "(B) or (C)",
        "Answer: B/C",
        "Between (A) and (B)",
        "A. Paris\nB. Rome",
        "C++ is a language",
        "B'nai",
        "B-12 is a vitamin",
        "the right answer(s)",
    ],
)
def test_no_letter_is_found_where_none_or_several_are_given(text):
    assert chosen_letter(text) is None


@pytest.mark.parametrize("text", ["A", "A.", "(A)", "The answer is A", "The answer is A.", "Answer: A, not B"])
def test_a_alone_or_before_punctuation_is_a_letter(text):
    assert chosen_letter(text) == "A"


@pytest.mark.skipif(not GSM8K.is_dir(), reason="FEDIT_DATA names no folder with gsm8k/")
@pytest.mark.parametrize("name", ["test.jsonl", "train.jsonl"])
def test_every_gsm8k_solution_passes_its_own_check_and_not_its_neighbours(name):
    with (GSM8K / name).open(encoding="utf-8") as file:
        solutions = [json.loads(line)["answer"] for line in file]
    checks = [gsm8k_check(solution) for solution in solutions]
    assert all(grade(check, solution) for check, solution in zip(checks, solutions, strict=True))
    others = solutions[1:] + solutions[:1]
    assert sum(grade(check, other) for check, other in zip(checks, others, strict=True)) < len(solutions) / 10
