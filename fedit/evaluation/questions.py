"""Questions that models are asked and judged by: public sets by name, the user's own from a file."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit.data.checks import check_of_field, gsm8k_check
from fedit.data.rowfiles import READERS, PlacedRow, missing, read_rows
from fedit.errors import ConfigError, DataError, UnknownName
from fedit.evaluation.constraints import Constraint, rule
from fedit.evaluation.grading import grade

_INSTRUCTIONS = ("turns", "question", "instruction")
_CONTEXTS = ("context", "input")
_REFERENCES = ("reference", "response", "output")

SHIPPED = Path(__file__).parent / "sets"
"""Where the sets are that come with fedit; their sources and licence are written beside them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question, of one or several turns.

    turns:       what the user says, in order; the model answers after each.
    reference:   a good answer to each turn, "" for a turn without one; None: no turn has one.
    check:       how the last answer is graded (see `fedit.evaluation.grading`); None: not at all.
    constraints: what the last answer has to follow (see `fedit.evaluation.constraints`).
    """

    question_id: str
    category: str | None
    turns: tuple[str, ...]
    reference: tuple[str, ...] | None = None
    check: str | None = None
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A public set and where its files are under the folder that ``FEDIT_DATA`` names, or under `SHIPPED`.

    file:       the file of the questions, relative to that folder.
    references: files of reference answers by question id; the first that is there is read.
    read:       makes a question of a row and its number, from 1.
    """

    summary: str
    file: str
    read: Callable[[PlacedRow, int], Question]
    references: tuple[str, ...] = ()


def load_questions(name: str) -> list[Question]:
    """Return the questions of a set of `QUESTION_SETS`, or of a file.

    name: a set, whose files are in the folder that the environment variable ``FEDIT_DATA`` names or come with
        fedit; or the path of a .jsonl, .json, .csv or .parquet file whose rows have ``turns`` (a list),
        ``question`` or ``instruction`` (with ``context`` or ``input``), and may have ``question_id``,
        ``category``, ``reference`` (or ``response``, ``output``), ``check`` and ``constraints``.

    Raises:
        UnknownName: it is neither a set nor looks like a file.
        ConfigError: the set does not come with fedit, and ``FEDIT_DATA`` is not set.
        DataError: a file is missing or broken, two questions are the same or have the same id; says where.
    """
    if name in QUESTION_SETS:
        return _public(name, QUESTION_SETS[name])
    path = Path(name).expanduser()
    if path.suffix.lower() not in READERS and not path.exists():
        raise UnknownName("question set", name, QUESTION_SETS)
    return _read(path, question_of_row)


def questions_sha256(questions: Sequence[Question]) -> str:
    """Return the SHA-256 of all that the questions hold, in order; results carry it."""
    digest = hashlib.sha256()
    for q in questions:
        constraints = [[c.instruction_id, dict(c.kwargs)] for c in q.constraints]
        fields = [q.question_id, q.category, q.turns, q.reference, q.check, constraints]
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def question_of_row(row: PlacedRow, number: int) -> Question:
    """Return the question of a row of the user's file, the ``number``-th; see `load_questions`.

    Raises:
        DataError: a field is missing or has the wrong type.
    """
    turns = _turns(row)
    return Question(
        question_id=_label(row, "question_id") or str(number),
        category=_label(row, "category"),
        turns=turns,
        reference=_reference(row, len(turns)),
        check=_check(row),
        constraints=_constraints(row),
    )


def _public(name: str, questions: QuestionSet) -> list[Question]:
    root = _root(name, questions)
    path = root / questions.file
    read = _read(path, questions.read)
    found = next((root / file for file in questions.references if (root / file).is_file()), None)
    if found is None:
        return read
    references = _reference_answers(found)
    return [_with_reference(question, references.get(question.question_id)) for question in read]


def _root(name: str, questions: QuestionSet) -> Path:
    """Return the folder that holds the set's files: the user's where they are there, else fedit's own."""
    folder = os.environ.get("FEDIT_DATA")
    own = Path(folder).expanduser() if folder else None
    for root in (own, SHIPPED):
        if root is not None and (root / questions.file).is_file():
            return root
    if own is None:
        raise ConfigError(
            f"the question set '{name}' is read from {questions.file} in the folder that the environment "
            "variable FEDIT_DATA names, which is not set: set it to the folder where you keep such files "
            "(docs/evaluation.md says which), or give the path of a file of questions."
        )
    raise DataError(f"the question set '{name}': {missing(own / questions.file)} FEDIT_DATA is {folder}.")


def _read(path: Path, read: Callable[[PlacedRow, int], Question]) -> list[Question]:
    rows = read_rows(path)
    questions = [read(row, number) for number, row in enumerate(rows, 1)]
    seen: dict[object, str] = {}
    for question, row in zip(questions, rows, strict=True):
        for what, key in (("id", question.question_id), ("turns", question.turns)):
            if key in seen:
                shown = f"'{key}'" if isinstance(key, str) else f"{key[0][:60]!r}"
                raise DataError(f"{row.where}: the same {what} as {seen[key]}: {shown}; remove one of the two.")
            seen[key] = row.where
    return questions


def _turns(row: PlacedRow) -> tuple[str, ...]:
    name = next((name for name in _INSTRUCTIONS if row.fields.get(name) is not None), None)
    if name is None:
        raise DataError(
            f"{row.where}: no question; fields found: {', '.join(row.fields) or 'none'}; expected one of "
            f"{', '.join(_INSTRUCTIONS)}."
        )
    if name == "turns":
        return _texts(row, "turns", blank=False)
    text = _text(row, name)
    context = next((_text(row, c) for c in _CONTEXTS if name == "instruction" and row.fields.get(c)), "")
    # as prompts without a place of its own for the context join the two
    return (f"{text}\n\n{context}" if context else text,)


def _reference(row: PlacedRow, turns: int) -> tuple[str, ...] | None:
    name = next((name for name in _REFERENCES if row.fields.get(name) is not None), None)
    if name is None:
        return None
    texts = (str(row.fields[name]),) if isinstance(row.fields[name], str | int | float) else _texts(row, name)
    if len(texts) != turns:
        raise DataError(f"{row.where}: '{name}' has {len(texts)} texts for {turns} turns; give one a turn.")
    return texts if any(text.strip() for text in texts) else None


def _check(row: PlacedRow) -> str | None:
    value = row.fields.get("check")
    if value is None or value == "":
        return None
    try:
        check = check_of_field(value)
        if check is None:
            raise DataError(f"'check' is {value!r}, expected an object with a 'kind'.")
        grade(check, "")
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error
    return check


def _constraints(row: PlacedRow) -> tuple[Constraint, ...]:
    entries = row.fields.get("constraints")
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise DataError(f"{row.where}: 'constraints' is {entries!r}, expected a list of {{id, kwargs}}.")
    try:
        return _valid([Constraint.read(entry) for entry in entries], _turns(row)[-1])
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def _valid(constraints: Sequence[Constraint], prompt: str) -> tuple[Constraint, ...]:
    for constraint in constraints:
        rule(constraint.instruction_id, constraint.kwargs, prompt)
    return tuple(constraints)


def _ifeval(row: PlacedRow, number: int) -> Question:
    prompt, kinds, kwargs = _text(row, "prompt"), _texts(row, "instruction_id_list"), row.fields.get("kwargs")
    if not isinstance(kwargs, list) or len(kwargs) != len(kinds):
        raise DataError(f"{row.where}: 'kwargs' must be a list of {len(kinds)} objects, one an instruction.")
    entries = [{"id": kind, "kwargs": arguments} for kind, arguments in zip(kinds, kwargs, strict=True)]
    try:
        constraints = _valid([Constraint.read(entry) for entry in entries], prompt)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error
    return Question(_label(row, "key") or str(number), None, (prompt,), constraints=constraints)


def _gsm8k(row: PlacedRow, number: int) -> Question:
    solution = _text(row, "answer")
    check = gsm8k_check(solution)
    if check is None:
        raise DataError(f"{row.where}: the answer does not end with '#### ' and a number.")
    # <<48/2=24>> are notes for a calculator, not text.
    reference = re.sub(r"<<[^<>]*>>", "", solution)
    return Question(str(number), None, (_text(row, "question"),), reference=(reference,), check=check)


def _reference_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the first choice's turns of each answer, by question id, from FastChat's format of model answers."""
    references = {}
    for row in read_rows(path):
        choices = row.fields.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise DataError(f"{row.where}: 'choices' must be a list with an object that has 'turns'.")
        name = _label(row, "question_id")
        if name is None:
            raise DataError(f"{row.where}: the field 'question_id' is missing.")
        references[name] = _texts(PlacedRow(choices[0], row.where), "turns")
    return references


def _with_reference(question: Question, reference: tuple[str, ...] | None) -> Question:
    if reference is not None and len(reference) != len(question.turns):
        raise DataError(
            f"question {question.question_id} has {len(question.turns)} turns, its reference answer has "
            f"{len(reference)}."
        )
    return Question(question.question_id, question.category, question.turns, reference)


def _label(row: PlacedRow, name: str) -> str | None:
    value = row.fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"{row.where}: '{name}' is {value!r}, expected text or a whole number.")
    return str(value)


def _text(row: PlacedRow, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: '{name}' is {value!r}, expected text.")
    return value


def _texts(row: PlacedRow, name: str, *, blank: bool = True) -> tuple[str, ...]:
    values = row.fields.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise DataError(f"{row.where}: '{name}' is {values!r}, expected a list of texts.")
    if not blank and not all(value.strip() for value in values):
        raise DataError(f"{row.where}: '{name}' has a blank text.")
    return tuple(values)


QUESTION_SETS: Mapping[str, QuestionSet] = {
    "vicuna80": QuestionSet(
        "80 questions in nine categories, one turn",
        "vicuna80/question.jsonl",
        question_of_row,
        ("vicuna80/reference_answer_gpt-4.jsonl",),
    ),
    "mt_bench": QuestionSet(
        "80 questions in eight categories, two turns",
        "mt_bench/question.jsonl",
        question_of_row,
        # the later file corrects the earlier one
        ("mt_bench/reference_answer_gpt-4-0125-preview.jsonl", "mt_bench/reference_answer_gpt-4.jsonl"),
    ),
    "ifeval": QuestionSet("541 prompts with verifiable constraints", "ifeval/input_data.jsonl", _ifeval),
    "gsm8k": QuestionSet("1,319 word problems with a number to find", "gsm8k/test.jsonl", _gsm8k),
}
"""The public sets by name."""
