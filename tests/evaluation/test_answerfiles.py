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
    return Answered(draw(TEXT.filter(bool)), draw(st.none() | TEXT), turns, draw(same), draw(st.none() | same))


@given(TEXT.filter(bool), st.lists(answers(), min_size=1, max_size=4, unique_by=lambda one: one.question_id))
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": 2}, "'question_id' is 2, expected text"),
        ({"question_id": ""}, "'question_id' is '', expected text"),
        ({"category": 3}, "'category' is 3"),
        ({"turns": []}, "'turns' is \\[\\], expected a list of texts"),
        ({"answers": "4"}, "'answers' is '4', expected a list of texts"),
        ({"answers": ["4", "5"]}, "'answers' has 2 texts for 1 turns"),
        ({"reference": []}, "'reference' is \\[\\]"),
        ({"reference": ["a", "b"]}, "'reference' has 2 texts for 1 turns"),
        ({"arm": None}, "'arm' is None, expected text"),
        ({"arm": "base"}, "arm 'base', but the file began with arm 'federated'"),
        ({"question_id": "1"}, "question '1' was answered in a\\.jsonl:1"),
    ],
)
def test_a_wrong_line_is_named(change, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (LINE, {**LINE, "question_id": "2", **change})))
    with pytest.raises(DataError, match=rf"^a\.jsonl:2: .*{message}"):
        read_answers(path)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_answers(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        read_answers(tmp_path / "a.jsonl")


def test_answers_that_do_not_fit_their_turns_cannot_be_made():
    with pytest.raises(DataError, match="question '1': 'answers' has 1 texts for 2 turns"):
        Answered("1", None, ("a", "b"), ("c",))
