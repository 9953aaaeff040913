"""What is judged: questions with an arm's answers, one JSONL file an arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedit.data.rowfiles import PlacedRow, read_rows
from fedit.errors import ConfigError, DataError, did_you_mean

_FIELDS = ("question_id", "category", "turns", "answers", "reference", "arm")
DEFAULT_BASELINE = "base"


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, of one or more turns, with one arm's answers.

    category:  decides the rubric (code, maths, anything else) and groups results.
    turns:     what the user says, one text a turn.
    answers:   what the arm answered, one text a turn.
    reference: right answers to the first turns, shown to the judge; None: there are none.
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


def read_arms(paths: Sequence[Path]) -> dict[str, list[Answered]]:
    """Return the answers of every arm: JSONL files, or one folder with ``answers/*.jsonl`` or ``*.jsonl``.

    A row is ``{"question_id": str, "category": str|null, "turns": [str], "answers": [str], "reference":
    [str]|null}``. The arm is called what its rows' "arm" says, else like its file.

    Raises:
        DataError: a file or a row cannot be used, or two files hold the same arm.
    """
    arms: dict[str, list[Answered]] = {}
    sources: dict[str, Path] = {}
    for path in _files(paths):
        name, answered = read_arm(path)
        if name in arms:
            raise DataError(
                f'{path} holds the arm {name!r} and so does {sources[name]}; change "arm" in one of them.'
            )
        arms[name], sources[name] = answered, path
    return arms


def read_arm(path: Path) -> tuple[str, list[Answered]]:
    """Return the name of the arm in a file, and its answers.

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


def choose_baseline(arms: Mapping[str, object], named: str | None) -> str:
    """Return the arm that the others are compared with: the named one, "base" if there is one, or the first.

    Raises:
        ConfigError: there is no arm of that name.
    """
    if named is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in arms else next(iter(arms))
    if named not in arms:
        raise ConfigError(f"there is no arm {named!r}{did_you_mean(named, arms)} Arms here: {', '.join(arms)}.")
    return named


def common_questions(one: Sequence[Answered], other: Sequence[Answered]) -> list[tuple[Answered, Answered]]:
    """Return the answers to the questions that both have, in the order of ``one``.

    A category or a reference that only one of the two has is given to both.

    Raises:
        DataError: a question has different texts, categories or references in the two.
    """
    by_id = {item.question_id: item for item in other}
    return [_matched(item, by_id[item.question_id]) for item in one if item.question_id in by_id]


def _matched(a: Answered, b: Answered) -> tuple[Answered, Answered]:
    for name, one, other in (
        ("turns", a.turns, b.turns),
        ("category", a.category or b.category, b.category or a.category),
        ("reference", a.reference or b.reference, b.reference or a.reference),
    ):
        if one != other:
            raise DataError(
                f"question {a.question_id!r} has the {name} {str(one)[:60]} in one arm and {str(other)[:60]} in "
                "another; answers can only be compared on the same question."
            )
    category, reference = a.category or b.category, a.reference or b.reference
    return replace(a, category=category, reference=reference), replace(b, category=category, reference=reference)


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted((path / "answers").glob("*.jsonl")) or sorted(path.glob("*.jsonl"))
        if not inside:
            raise DataError(
                f"{path} holds no answers: looked for answers/*.jsonl and *.jsonl in it. Name the files of the "
                "arms (JSONL, one row a question), or a folder that has them."
            )
        found += inside
    return found


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
    return Answered(str(question), category, turns, answers, reference or None)


def _texts(row: PlacedRow, name: str) -> tuple[str, ...]:
    value = row.fields[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{row.where}: {name!r} is {str(value)[:60]!r}; expected a list of texts.")
    return tuple(value)
