"""What classes say of themselves, read from their source: importing an algorithm would import PyTorch."""

import ast
import importlib.util
import re
from pathlib import Path

_ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}")
_REFERENCE = re.compile(r"\(([^()]*arXiv:[^()]*)\)")
_FIELD = re.compile(r"^(\w+): (.*)$")


def described(module: str, attribute: str) -> tuple[str, dict[str, object]]:
    """Return a class's first line and its title, paper and options, from the source of its module.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"there is no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    head = ast.get_docstring(tree) or ""
    own = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute)
    text = ast.get_docstring(own) or head
    said = _described_fields(text)
    options = {
        node.target.id: {
            "default": _literal(node.value),
            "help": said.get(node.target.id, ""),
        }
        for node in own.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_option(node)
    }
    reference = _REFERENCE.search(" ".join(head.split()))
    title = " ".join(head.split("\n\n")[0].split())
    facts: dict[str, object] = {
        "title": _REFERENCE.sub("", title).replace(" .", ".").strip(),
        "paper": reference[1] if reference else ", ".join(_ARXIV.findall(head)),
        "options": options,
    }
    return (text.splitlines() or [""])[0], facts


def _is_option(node: ast.AnnAssign) -> bool:
    """Return whether an annotated name is a field; what belongs to the class says so with ``ClassVar``."""
    return "ClassVar" not in ast.unparse(node.annotation)


def _literal(value: ast.expr | None) -> object:
    if value is None:
        return None
    try:
        literal: object = ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)  # an expression: shown as it is written
    return literal


def _described_fields(docstring: str) -> dict[str, str]:
    """Return what a class docstring says about its fields, as lines "name: text" that may go on indented."""
    found: dict[str, str] = {}
    current = ""
    for line in docstring.splitlines()[1:]:
        if match := _FIELD.match(line):
            current = match[1]
            found[current] = match[2].strip()
        elif line.startswith(" ") and current:
            found[current] += " " + line.strip()
        else:
            current = ""
    return found
