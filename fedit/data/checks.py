"""Write down how an answer is verified: compact JSON for `Example.check`.

`fedit.evaluation.grading` reads it. A check is data, so rows can be stored, sent and compared with it.
"""

import json
import re
from collections.abc import Mapping, Sequence

from fedit.errors import DataError
from fedit.reading import parse_json

_GSM8K_END = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\Z")


def exact_check(value: str) -> str:
    """Accept only ``value``, with any whitespace around it."""
    return _compact({"kind": "exact", "value": value})


def bullets_check(count: int, allowed: Sequence[str] | None = None) -> str:
    """Accept exactly ``count`` lines "- item", all different and, when ``allowed`` is given, all from there."""
    return _compact({"kind": "bullets", "count": count} | ({} if allowed is None else {"allowed": list(allowed)}))


def two_lines_check(first: str, second: str) -> str:
    """Accept a verse of two lines: the first holds ``first`` and ends with ",", the second ``second`` and "."."""
    return _compact({"kind": "two_lines", "words": [first, second]})


def number_check(value: int | float | str) -> str:
    """Accept an answer whose final number is ``value``; 1080, "1,080" and 1080.0 are the same number."""
    return _compact({"kind": "number", "value": value})


def choice_check(letter: str) -> str:
    """Accept an answer that chooses the option ``letter`` and no other."""
    return _compact({"kind": "choice", "value": letter})


def constraints_check(constraints: Sequence[Mapping[str, object]]) -> str:
    """Accept an answer that follows every constraint, each {"id": …, "kwargs": {…}}."""
    return _compact({"kind": "constraints", "constraints": [dict(constraint) for constraint in constraints]})


def gsm8k_check(solution: str) -> str | None:
    """Return the number check of a GSM8K solution, which ends with "#### " and a number; None if it does not.

    >>> gsm8k_check("He has 2 * 540 = <<2*540=1080>>1080 left. #### 1,080")
    '{"kind":"number","value":"1,080"}'
    """
    found = _GSM8K_END.search(solution)
    return number_check(found[1]) if found else None


def check_of_field(value: object) -> str | None:
    """Return the check that a row's field holds: an object with a ``kind``, or the same as JSON text, as in CSV.

    None if the field holds anything else.

    Raises:
        DataError: it is text that looks like a check and is broken JSON.
    """
    fields = value
    if isinstance(value, str) and value.lstrip().startswith("{") and '"kind"' in value:
        try:
            fields = parse_json(value)
        except ValueError as error:
            raise DataError(f"the check {value[:80]!r} is broken JSON: {error}.") from error
    if not isinstance(fields, Mapping) or "kind" not in fields:
        return None
    # Tables fill the fields that a row does not have with null.
    return _compact({name: item for name, item in fields.items() if item is not None})


def _compact(check: Mapping[str, object]) -> str:
    return json.dumps(check, separators=(",", ":"))
