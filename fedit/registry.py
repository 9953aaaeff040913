"""Tables of names: a name becomes a class, options become an object, typing errors become suggestions."""

import dataclasses
import importlib
import importlib.util
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from fedit.errors import ConfigError, UnknownName, did_you_mean


def find(kind: str, name: str, table: Mapping[str, str], base: type) -> type:
    """Return the class behind ``name``: a key of ``table`` or "file.py:Class".

    Raises:
        UnknownName: the name is in no table.
        ConfigError: a user's file has no such class.
    """
    if ".py:" in name:
        return _from_file(kind, name, base)
    if name not in table:
        raise UnknownName(kind, name, table)
    module, attribute = table[name].split(":")
    return cast(type, getattr(importlib.import_module(module), attribute))


def build(kind: str, name: str, options: Mapping[str, object], table: Mapping[str, str], base: type) -> object:
    """Return an instance of the class behind ``name`` with ``options`` as its fields.

    Raises:
        UnknownName: the name is in no table.
        ConfigError: an option is unknown or has the wrong type.
    """
    cls = find(kind, name, table, base)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for option, value in options.items():
        if option not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ConfigError(
                f"{kind} '{name}' has no option '{option}'{did_you_mean(option, fields)} Its options: {known}."
            )
        _check_type(kind, name, option, value, hints[option])
    missing = [f.name for f in fields.values() if f.name not in options and _must_be_given(f)]
    if missing:
        raise ConfigError(f"{kind} '{name}' needs {kind}_options for: {', '.join(missing)}.")
    return cls(**options)


def _must_be_given(field: "dataclasses.Field[object]") -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _check_type(kind: str, name: str, option: str, value: object, expected: object) -> None:
    accepted = list(_alternatives(expected))
    if not any(_fits(value, one) for one in accepted):
        wanted = " or ".join(getattr(one, "__name__", repr(one)) for one in accepted)
        raise ConfigError(f"option '{option}' of {kind} '{name}' is {value!r}; expected {wanted}.")


def _alternatives(expected: object) -> Iterator[object]:
    """Yield the types and literal values that a field's annotation admits."""
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        for one in typing.get_args(expected):
            yield from _alternatives(one)
    elif typing.get_origin(expected) is typing.Literal:
        yield from typing.get_args(expected)
    else:
        yield expected


def _fits(value: object, accepted: object) -> bool:
    if not isinstance(accepted, type):
        return type(value) is type(accepted) and value == accepted
    if isinstance(value, bool):
        return accepted is bool
    return isinstance(value, (int, float) if accepted is float else accepted)


def _from_file(kind: str, name: str, base: type) -> type:
    path, attribute = name.rsplit(":", 1)
    if not Path(path).is_file():
        raise ConfigError(f"{kind} '{name}': there is no file {path}.")
    spec = importlib.util.spec_from_file_location(f"fedit_user_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{kind} '{name}': {path} is not a Python module.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{kind} '{name}': {path} cannot be loaded: {type(error).__name__}: {error}") from error
    cls = getattr(module, attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, base) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{kind} '{name}': {path} has no dataclass '{attribute}' derived from {base.__name__}.")
    return cls
