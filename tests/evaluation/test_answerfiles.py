"""Answers written and read again, and what is said where they cannot be read."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedit.errors import DataError
from fedit.evaluation.answerfiles import Answered, read_answers, write_answers

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LINE = {
    "question_id": "1",
    "category": "math",
    "turns": ["2+2?"],
    "answers": ["4"],
    "reference": None,
    "arm": "federated",
}


@st.composite
def answers(draw):
    turns = tuple(draw(st.lists(TEXT, min_size=1, max_size=3)))
    same = st.lists(TEXT, min_size=len(turns), max_size=len(turns)).map(tuple)
    reference = draw(st.none() | same.filter(any))
    return Answered(draw(TEXT.filter(bool)), draw(st.none() | TEXT), turns, draw(same), reference)


@given(
    TEXT.filter(lambda arm: arm and arm.isprintable()),
    st.lists(answers(), min_size=1, max_size=4, unique_by=lambda one: one.question_id),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path, arm, answered):
    write_answers(tmp_path / "a.jsonl", arm, answered)
    assert read_answers(tmp_path / "a.jsonl") == (arm, answered)


def test_a_line_is_one_question_with_the_fields_that_judges_read(tmp_path):
    write_answers(tmp_path / "new" / "a.jsonl", "federated", [Answered("1", "math", ("2+2?",), ("ü 4",))])
    text = (tmp_path / "new" / "a.jsonl").read_text(encoding="utf-8")
    assert json.loads(text) == {**LINE, "answers": ["ü 4"]}
    assert text.endswith("}\n")
    assert "ü" in text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.jsonl"]


def test_a_reference_may_be_of_the_first_turns(tmp_path):
    path = tmp_path / "a.jsonl"
    line = {**LINE, "turns": ["2+2?", "And 3+3?"], "answers": ["4", "6"], "reference": ["4"]}
    path.write_text(json.dumps(line))
    assert read_answers(path)[1][0].reference == ("4", "")


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_answers(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        read_answers(tmp_path / "a.jsonl")


def test_answers_that_do_not_fit_their_turns_cannot_be_made():
    with pytest.raises(DataError, match="question '1': 'answers' has 1 texts for 2 turns"):
        Answered("1", None, ("a", "b"), ("c",))
