"""Text from outside as values, within limits: whatever is wrong with JSON, YAML or TOML is one kind of error.

The libraries raise half a dozen kinds (numbers of thousands of digits, nesting beyond the interpreter's stack,
days that do not exist), and a few lines of YAML can stand for gigabytes. Values that pass here are shallow enough
for everything that goes over them by recursion afterwards.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 64
"""Levels of lists and objects in each other. Settings have 4, rows of known data sets 5."""
MOST_NODES = 200_000
"""Values that a YAML text may stand for, aliases written out."""
LONGEST_SETTINGS = 1 << 20
"""Bytes of a file that a person writes: a job, a policy, a template."""


class Unreadable(ValueError):
    """Text that is not what it should be.

    line, column: from 1, where it is known; reason: without the place.
    """

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}, column {column}: {reason}")
        self.reason = reason
        self.line = line
        self.column = column


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401  # JSON is anything
    """Return the value of a JSON text.

    Raises:
        Unreadable: it is no JSON, or nested too deeply.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise Unreadable(error.msg, error.lineno, error.colno) from error
    except ValueError as error:  # bytes that are no text; numbers too long to read
        raise Unreadable(str(error)) from error
    except RecursionError:
        raise _too_deep() from None
    refuse_deep(value)
    return value


def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the value of a YAML text, of plain types alone, and its nodes, which know their lines.

    Raises:
        Unreadable: it is no YAML, is nested too deeply, or stands for too much.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _refuse_large(node)
        return loader.construct_document(node), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = str(getattr(error, "problem", None) or error)
        raise Unreadable(reason, *((mark.line + 1, mark.column + 1) if mark else ())) from error
    except Unreadable:
        raise
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # Of values whose tag promises something else: "!!int ''", "!!bool maybe", the 31st of February.
        raise Unreadable(f"a value is not what its tag says ({type(error).__name__}: {error})") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        Unreadable: it is no TOML, or nested too deeply.
    """
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, ArithmeticError, LookupError) as error:  # numbers too long to read, days that are none
        raise Unreadable(str(error)) from error
    refuse_deep(value)
    return value


def read_settings_text(path: Path) -> str:
    """Return the text of a file that a person wrote, UTF-8 with or without a mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too long, or not UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read(LONGEST_SETTINGS + 1)
    if len(content) > LONGEST_SETTINGS:
        raise Unreadable(f"it has more than {LONGEST_SETTINGS:,} bytes, which no file of settings needs")
    return content.decode("utf-8-sig")


def refuse_deep(value: object, deepest: int = DEEPEST) -> None:
    """Make sure that lists and objects lie in each other at most ``deepest`` levels deep.

    Raises:
        Unreadable: they lie deeper.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(deepest):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise _too_deep(deepest)


def shown(value: object, longest: int = 120) -> str:
    """Return a value for a message: on one line, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, lists in lists in lists
        return f"beyond what can be shown ({type(value).__name__})"
    return text if len(text) <= longest else f"{text[:longest]}…"


def _refuse_large(node: yaml.Node) -> None:
    """Count the values a node stands for, those behind aliases as often as they are named."""
    count, waiting = 0, [(node, 1)]
    while waiting:
        own, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise _too_deep()
        if count > MOST_NODES:
            raise Unreadable(f"it stands for more than {MOST_NODES:,} values")
        if isinstance(own, yaml.MappingNode):
            waiting += [(inner, depth + 1) for pair in own.value for inner in pair]
        elif isinstance(own, yaml.SequenceNode):
            waiting += [(inner, depth + 1) for inner in own.value]


def _too_deep(deepest: int = DEEPEST) -> Unreadable:
    return Unreadable(f"it is nested deeper than {deepest} levels")
