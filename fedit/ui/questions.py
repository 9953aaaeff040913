"""Questions to put to several models: read from a file, drawn in an order of chance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedit import seeds
from fedit.errors import DataError
from fedit.files import reason

_TEXT = ("question", "instruction", "prompt")
_MORE = ("input", "context")


@dataclass(frozen=True, slots=True)
class Question:
    """One question. ``id`` is the file's own or the number of its line, ``category`` "" where there is none."""

    id: str
    text: str
    category: str = ""


def read_questions(path: Path) -> list[Question]:
    """Return the questions in a JSONL file, in its order.

    A line holds ``turns`` (a list, the first of which is asked), ``question``, ``instruction`` or ``prompt``; with
    ``instruction`` an ``input`` or ``context`` follows it. ``question_id`` and ``category`` may be there.

    Raises:
        DataError: the file cannot be read, a line holds no question, or an id comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read the questions in {path}: {why}") from error
    questions = [
        _question(line, number, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not questions:
        raise DataError(f"{path} holds no questions.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{path}: question_id {question.id} comes twice; votes could not be told apart.")
        seen.add(question.id)
    return questions


def shuffled(questions: Sequence[Question], seed: int) -> list[Question]:
    """Return the questions in the order that ``seed`` draws."""
    order = np.random.default_rng(seeds.derive(seed, "questions")).permutation(len(questions))
    return [questions[index] for index in order]


def _question(line: str, number: int, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with turns, question or instruction.")
    text = _text(row)
    if not text:
        raise DataError(
            f"{where}: no question found among {', '.join(row) or 'no fields'}; expected turns (a list of texts), "
            f"{', '.join(_TEXT[:-1])} or {_TEXT[-1]}."
        )
    return Question(str(row.get("question_id", number)), text, str(row.get("category") or ""))


def _text(row: Mapping[str, object]) -> str:
    turns = row.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], str):
        return turns[0].strip()
    head = next((value.strip() for key in _TEXT if isinstance(value := row.get(key), str) and value.strip()), "")
    more = [value.strip() for key in _MORE if isinstance(value := row.get(key), str) and value.strip()]
    return "\n\n".join([head, *more]) if head else ""
