"""Grade one answer against a row's check: right or wrong, by rules that need no judge."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from fedit.data.checks import (
    bullets_check,
    choice_check,
    constraints_check,
    exact_check,
    number_check,
    two_lines_check,
)
from fedit.data.examples import Example
from fedit.errors import DataError
from fedit.evaluation.constraints import Constraint, followed, measured_here
from fedit.evaluation.constraints.language import INSTALL
from fedit.evaluation.extract import as_number, chosen_letter, final_number
from fedit.reading import parse_json

__all__ = [
    "bullets_check",
    "choice_check",
    "constraints_check",
    "exact_check",
    "grade",
    "number_check",
    "reference_check",
    "refuse_bad_checks",
    "two_lines_check",
]

_SHORTEST_LINE, _LONGEST_LINE = 3, 12
"""Words in one line of a verse."""


def reference_check(example: Example) -> str:
    """Return the check of a row that has none: the reference answer, whatever its case and spacing."""
    return json.dumps({"kind": "reference", "value": example.answer}, separators=(",", ":"))


def refuse_bad_checks(examples: Iterable[Example]) -> None:
    """Raise for the first example whose check could not grade an answer, before anything was trained.

    Raises:
        DataError: says where the row is and what is wrong with its check.
    """
    for example in examples:
        if example.check is not None:
            try:
                grade(example.check, "")
            except DataError as error:
                raise DataError(f"{example.where}: {error}" if example.where else str(error)) from error


def grade(check: str, answer: str) -> bool:
    """Return whether ``answer`` meets ``check``, compact JSON with its ``kind``.

    exact:     ``value``, with any whitespace around it.
    reference: ``value`` after folding case and runs of whitespace.
    bullets:   ``count`` lines "- item" and nothing else, items different, from ``allowed`` if it is there;
               items are compared without their case.
    two_lines: two different lines of 3 to 12 words; the first holds the first of ``words`` and ends with ",",
               the second holds the second and ends with ".".
    number:    the answer's final number is ``value``, as `fedit.evaluation.extract.final_number` reads it.
    choice:    the answer chooses the option ``value``, a letter, as `fedit.evaluation.extract.chosen_letter`
               reads it.
    constraints: it follows all ``constraints``, each {"id", "kwargs"}, of kinds in
               `fedit.evaluation.constraints`, strictly.

    >>> grade('{"kind":"exact","value":"Answer: Paris."}', " Answer: Paris. ")
    True

    Raises:
        DataError: the check is no such JSON, or has a constraint that cannot be checked on this machine.
    """
    fields = _read(check)
    kind = fields.get("kind")
    grader = _GRADERS.get(kind) if isinstance(kind, str) else None
    if grader is None:
        raise _malformed(check, f"its 'kind' is {kind!r} and must be one of {', '.join(_GRADERS)}")
    try:
        return grader(fields, answer)
    except _BadField as error:
        raise _malformed(check, str(error)) from error


class _BadField(Exception):
    """A field of a check is missing or has the wrong type."""


def _exact(fields: Mapping[str, object], answer: str) -> bool:
    return answer.strip() == _text(fields, "value")


def _reference(fields: Mapping[str, object], answer: str) -> bool:
    return _folded(answer) == _folded(_text(fields, "value"))


def _bullets(fields: Mapping[str, object], answer: str) -> bool:
    count = fields.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise _BadField(f"'count' is {count!r} and must be a whole number from 1")
    allowed = {_folded(item) for item in _texts(fields, "allowed")} if "allowed" in fields else None
    lines = answer.strip().split("\n")
    items = [_folded(line.removeprefix("- ")) for line in lines]
    return (
        len(lines) == count
        and all(line.startswith("- ") for line in lines)
        and all(items)
        and len(set(items)) == count
        and (allowed is None or allowed.issuperset(items))
    )


def _two_lines(fields: Mapping[str, object], answer: str) -> bool:
    words = _texts(fields, "words")
    if len(words) != 2:
        raise _BadField(f"'words' has {len(words)} entries and must have 2")
    lines = [line.strip() for line in answer.strip().split("\n")]
    if len(lines) != 2 or _folded(lines[0].rstrip(",.")) == _folded(lines[1].rstrip(",.")):
        return False
    return all(
        line.endswith(end)
        and _SHORTEST_LINE <= len(line.split()) <= _LONGEST_LINE
        and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line, re.IGNORECASE) is not None
        for line, word, end in zip(lines, words, (",", "."), strict=True)
    )


def _number(fields: Mapping[str, object], answer: str) -> bool:
    value = fields.get("value")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadField(f"'value' is {value!r} and must be a number")
    wanted = as_number(value) if isinstance(value, str) else Decimal(str(value))
    if wanted is None or not wanted.is_finite():
        raise _BadField(f"'value' is {value!r} and must be a number")
    return final_number(answer) == wanted


def _choice(fields: Mapping[str, object], answer: str) -> bool:
    letter = _text(fields, "value")
    if not re.fullmatch("[A-Za-z]", letter):
        raise _BadField(f"'value' is {letter!r} and must be one letter from A to Z")
    return chosen_letter(answer) == letter.upper()


def _constraints(fields: Mapping[str, object], answer: str) -> bool:
    entries = fields.get("constraints")
    if not isinstance(entries, list) or not entries:
        raise _BadField(f"'constraints' is {entries!r} and must be a list of {{id, kwargs}}")
    try:
        constraints = [Constraint.read(entry) for entry in entries]
        marks = followed(constraints, "", answer)
    except DataError as error:
        raise _BadField(str(error).removesuffix(".")) from error
    if None in marks:
        unmeasured = sorted({c.instruction_id for c in constraints if not measured_here(c.instruction_id)})
        raise _BadField(f"{', '.join(unmeasured)} cannot be checked without langdetect ({INSTALL})")
    return all(marks)


_GRADERS: dict[str, Callable[[Mapping[str, object], str], bool]] = {
    "exact": _exact,
    "reference": _reference,
    "bullets": _bullets,
    "two_lines": _two_lines,
    "number": _number,
    "choice": _choice,
    "constraints": _constraints,
}


def _read(check: str) -> dict[str, object]:
    try:
        fields = parse_json(check)
    except ValueError as error:
        raise _malformed(check, "it is no JSON") from error
    if not isinstance(fields, dict):
        raise _malformed(check, "it is no JSON object")
    return fields


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _BadField(f"'{name}' is {value!r} and must be text")
    return value


def _texts(fields: Mapping[str, object], name: str) -> list[str]:
    values = fields.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise _BadField(f"'{name}' is {values!r} and must be a list of texts")
    return values


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _malformed(check: str, reason: str) -> DataError:
    return DataError(
        f"the check {check[:200]!r} cannot grade an answer: {reason}. Write checks with the functions of "
        "fedit.data.checks, or leave the check out to compare with the reference answer."
    )
