"""Question sets by name and from files, and what is said where they cannot be read."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fedit.data.checks import exact_check, number_check
from fedit.errors import ConfigError, DataError, UnknownName
from fedit.evaluation.constraints import Constraint
from fedit.evaluation.questions import QUESTION_SETS, Question, load_questions, questions_sha256

DATA = Path(os.environ.get("FEDIT_DATA") or "nowhere")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="FEDIT_DATA names no folder")


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path, *rows):
    return load_questions(str(write(path / "q.jsonl", *rows)))


def test_a_question_is_read_from_any_of_its_forms(tmp_path):
    check = {"kind": "number", "value": 4}
    constraint = {"id": "punctuation:no_comma"}
    assert load(
        tmp_path,
        {"question_id": 81, "category": "writing", "turns": ["one", "two"], "reference": ["first", ""], "x": 1},
        {"question": "three", "reference": "third", "check": check, "constraints": [constraint]},
        {"instruction": "four", "context": "given", "response": "fourth", "category": None},
        {"instruction": "five", "input": "", "output": 5, "question_id": ""},
        {"question": "six", "input": "ignored", "reference": "", "check": exact_check("6")},
    ) == [
        Question("81", "writing", ("one", "two"), ("first", "")),
        Question("2", None, ("three",), ("third",), number_check(4), (Constraint("punctuation:no_comma", {}),)),
        Question("3", None, ("four\n\ngiven",), ("fourth",)),
        Question("4", None, ("five",), ("5",)),
        Question("5", None, ("six",), None, exact_check("6")),
    ]


def test_questions_come_from_tables_too(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text('question,category,check\nWhy?,x,\n2+2?,,"{""kind"":""number"",""value"":4}"\n')
    assert load_questions(str(path)) == [
        Question("1", "x", ("Why?",)),
        Question("2", None, ("2+2?",), check='{"kind":"number","value":4}'),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "Why?"}, "no question; fields found: q; expected one of turns, question, instruction"),
        ({}, "no question; fields found: none"),
        ({"question": " "}, "'question' is ' ', expected text"),
        ({"question": 3}, "'question' is 3, expected text"),
        ({"turns": "Why?"}, "'turns' is 'Why\\?', expected a list of texts"),
        ({"turns": []}, "'turns' is \\[\\], expected a list of texts"),
        ({"turns": ["a", ""]}, "'turns' has a blank text"),
        ({"instruction": "a", "context": 3}, "'context' is 3, expected text"),
        ({"turns": ["a", "b"], "reference": ["c"]}, "'reference' has 1 texts for 2 turns"),
        ({"question": "a", "reference": {"b": 1}}, "'reference' is .*expected a list of texts"),
        ({"question": "a", "question_id": [1]}, "'question_id' is \\[1\\], expected text or a whole number"),
        ({"question": "a", "category": True}, "'category' is True"),
        ({"question": "a", "check": {"kind": "exat"}}, "'kind' is 'exat'"),
        ({"question": "a", "check": "exact"}, "'check' is 'exact', expected an object with a 'kind'"),
        ({"question": "a", "check": '{"kind"'}, "is broken JSON"),
        ({"question": "a", "constraints": {}}, "'constraints' is {}, expected a list"),
        ({"question": "a", "constraints": ["x"]}, "expected a constraint"),
        ({"question": "a", "constraints": [{"id": "x"}]}, "no kind of constraint 'x'"),
        (
            {"question": "a", "constraints": [{"id": "keywords:existence", "kwargs": {}}]},
            "keywords:existence: 'keywords' is None",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_line(row, message, tmp_path):
    with pytest.raises(DataError, match=rf"^q\.jsonl:2: .*{message}"):
        load(tmp_path, {"question": "fine"}, row)


def test_the_same_id_or_the_same_turns_twice_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"q\.jsonl:2: the same id as q\.jsonl:1: '7'"):
        load(tmp_path, {"question_id": 7, "question": "a"}, {"question_id": "7", "question": "b"})
    with pytest.raises(DataError, match=r"q\.jsonl:3: the same id as q\.jsonl:1: '3'"):
        load(tmp_path, {"question_id": 3, "question": "a"}, {"question": "b"}, {"question": "c"})
    with pytest.raises(DataError, match=r"q\.jsonl:2: the same turns as q\.jsonl:1: 'a'"):
        load(tmp_path, {"question": "a"}, {"turns": ["a"]})
    assert len(load(tmp_path, {"turns": ["a"]}, {"turns": ["a", "b"]})) == 2


def test_a_name_that_is_neither_set_nor_file_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match="unknown question set 'mtbench'; did you mean 'mt_bench'"):
        load_questions("mtbench")
    with pytest.raises(DataError, match=r"there is no file nothing\.jsonl"):
        load_questions("nothing.jsonl")


@pytest.mark.parametrize("name", ["ifeval", "gsm8k"])
def test_a_public_set_that_is_not_shipped_needs_its_folder_and_its_file(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDIT_DATA", raising=False)
    with pytest.raises(ConfigError, match=rf"'{name}' is read from {name}/\w+\.jsonl .* FEDIT_DATA .* not set"):
        load_questions(name)
    monkeypatch.setenv("FEDIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"'{name}': there is no file .*{name}.* FEDIT_DATA is {tmp_path}"):
        load_questions(name)


SHIPPED_SHA256 = {
    "vicuna80": "a9d2facf823f8956aa2707bfccb343465d6f01a1d132558e0fc12b9ea760efb6",
    "mt_bench": "e4de65b65543bbbfcf27bba65e98542ea6842d9739bb0f6cdcfb88c7d0f05c61",
}


@pytest.mark.parametrize("name", SHIPPED_SHA256)
def test_the_judges_sets_come_with_fedit_and_are_what_was_published(name, tmp_path, monkeypatch):
    for folder in (None, str(tmp_path)):  # where the folder lacks a set, fedit's own is read
        if folder is None:
            monkeypatch.delenv("FEDIT_DATA", raising=False)
        else:
            monkeypatch.setenv("FEDIT_DATA", folder)
        questions = load_questions(name)
        assert len(questions) == 80
        assert {question.category for question in questions if question.reference} >= {"math", "coding"}
        assert questions_sha256(questions) == SHIPPED_SHA256[name]
    write(tmp_path / QUESTION_SETS[name].file, {"question_id": 1, "turns": ["mine"]})
    assert load_questions(name) == [Question("1", None, ("mine",))]


def mt_bench(folder):
    write(
        folder / "mt_bench" / "question.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["own", ""]},
        {"question_id": 101, "category": "math", "turns": ["c", "d"]},
    )


def answer(text):
    return {"question_id": 101, "choices": [{"index": 0, "turns": [text, text]}]}


def test_reference_answers_are_the_corrected_ones_where_they_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_DATA", str(tmp_path))
    mt_bench(tmp_path)
    assert [q.reference for q in load_questions("mt_bench")] == [("own", ""), None]
    write(tmp_path / "mt_bench" / "reference_answer_gpt-4.jsonl", answer("old"))
    assert [q.reference for q in load_questions("mt_bench")] == [None, ("old", "old")]
    write(tmp_path / "mt_bench" / "reference_answer_gpt-4-0125-preview.jsonl", answer("new"))
    assert [q.reference for q in load_questions("mt_bench")] == [None, ("new", "new")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 101, "choices": []}, "reference_answer_gpt-4.jsonl:1: 'choices' must be a list"),
        ({"choices": [{"turns": ["a"]}]}, "reference_answer_gpt-4.jsonl:1: the field 'question_id' is missing"),
        ({"question_id": 101, "choices": [{"turns": [1]}]}, "reference_answer_gpt-4.jsonl:1: 'turns' is"),
        (
            {"question_id": 101, "choices": [{"turns": ["a"]}]},
            "question 101 has 2 turns, its reference answer has 1",
        ),
    ],
)
def test_a_broken_reference_answer_is_named(row, message, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_DATA", str(tmp_path))
    mt_bench(tmp_path)
    write(tmp_path / "mt_bench" / "reference_answer_gpt-4.jsonl", row)
    with pytest.raises(DataError, match=message):
        load_questions("mt_bench")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k/test", {"question": "a", "answer": "It is 4."}, "does not end with '#### '"),
        ("gsm8k/test", {"question": "a"}, "'answer' is None"),
        ("ifeval/input_data", {"prompt": "a", "instruction_id_list": ["b"], "kwargs": []}, "a list of 1 objects"),
        ("ifeval/input_data", {"prompt": "a", "instruction_id_list": ["b"], "kwargs": [{}]}, "no kind of con"),
        (
            "ifeval/input_data",
            {"prompt": "a", "instruction_id_list": [], "kwargs": []},
            "expected a list of texts",
        ),
    ],
)
def test_a_broken_row_of_a_public_set_is_named(name, row, message, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_DATA", str(tmp_path))
    write(tmp_path / f"{name}.jsonl", row)
    with pytest.raises(DataError, match=rf"^\w+\.jsonl:1: .*{message}"):
        load_questions(name.split("/")[0])


def test_gsm8k_gives_number_checks_and_references_without_notes_for_a_calculator(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_DATA", str(tmp_path))
    write(tmp_path / "gsm8k" / "test.jsonl", {"question": "How many?", "answer": "2*2=<<2*2=4>>4\n#### 4"})
    reference = ("2*2=4\n#### 4",)
    assert load_questions("gsm8k") == [Question("1", None, ("How many?",), reference, number_check("4"))]


@needs_data
@pytest.mark.parametrize(("name", "count"), [("vicuna80", 80), ("mt_bench", 80), ("ifeval", 541), ("gsm8k", 1319)])
def test_the_public_sets_are_read_whole(name, count):
    if not (DATA / QUESTION_SETS[name].file).is_file():
        pytest.skip(f"FEDIT_DATA has no {QUESTION_SETS[name].file}")
    questions = load_questions(name)
    assert len({question.question_id for question in questions}) == len(questions) == count
    with_reference = sum(question.reference is not None for question in questions)
    assert with_reference == {"vicuna80": 10, "mt_bench": 30, "ifeval": 0, "gsm8k": 1319}[name]
    assert {len(question.turns) for question in questions} == {2 if name == "mt_bench" else 1}
    assert all(question.constraints for question in questions) == (name == "ifeval")
    assert all(question.check for question in questions) == (name == "gsm8k")
    assert len({question.category for question in questions}) == {"vicuna80": 9, "mt_bench": 8}.get(name, 1)


def test_the_fingerprint_depends_on_everything_and_on_the_order():
    plain = Question("1", "c", ("a", "b"), ("r", ""), exact_check("x"), (Constraint("k", {"n": 1, "m": 2}),))
    variants = [
        plain,
        replace(plain, question_id="2"),
        replace(plain, category=None),
        replace(plain, turns=("ab",)),
        replace(plain, reference=None),
        replace(plain, check=None),
        replace(plain, constraints=()),
        replace(plain, constraints=(Constraint("k", {"n": 2, "m": 2}),)),
    ]
    prints = {questions_sha256([variant]) for variant in variants}
    prints |= {questions_sha256(variants[:2]), questions_sha256(variants[1::-1]), questions_sha256([])}
    assert len(prints) == len(variants) + 3
    same = replace(plain, constraints=(Constraint("k", {"m": 2, "n": 1}),))
    assert questions_sha256([same]) == questions_sha256([plain])
