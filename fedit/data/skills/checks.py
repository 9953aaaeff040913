"""Write down how an answer is verified: compact JSON for `Example.check`.

`fedit.evaluation.grading` reads it. A check is data, so rows can be stored, sent and compared with it.
"""

import json
from collections.abc import Sequence


def exact_check(value: str) -> str:
    """Accept only ``value``, with any whitespace around it."""
    return _compact({"kind": "exact", "value": value})


def bullets_check(count: int, allowed: Sequence[str] | None = None) -> str:
    """Accept exactly ``count`` lines "- item", all different and, when ``allowed`` is given, all from there."""
    return _compact({"kind": "bullets", "count": count} | ({} if allowed is None else {"allowed": list(allowed)}))


def two_lines_check(first: str, second: str) -> str:
    """Accept a verse of two lines: the first holds ``first`` and ends with ",", the second ``second`` and "."."""
    return _compact({"kind": "two_lines", "words": [first, second]})


def _compact(check: dict[str, object]) -> str:
    return json.dumps(check, separators=(",", ":"))
