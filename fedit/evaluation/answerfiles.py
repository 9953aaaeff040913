"""Answers on disk: one JSON line a question, all of one arm, for evaluators and judges alike."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedit.data.rowfiles import PlacedRow, read_rows
from fedit.errors import DataError, did_you_mean
from fedit.files import write_text

_FIELDS = ("question_id", "category", "turns", "answers", "reference", "arm")


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what one arm answered to each of its turns.

    category:  what the question is about, None: unknown; a judge's rubric depends on it.
    reference: a good answer to each turn, "" for a turn without one; None: no turn has one.

    Raises:
        DataError: there is not one answer, or not one reference, for each turn.
    """

    question_id: str
    category: str | None
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    reference: tuple[str, ...] | None = None

    @property
    def length(self) -> int:
        """Characters of all answers."""
        return sum(map(len, self.answers))

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
    """Return the name of the arm in a file, and its answers in the order of the file.

    The arm is called what its lines' "arm" says, else like its file; a line's reference may be of the first turns.

    Raises:
        DataError: the file or a row cannot be used, or the arm has no printable name.
    """
    rows = read_rows(path)
    names = {str(row.fields["arm"]) for row in rows if row.fields.get("arm") is not None}
    if len(names) > 1:
        raise DataError(f"{path} holds several arms ({', '.join(sorted(names))}); write one file an arm.")
    answered = [_answered(row) for row in rows]
    seen: dict[str, str] = {}
    for row, item in zip(rows, answered, strict=True):
        if item.question_id in seen:
            first = seen[item.question_id]
            raise DataError(
                f"{row.where}: question_id {item.question_id!r} is already in {first}; ids are unique."
            )
        seen[item.question_id] = row.where
    name = names.pop() if names else path.stem
    if not name.isprintable():
        raise DataError(f"{path}: the arm {name!r} has characters in its name that cannot be shown.")
    return name, answered


def _answered(row: PlacedRow) -> Answered:
    fields = row.fields
    for name in ("question_id", "turns", "answers"):
        if name not in fields:
            near = "".join(
                f" Its '{found}' may be meant." for found in fields if did_you_mean(found, [name]) != "."
            )
            raise DataError(f"{row.where}: there is no {name!r}; a row has {', '.join(_FIELDS)}.{near}")
    question, category = fields["question_id"], fields.get("category")
    if isinstance(question, bool) or not isinstance(question, str | int) or question == "":
        raise DataError(f"{row.where}: question_id is {question!r}; expected text or a whole number.")
    if category is not None and not isinstance(category, str):
        raise DataError(f"{row.where}: category is {category!r}; expected text or null.")
    turns, answers = _texts(row, "turns"), _texts(row, "answers")
    if not turns or len(turns) != len(answers):
        raise DataError(f"{row.where}: {len(answers)} answers to {len(turns)} turns; expected one for each.")
    reference = _texts(row, "reference") if fields.get("reference") is not None else ()
    if len(reference) > len(turns):
        raise DataError(
            f"{row.where}: {len(reference)} references for {len(turns)} turns; expected at most one each."
        )
    missing = ("",) * (len(turns) - len(reference))
    return Answered(str(question), category, turns, answers, (*reference, *missing) if any(reference) else None)


def _texts(row: PlacedRow, name: str) -> tuple[str, ...]:
    value = row.fields[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{row.where}: {name!r} is {str(value)[:60]!r}; expected a list of texts.")
    return tuple(value)
