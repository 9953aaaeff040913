"""Jinja for templates that somebody else wrote: no code, no files, and an end to what they write and how long.

Jinja's own sandbox keeps templates from attributes and functions that lead out of it. It does not keep them from
writing without end: ``'a' * 10**10``, lists in lists, loops in loops. Here every value has a largest size and
every rendering a number of steps, so that what a template costs is known before it is run.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

LARGEST = 1 << 22
"""Characters of a value, and of a whole text."""
MOST_ENTRIES = 1 << 17
"""Of a list, with all that lies in it."""
MOST_STEPS = 200_000
"""Passes of loops and calls in one rendering."""
_MOST_BITS = 4096
_GROWING = frozenset(
    {"replace", "join", "center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"}
    | {"indent", "batch", "slice", "wordwrap", "tojson", "xmlattr", "pprint", "truncate"}
)
"""Methods and filters whose result may be as long as two of their operands multiplied."""
_WIDTH = re.compile(r"\d{5,}|%[^a-zA-Z%]*\*")
"""In a format: a field wider than 9,999 characters, or as wide as an operand says."""
_HOLDS_LITERALS = (
    jinja2.nodes.Assign,
    jinja2.nodes.Keyword,
    jinja2.nodes.List,
    jinja2.nodes.Pair,
    jinja2.nodes.Tuple,
)
"""Nodes from which a literal list can get into a variable, and from there into another list."""
_left: ContextVar[list[int]] = ContextVar("steps left in the rendering under way")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates so that loops, literals and operators pass by here. Rendered through `rendered`."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # as Jinja's own
        super().__init__(**options)
        del self.globals["lipsum"], self.filters["random"]  # tokens must not depend on chance
        for name, own in list(self.filters.items()):
            self.add_filter(name, own)
        self.filters |= {"_counted": _counted, "_sized": _sized, "_written": _written}

    def add_filter(self, name: str, own: Callable[..., Any]) -> None:
        """Give templates a filter, watched as Jinja's own are."""
        self.filters[name] = _watched(name, own)

    def compiled(self, source: str) -> tuple[jinja2.Template, jinja2.nodes.Template]:
        """Return a template and its syntax tree.

        Raises:
            jinja2.TemplateSyntaxError: it cannot be parsed, or is nested too deeply.
        """
        try:
            tree, watched = self.parse(source), self.parse(source)
            _watch(watched)
            return self.from_string(watched), tree
        except (RecursionError, MemoryError, OverflowError, ValueError) as error:
            raise jinja2.TemplateSyntaxError(f"nested too deeply, or a number too long ({error})", 1) from None

    def call_binop(self, context: object, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Do what an operator says, if its result has a size."""
        if operator == "%" and isinstance(left, str):
            _refuse_width(left)
        elif operator == "+":
            _refuse(_weight(left) + _weight(right) > LARGEST)
        elif operator == "*":
            texts = [own for own in (left, right) if isinstance(own, str | list | tuple)]
            _refuse(bool(texts) and _product(left, right) > LARGEST)
            _refuse(not texts and _bits(left) + _bits(right) > _MOST_BITS)
        elif operator == "**":
            _refuse(_bits(left) * (abs(right) if isinstance(right, int) else 1) > _MOST_BITS)
        return super().call_binop(context, operator, left, right)  # type: ignore[arg-type]

    def call(self, context: object, function: Any, /, *operands: Any, **options: Any) -> Any:  # noqa: ANN401
        """Call something, as a step of the rendering."""
        _step(1)
        asked = getattr(function, "__wrapped__", function)  # Jinja wraps str.format
        name, owner = getattr(asked, "__name__", ""), getattr(asked, "__self__", None)
        if isinstance(owner, str | list | dict):
            _check_growth(name, (owner, *operands, *options.values()))
        return _sized(super().call(context, function, *operands, **options))  # type: ignore[arg-type]

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what a template writes."""
        return _written(pieces)


def rendered(template: jinja2.Template, values: Mapping[str, object]) -> str:
    """Return what a template of a `Sandbox` writes.

    Raises:
        jinja2.TemplateError: it refuses, or takes more steps or room than any needs; and what operations on values
            raise that are not as it expects: ArithmeticError, AttributeError, LookupError, TypeError, ValueError.
    """
    token = _left.set([MOST_STEPS])
    try:
        return template.render(values)
    except RecursionError:
        raise SecurityError("it calls itself without end") from None
    finally:
        _left.reset(token)


def _watch(node: jinja2.nodes.Node) -> None:
    """Put a filter around every loop's sequence, literal list and joining of texts below ``node``."""
    for child in node.iter_child_nodes():
        _watch(child)
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_around(node, name, own) for own in value])
        else:
            setattr(node, name, _around(node, name, value))


def _around(parent: jinja2.nodes.Node, place: str, node: Any) -> Any:  # noqa: ANN401  # fields hold anything
    if isinstance(parent, jinja2.nodes.For) and place == "iter":
        return _filtered(node, "_counted")
    if isinstance(node, jinja2.nodes.Concat):
        return _filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), "_written")
    literal = isinstance(node, jinja2.nodes.List | jinja2.nodes.Dict | jinja2.nodes.Tuple)
    if literal and getattr(node, "ctx", "load") == "load" and isinstance(parent, _HOLDS_LITERALS):
        return _filtered(node, "_sized")
    return node


def _filtered(node: Any, name: str) -> jinja2.nodes.Filter:  # noqa: ANN401  # an expression
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _watched(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja's whose operands and result have a size; what it asks of its caller stays."""

    @wraps(own)
    def watched(*operands: Any, **options: Any) -> Any:  # noqa: ANN401
        _check_growth(name, (*operands, *options.values()))
        return _sized(own(*operands, **options))

    return watched


def _check_growth(name: str, operands: Iterable[object]) -> None:
    if name in _GROWING:
        given = list(operands)
        sizes = sorted((_factor(own) for own in given), reverse=True)
        _refuse(len(sizes) > 1 and sizes[0] * max(sizes[1], 1) > 8 * LARGEST)
        if name in ("format", "format_map"):
            for text in given:
                _refuse_width(text)


def _step(count: int) -> None:
    steps = _left.get(None)
    if steps is not None:  # constants are worked out before any rendering
        steps[0] -= count
        if steps[0] < 0:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")


def _counted(values: Iterable[object]) -> list[object]:
    """Return what a loop goes over, as steps of the rendering."""
    found = list(values)
    _step(len(found) + 1)
    return found


def _sized(value: object) -> object:
    """Return a value that is no larger than values may be."""
    _weight(value)
    return value


def _written(pieces: Iterable[object]) -> str:
    texts: list[str] = []
    size = 0
    for piece in pieces:
        _weight(piece)
        texts.append(str(piece))
        size += len(texts[-1])
        _refuse(size > LARGEST)
    return "".join(texts)


def _weight(value: object) -> int:
    """Return how many characters and entries a value has, lists in lists counted as often as they stand there."""
    if isinstance(value, str | bytes):
        _refuse(len(value) > LARGEST)
        return len(value)
    if not isinstance(value, list | tuple | dict | set | frozenset):
        return 1
    size, entries, waiting = 0, 0, [value]
    while waiting:
        entries += 1
        own: object = waiting.pop()
        if isinstance(own, dict):
            waiting += [*own.keys(), *own.values()]
        elif isinstance(own, list | tuple | set | frozenset):
            waiting += own
        size += len(own) if isinstance(own, str | bytes) else 1
        _refuse(size > LARGEST or entries + len(waiting) > MOST_ENTRIES)
    return size


def _factor(value: object) -> int:
    return abs(value) if isinstance(value, int) else _weight(value)


def _product(left: object, right: object) -> int:
    return _factor(left) * _factor(right)


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _refuse_width(text: object) -> None:
    _refuse(isinstance(text, str) and _WIDTH.search(text) is not None)


def _refuse(too_large: bool) -> None:
    if too_large:
        raise SecurityError(f"it writes more than {LARGEST:,} characters")
