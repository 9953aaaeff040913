import json

import pytest

from fedit.errors import ConfigError, DataError
from fedit.evaluation.answerfiles import Answered, read_answers
from fedit.judging.answers import choose_baseline, common_questions, read_arms

ROW = {"question_id": "1", "category": "math", "turns": ["Why?"], "answers": ["So."], "reference": ["Because."]}


@pytest.fixture
def write(tmp_path):
    def write(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_a_file_is_an_arm(write):
    name, answered = read_answers(write("tuned.jsonl", ROW, {**ROW, "question_id": 2, "reference": None}))
    assert name == "tuned"
    assert answered[0] == Answered("1", "math", ("Why?",), ("So.",), ("Because.",))
    assert (answered[1].question_id, answered[1].reference) == ("2", None)


def test_the_rows_may_name_the_arm(write):
    assert read_answers(write("a.jsonl", {**ROW, "arm": "federated"}))[0] == "federated"
    with pytest.raises(DataError, match="several arms"):
        read_answers(write("b.jsonl", {**ROW, "arm": "x"}, {**ROW, "question_id": "2", "arm": "y"}))


def test_a_folder_holds_arms(write, tmp_path):
    write("study/answers/b.jsonl", ROW)
    write("study/answers/a.jsonl", ROW)
    write("study/other.jsonl", {"something": "else"})
    assert list(read_arms([tmp_path / "study"])) == ["a", "b"]
    assert list(read_arms([tmp_path / "study" / "answers"])) == ["a", "b"]


def test_an_empty_folder_and_the_same_arm_twice_are_explained(write, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no answers: looked for answers/\*\.jsonl"):
        read_arms([tmp_path / "empty"])
    with pytest.raises(DataError, match="holds the arm 'a' and so does"):
        read_arms([write("a.jsonl", ROW), write("more/a.jsonl", ROW)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"turns": None}, "'turns' is 'None'; expected a list of texts"),
        ({"answers": "So."}, "'answers' is 'So.'; expected a list of texts"),
        ({"answers": [1]}, "expected a list of texts"),
        ({"answers": ["a", "b"]}, "2 answers to 1 turns"),
        ({"turns": [], "answers": []}, "0 answers to 0 turns"),
        ({"reference": ["a", "b"]}, "2 references for 1 turns"),
        ({"reference": "x"}, "'reference' is 'x'"),
        ({"question_id": None}, "question_id is None"),
        ({"question_id": True}, "question_id is True"),
        ({"category": 3}, "category is 3"),
    ],
)
def test_a_row_that_cannot_be_used_is_placed(write, change, words):
    with pytest.raises(DataError) as error:
        read_answers(write("a.jsonl", ROW, {**ROW, "question_id": "2", **change}))
    assert "a.jsonl:2" in str(error.value)
    assert words in str(error.value)


def test_a_misspelt_field_is_suggested(write):
    with pytest.raises(DataError, match=r"there is no 'answers'.*'answer' may be meant"):
        read_answers(write("a.jsonl", {"question_id": "1", "turns": ["x"], "answer": ["y"]}))


def test_ids_are_unique(write):
    with pytest.raises(DataError, match=r"a\.jsonl:2: question_id '1' is already in a\.jsonl:1"):
        read_answers(write("a.jsonl", ROW, ROW))


def test_the_baseline_is_base_or_the_first_or_the_named_one():
    assert choose_baseline({"a": 1, "base": 2}, None) == "base"
    assert choose_baseline({"b": 1, "a": 2}, None) == "b"
    assert choose_baseline({"b": 1, "a": 2}, "a") == "a"
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        choose_baseline({"local": 1, "base": 2}, "locl")


def test_questions_that_both_have_are_compared():
    one = [Answered(q, None, (f"{q}?",), ("x",)) for q in ("1", "2", "3")]
    other = [Answered(q, None, (f"{q}?",), ("y",)) for q in ("3", "1", "9")]
    assert [(a.question_id, b.answers) for a, b in common_questions(one, other)] == [("1", ("y",)), ("3", ("y",))]


def test_what_only_one_arm_knows_of_a_question_is_known_of_both():
    one = [Answered("1", None, ("1?",), ("x",), ("right",))]
    other = [Answered("1", "math", ("1?",), ("y",))]
    [(a, b)] = common_questions(one, other)
    assert (a.category, a.reference) == (b.category, b.reference) == ("math", ("right",))
    with pytest.raises(DataError, match="has the reference"):
        common_questions(one, [Answered("1", None, ("1?",), ("y",), ("wrong",))])
    with pytest.raises(DataError, match="has the category code in one arm and math"):
        common_questions([Answered("1", "code", ("1?",), ("x",))], other)


def test_an_arm_that_would_steer_a_terminal_is_refused(write):
    with pytest.raises(DataError, match="cannot be shown"):
        read_answers(write("a.jsonl", {**ROW, "arm": "\x1b[2J"}))


def test_an_id_with_two_questions_is_refused():
    with pytest.raises(
        DataError, match=r"question '1' has the turns \('Why',\) in one arm and \('How',\) in another"
    ):
        common_questions([Answered("1", None, ("Why",), ("x",))], [Answered("1", None, ("How",), ("x",))])
