"""Answers on disk: one JSON line a question, all of one arm, for evaluators and judges alike."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedit.data.rowfiles import PlacedRow, read_rows
from fedit.errors import DataError
from fedit.files import write_text


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what one arm answered to each of its turns.

    reference: a good answer to each turn, "" for a turn without one; None: no turn has one.

    Raises:
        DataError: there is not one answer, or not one reference, for each turn.
    """

    question_id: str
    category: str | None
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    reference: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, texts in (("answers", self.answers), ("reference", self.reference)):
            if texts is not None and len(texts) != len(self.turns):
                raise DataError(
                    f"question '{self.question_id}': '{name}' has {len(texts)} texts for {len(self.turns)} turns."
                )


def write_answers(path: Path, arm: str, answered: Sequence[Answered]) -> None:
    """Write the answers of ``arm`` to ``path``, whole or not at all.

    A line is {"question_id", "category", "turns", "answers", "reference", "arm"}.

    Raises:
        RunFolderError: the file cannot be written.
    """
    lines = [json.dumps({**asdict(one), "arm": arm}, ensure_ascii=False) + "\n" for one in answered]
    write_text(path, "".join(lines))


def read_answers(path: Path) -> tuple[str, list[Answered]]:
    """Return the arm and its answers, in the order of the file.

    Raises:
        DataError: the file is missing, empty or broken, a question comes twice or the lines are of several arms;
            says where.
    """
    rows = read_rows(path)
    arm = _text(rows[0], "arm")
    seen: dict[str, str] = {}
    answered = []
    for row in rows:
        if _text(row, "arm") != arm:
            raise DataError(f"{row.where}: arm '{row.fields['arm']}', but the file began with arm '{arm}'.")
        one = _answered(row)
        if one.question_id in seen:
            raise DataError(f"{row.where}: question '{one.question_id}' was answered in {seen[one.question_id]}.")
        seen[one.question_id] = row.where
        answered.append(one)
    return arm, answered


def _answered(row: PlacedRow) -> Answered:
    category = row.fields.get("category")
    if category is not None and not isinstance(category, str):
        raise DataError(f"{row.where}: 'category' is {category!r}, expected text or null.")
    turns, answers = _texts(row.fields, "turns", row.where), _texts(row.fields, "answers", row.where)
    reference = _texts(row.fields, "reference", row.where) if row.fields.get("reference") is not None else None
    try:
        return Answered(_text(row, "question_id"), category, turns, answers, reference)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def _text(row: PlacedRow, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value:
        raise DataError(f"{row.where}: '{name}' is {value!r}, expected text.")
    return value


def _texts(fields: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    values = fields.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: '{name}' is {values!r}, expected a list of texts.")
    return tuple(values)
