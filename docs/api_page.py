"""The reference of the Python names that fedit exports, made from their sources."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator

import fedit

SECTIONS = {
    "Running": ("load_config", "run", "resume", "Result", "RunConfig"),
    "Rows": ("Example", "Message", "Corpus"),
    "Algorithms": (
        "Strategy", "Updates", "run_rounds", "ServerState", "ClientInfo", "Broadcast", "ClientTask",
        "LocalTraining", "ClientUpdate", "ClientFailure",
    ),
    "Errors": ("FeditError",),
}  # fmt: skip

_FIELD = re.compile(r"^(\w+(?:, \w+)*):\s+(\S.*)$")
_UNSHOWN = frozenset({"RunConfig"})
"""Classes whose fields have a page of their own."""


def api_page() -> str:
    """Return the reference of all that ``import fedit`` gives.

    Raises:
        ValueError: a name has no section.
    """
    listed = [name for names in SECTIONS.values() for name in names]
    if sorted(listed) != sorted(fedit.__all__):
        raise ValueError(f"sections of the API page lack {set(fedit.__all__) ^ set(listed)}")
    lines = [
        "# Python",
        "",
        "What `import fedit` gives; everything else may change in any release. `import fedit` loads neither",
        "PyTorch nor transformers; a name is loaded when it is used. This page is generated from the code.",
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", *_entry(name)]
    return "\n".join(lines) + "\n"


def _entry(name: str) -> list[str]:
    thing = getattr(fedit, name)
    home = importlib.import_module(thing.__module__)
    tree = ast.parse(inspect.getsource(home))
    (node,) = (part for part in tree.body if getattr(part, "name", None) == name)
    lines = [f"### {name}", ""]
    if isinstance(node, ast.FunctionDef):
        return [*lines, "```py", _signature(node), "```", "", *_prose(ast.get_docstring(node))]
    assert isinstance(node, ast.ClassDef)
    fields = [] if name in _UNSHOWN else [_code(part) for part in node.body if _is_field(part)]
    bases = f"({', '.join(map(_code, node.bases))})" if node.bases else ""
    lines += ["```py", f"class {name}{bases}:", *(f"    {line}" for line in fields), "```", ""]
    lines += _prose(ast.get_docstring(node))
    if name in _UNSHOWN:
        return [*lines, "", "Its fields are [the settings](settings.md)."]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
            lines += ["", f"#### {name}.{method.name}", "", "```py", _signature(method), "```", ""]
            lines += _prose(ast.get_docstring(method))
    return lines


def _code(node: ast.AST) -> str:
    """Return the code of a part, with the quotes that the formatter would choose."""
    return ast.unparse(node).replace("'", '"')


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_"


def _signature(node: ast.FunctionDef) -> str:
    """Return a function's head, its decorators above, its parameters below each other where they are many."""
    above = "".join(f"@{_code(decorator)}\n" for decorator in node.decorator_list)
    result = f" -> {_code(node.returns)}" if node.returns else ""
    parameters = list(_parameters(node.args))
    line = f"def {node.name}({', '.join(parameters)}){result}"
    if len(line) > 100:
        line = f"def {node.name}(\n" + "".join(f"    {piece},\n" for piece in parameters) + f"){result}"
    return above + line


def _parameters(own: ast.arguments) -> Iterator[str]:
    positional = [*own.posonlyargs, *own.args]
    defaults = [None] * (len(positional) - len(own.defaults)) + list(own.defaults)
    for argument, default in zip(positional, defaults, strict=True):
        yield _code(argument) + (f" = {_code(default)}" if default else "")
    if own.vararg:
        yield f"*{_code(own.vararg)}"
    elif own.kwonlyargs:
        yield "*"
    for argument, default in zip(own.kwonlyargs, own.kw_defaults, strict=True):
        yield _code(argument) + (f" = {_code(default)}" if default else "")
    if own.kwarg:
        yield f"**{_code(own.kwarg)}"


def _prose(docstring: str | None) -> list[str]:
    """Return a docstring as Markdown: its lists of fields as lists, its examples as code."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")):
        if lines:
            lines.append("")
        if paragraph.lstrip().startswith(">>>"):
            lines += ["```pycon", *textwrap.dedent(paragraph).splitlines(), "```"]
            continue
        head, _, rest = paragraph.partition("\n")
        if head in ("Raises:", "Args:", "Returns:", "Yields:"):
            lines += [head, "", *_fields(textwrap.dedent(rest))]
        elif _FIELD.match(head):
            lines += _fields(paragraph)
        else:
            lines += [_inline(line) for line in paragraph.splitlines()]
    return lines


def _fields(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        found = _FIELD.match(line)
        if found:
            lines.append(f"- `{found[1]}`: {_inline(found[2])}")
        elif lines:
            lines.append(f"  {_inline(line.strip())}")
        else:
            lines.append(_inline(line))
    return lines


def _inline(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
