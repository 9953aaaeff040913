"""Flags from the settings' own model: ``--num_rounds 3`` and ``num_rounds=3`` mean the same."""

import inspect
from collections.abc import Callable
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from fedit.cli.completion import names_of
from fedit.config import RunConfig


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` one option per setting; those that are used reach it as the dict ``flags``.

    ``command`` declares a keyword ``flags``; it is hidden and filled here.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
    names = list(RunConfig.model_fields)

    def wrapper(**arguments: object) -> None:
        flags = {name: arguments.pop(name) for name in names}
        command(**arguments, flags={name: _parsed(value) for name, value in flags.items() if value is not None})

    options = [_parameter(name, field) for name, field in RunConfig.model_fields.items()]
    wrapper.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]  # what typer reads
    wrapper.__doc__ = command.__doc__
    wrapper.__name__ = command.__name__
    return wrapper


def section(field: FieldInfo) -> str:
    """Return the section that a setting is listed under."""
    extra = field.json_schema_extra
    return str(extra["section"]) if isinstance(extra, dict) else "run"


def default_text(field: FieldInfo) -> str:
    """Return a setting's default as a user would write it."""
    default = field.get_default(call_default_factory=True)
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if isinstance(default, int | float | str) else ""


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option = typer.Option(
        f"--{name}",
        help=(field.description or "").replace("\n", " "),
        rich_help_panel=f"Settings: {section(field)}",
        show_default=default_text(field) or False,
        metavar=_metavar(field),
        autocompletion=names_of(name, field),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _metavar(field: FieldInfo) -> str:
    text = str(field.annotation)
    if "Literal" in text:
        return "NAME"
    if "dict" in text:
        return "YAML"
    if "bool" in text:
        return "true|false"
    if "int" in text or "float" in text:
        return "NUMBER"
    return "TEXT"


def _parsed(value: object) -> object:
    from fedit.settings import parse_value

    return parse_value(value) if isinstance(value, str) else value
