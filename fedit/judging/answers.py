"""What is judged: questions with an arm's answers, one JSONL file an arm."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedit.errors import ConfigError, DataError, did_you_mean
from fedit.evaluation.answerfiles import Answered, read_answers

DEFAULT_BASELINE = "base"


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
        name, answered = read_answers(path)
        if name in arms:
            raise DataError(
                f'{path} holds the arm {name!r} and so does {sources[name]}; change "arm" in one of them.'
            )
        arms[name], sources[name] = answered, path
    return arms


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
