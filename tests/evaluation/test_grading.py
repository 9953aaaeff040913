import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.data.examples import Example, Message
from fedit.errors import DataError
from fedit.evaluation.constraints import language
from fedit.evaluation.grading import (
    bullets_check,
    choice_check,
    constraints_check,
    exact_check,
    grade,
    number_check,
    reference_check,
    refuse_bad_checks,
    two_lines_check,
)

COLORS = ("red", "blue", "green", "black", "white", "pink")
VERSE = "The lantern wakes at early light,\nThe moon rests in gentle night."


def example(answer: str) -> Example:
    return Example((Message("user", "Where?"), Message("assistant", answer)))


@given(st.text())
def test_an_exact_answer_passes_with_any_outer_whitespace(value):
    value = value.strip()
    assert grade(exact_check(value), f" \n{value}\t\n")


@given(st.text().map(str.strip), st.text().map(str.strip))
def test_any_other_text_fails_an_exact_check(value, answer):
    assert grade(exact_check(value), answer) == (value == answer)


@pytest.mark.parametrize(
    "answer",
    ["", "Paris", "Answer: Paris", "answer: paris.", "Answer:  Paris.", "Answer: Rome.", "Answer: Paris. Yes."],
)
def test_an_exact_check_forgives_no_other_difference(answer):
    assert not grade(exact_check("Answer: Paris."), answer)


@given(st.lists(st.sampled_from(COLORS), min_size=1, unique=True), st.randoms())
def test_any_distinct_allowed_bullets_pass(items, random):
    check = bullets_check(len(items), COLORS)
    random.shuffle(items)
    assert grade(check, "\n".join(f"- {item}" for item in items))
    assert grade(check, "\n".join(f"- {item.upper()}  " for item in items) + "\n\n")


@given(st.lists(st.sampled_from(COLORS), min_size=2, unique=True), st.data())
def test_one_change_to_the_bullets_fails(items, data):
    check = bullets_check(len(items), COLORS)
    lines = [f"- {item}" for item in items]
    at = data.draw(st.integers(0, len(lines) - 1))
    before, after = lines[:at], lines[at + 1 :]
    for changed in (
        before + after,
        [*before, lines[at], lines[at], *after],
        [*before, lines[at - 1], *after],
        [*before, "- table", *after],
        [*before, items[at], *after],
        [*before, f"* {items[at]}", *after],
        [*before, f"-{items[at]}", *after],
        [*before, "- ", *after],
        [lines[0], "", *lines[1:]],
        ["Here you go:", *lines],
        [*lines, "I hope this helps!"],
    ):
        assert not grade(check, "\n".join(changed)), changed


def test_bullets_without_a_list_take_any_items():
    assert grade(bullets_check(2), "- a blue moon\n- anything")
    assert not grade(bullets_check(2), "- Moon\n- moon")
    assert not grade(bullets_check(1), "")


@pytest.mark.parametrize("answer", [VERSE, f"\n{VERSE}\n", VERSE.upper(), "My LANTERN glows,\na moon knows."])
def test_a_verse_with_both_words_in_place_passes(answer):
    assert grade(two_lines_check("lantern", "moon"), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        VERSE.replace("\n", " "),
        VERSE.replace("\n", "\n\n"),
        VERSE + "\nThe end.",
        "A poem:\n" + VERSE,
        VERSE.replace("lantern", "candle"),
        VERSE.replace("lantern", "lanterns"),
        VERSE.replace("moon", "moonlight"),
        VERSE.replace(",", "."),
        VERSE.removesuffix("."),
        "\n".join(reversed(VERSE.split("\n"))),
        "lantern,\nmoon.",
        "The lantern moon shines,\nThe lantern moon shines.",
        VERSE.replace("early", "very very very very very very very early"),
    ],
)
def test_a_verse_with_anything_missing_misplaced_or_added_fails(answer):
    assert not grade(two_lines_check("lantern", "moon"), answer)


def test_words_of_a_verse_are_taken_literally():
    assert grade(two_lines_check("c++", "a.b"), "I like c++ so,\nand a.b also.")
    assert not grade(two_lines_check("c++", "a.b"), "I like c++ so,\nand axb also.")


def test_a_row_without_a_check_compares_with_its_reference_and_forgives_case_and_spacing():
    check = reference_check(example("Paris is\nthe  capital."))
    assert grade(check, "  paris IS the capital. ")
    assert not grade(check, "Paris is the capital")
    assert not grade(check, "It is Paris is the capital.")


@given(st.text())
def test_every_reference_answer_passes_its_reference_check(answer):
    assert grade(reference_check(example(answer)), answer)


def test_checks_are_compact_json():
    assert exact_check("a b") == '{"kind":"exact","value":"a b"}'
    assert bullets_check(2) == '{"kind":"bullets","count":2}'
    assert json.loads(bullets_check(2, ("x", "y")))["allowed"] == ["x", "y"]


@pytest.mark.parametrize("value", [1080, 1080.0, "1080", "1,080", "$1,080.00"])
def test_a_number_is_right_however_it_and_the_check_are_written(value):
    check = number_check(value)
    for answer in ("1080", "So 3 * 360 = 1,080", "Work.\n#### 1080", "$1,080.00 in 1 year is $1080."):
        assert grade(check, answer)
    for answer in ("", "108", "-1080", "1080 or 1081", "1080.5", "1,080\n#### 7"):
        assert not grade(check, answer)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_a_number_check_is_equality(value, other):
    assert grade(number_check(value), f"I get {other:,}.") == (value == other)


def test_a_decimal_is_compared_as_written_not_in_binary():
    assert grade(number_check(0.1), "0.10")
    assert not grade(number_check(0.1), "0.1000000000000000055")


def test_a_choice_is_right_in_either_case_of_the_check():
    for letter in "bB":
        assert grade(choice_check(letter), "(B) Rome")
        assert not grade(choice_check(letter), "(A) Paris")
        assert not grade(choice_check(letter), "Rome")


def test_constraints_are_right_when_all_are_followed_strictly():
    check = constraints_check(
        [
            {"id": "punctuation:no_comma"},
            {"id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 4}},
        ]
    )
    assert grade(check, "three little words")
    for answer in ("", "three, words", "three little words more", "Sure, here:\nthree words"):
        assert not grade(check, answer)


def test_constraints_that_cannot_be_checked_here_are_an_error_and_no_grade(monkeypatch):
    monkeypatch.setattr(language, "available", lambda: False)
    check = constraints_check([{"id": "punctuation:no_comma"}, {"id": "change_case:english_capital"}])
    for answer in ("", "YES", "yes, no"):
        with pytest.raises(
            DataError, match=r"english_capital cannot be checked without langdetect .*fedit\[ifeval\]"
        ):
            grade(check, answer)


def test_bad_checks_are_refused_with_the_place_of_their_row():
    rows = [Example((), check=None), Example((), check=exact_check("x"), where="rows.jsonl:2")]
    refuse_bad_checks(rows)
    with pytest.raises(DataError, match=r"^rows\.jsonl:3: the check '\{\}' cannot grade"):
        refuse_bad_checks([*rows, Example((), check="{}", where="rows.jsonl:3")])


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("", "no JSON"),
        ("exact", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "'kind' is None and must be one of exact, reference, bullets, two_lines"),
        ('{"kind":"exat","value":"a"}', "'kind' is 'exat'"),
        ('{"kind":["exact"]}', "'kind' is \\['exact'\\]"),
        ('{"kind":"exact"}', "'value' is None and must be text"),
        ('{"kind":"reference","value":3}', "'value' is 3 and must be text"),
        ('{"kind":"bullets"}', "'count' is None and must be a whole number from 1"),
        ('{"kind":"bullets","count":true}', "'count' is True"),
        ('{"kind":"bullets","count":0}', "'count' is 0"),
        ('{"kind":"bullets","count":2,"allowed":"red"}', "'allowed' is 'red' and must be a list of texts"),
        ('{"kind":"two_lines","words":["a"]}', "'words' has 1 entries and must have 2"),
        ('{"kind":"two_lines","words":["a",""]}', "must be a list of texts"),
        ('{"kind":"number"}', "'value' is None and must be a number"),
        ('{"kind":"number","value":true}', "'value' is True and must be a number"),
        ('{"kind":"number","value":NaN}', "'value' is nan and must be a number"),
        ('{"kind":"number","value":"4 apples"}', "'value' is '4 apples' and must be a number"),
        ('{"kind":"choice","value":"AB"}', "'value' is 'AB' and must be one letter"),
        ('{"kind":"choice","value":2}', "'value' is 2 and must be text"),
        ('{"kind":"constraints"}', "'constraints' is None and must be a list of {id, kwargs}"),
        ('{"kind":"constraints","constraints":[]}', "must be a list of {id, kwargs}"),
        ('{"kind":"constraints","constraints":["x"]}', "found 'x', expected a constraint"),
        ('{"kind":"constraints","constraints":[{"id":"x"}]}', "no kind of constraint 'x'"),
        (
            '{"kind":"constraints","constraints":[{"id":"keywords:existence","kwargs":{"keywords":[]}}]}',
            "keywords:existence: 'keywords' is \\[\\]",
        ),
    ],
)
def test_a_malformed_check_is_refused_with_its_reason(check, reason):
    with pytest.raises(DataError, match=reason):
        grade(check, "anything")
