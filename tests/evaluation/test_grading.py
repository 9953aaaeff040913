import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.data.examples import Example, Message
from fedit.errors import DataError
from fedit.evaluation.grading import bullets_check, exact_check, grade, reference_check, two_lines_check

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
    ],
)
def test_a_malformed_check_is_refused_with_its_reason(check, reason):
    with pytest.raises(DataError, match=reason):
        grade(check, "anything")
