"""Arguments of a Python script as a shell script gives them; nothing is run for it."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedit.errors import ConfigError, DataError
from fedit.files import reason
from fedit.reading import read_settings_text, shown

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_TRUE, _FALSE = ("true", "1", "yes", "y", "t", "on"), ("false", "0", "no", "n", "f", "off")


@dataclass(frozen=True, slots=True)
class Command:
    """A call of a script: its file's name, and what every flag was given; True for a flag alone."""

    script: str
    flags: Mapping[str, str | bool]
    where: str


@dataclass(frozen=True)
class Arguments:
    """All arguments of a script, given or by default, in their types.

    given:   those that the command gives.
    unknown: flags that the script does not have in the version that is known here.
    """

    script: str
    values: Mapping[str, object]
    given: frozenset[str] = frozenset()
    unknown: Mapping[str, object] = field(default_factory=dict)

    def whole(self, name: str) -> int:
        """Return a whole number."""
        value = self.values[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """Return a number."""
        value = self.values[name]
        assert isinstance(value, int | float)
        return float(value)

    def text(self, name: str) -> str:
        """Return a text."""
        return str(self.values[name] or "")

    def on(self, name: str) -> bool:
        """Return a switch."""
        return self.values[name] is True


def read_command(path: Path, scripts: tuple[str, ...]) -> Command:
    """Return the call of one of ``scripts`` in a shell script.

    Understood are assignments of plain values, variables, quotes, comments and lines that go on; nothing else is
    evaluated.

    Raises:
        DataError: the file cannot be read, or calls none of the scripts, or several times.
        ConfigError: a flag's value is a variable that the script does not set.
    """
    try:
        text = read_settings_text(path)
        lines = [shlex.split(line, comments=True) for line in _logical_lines(text)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:  # no text, too long, or quotes that do not end
        raise DataError(f"{path} cannot be read as a shell script: {error}") from error
    variables: dict[str, str] = {}
    found: list[Command] = []
    for words in lines:
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            variables[match[1]] = _expanded(match[2], variables, path, strict=False)
            words = words[1:]
        place = next((n for n, word in enumerate(words) if Path(word).name in scripts), None)
        if place is not None:
            rest = [_expanded(word, variables, path) for word in words[place + 1 :]]
            found.append(Command(Path(words[place]).name, _flags(rest, path), str(path)))
    if len(found) != 1:
        how = "no call" if not found else f"{len(found)} calls"
        raise DataError(f"{path} has {how} of {' or '.join(scripts)}; expected a shell script with one.")
    return found[0]


def complete(command: Command, defaults: Mapping[str, object]) -> Arguments:
    """Return a call's arguments with the script's defaults, read as the defaults' types.

    Raises:
        ConfigError: a value is not of the type.
    """
    values, unknown = dict(defaults), {}
    for name, raw in command.flags.items():
        if name in defaults:
            values[name] = _typed(name, raw, defaults[name], command.where)
        elif name.startswith("no") and defaults.get(name[2:]) in (True, False) and raw is True:
            values[name[2:]] = False  # python-fire's --noflag
        else:
            unknown[name] = raw
    return Arguments(command.script, values, frozenset(command.flags) & set(defaults), unknown)


def _logical_lines(text: str) -> list[str]:
    whole = text.replace("\r\n", "\n").replace("\\\n", " ").rstrip("\\ \n")
    return [part for line in whole.split("\n") for part in re.split(r"&&|;(?=\s)", line)]


def _expanded(word: str, variables: Mapping[str, str], path: Path, *, strict: bool = True) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name in variables:
            return variables[name]
        if strict:
            raise ConfigError(f"{path}: ${name} is not set in the script; write its value there.")
        return match[0]

    return _VARIABLE.sub(value, word)


def _flags(words: list[str], path: Path) -> dict[str, str | bool]:
    flags: dict[str, str | bool] = {}
    name: str | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = value if equals else True
            name = None if equals else name
        elif name is not None:
            flags[name] = word
            name = None
        else:
            raise ConfigError(f"{path}: '{word[:80]}' belongs to no flag; expected --name value.")
    return flags


def _typed(name: str, raw: str | bool, default: object, where: str) -> object:
    if isinstance(raw, str) and raw.strip().lower() in ("none", "null"):
        return None
    try:
        if isinstance(default, bool):
            return raw if isinstance(raw, bool) else _switch(raw)
        if isinstance(raw, bool):
            raise ValueError
        if isinstance(default, list):
            items = raw.strip().removeprefix("[").removesuffix("]").split(",")
            return [item.strip().strip("'\"") for item in items if item.strip()]
        if isinstance(default, int):
            return int(raw)
        if isinstance(default, float):
            return float(raw)
    except ValueError:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", str: "a text"}
        wanted = kinds.get(type(default), "a value")
        raise ConfigError(f"{where}: --{name} is {shown(raw)}; expected {wanted}.") from None
    return raw


def _switch(raw: str) -> bool:
    if raw.lower() in _TRUE:
        return True
    if raw.lower() in _FALSE:
        return False
    raise ValueError
