"""An algorithm with its options as one name, as the arms of a study carry it: ``fed_sb(bases=first_update)``."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedit.errors import ConfigError

Option = int | float | str | bool

_VALUE = r'"(?:[^"\\]|\\.)*"|[^\s"()=]+'
_WHOLE = re.compile(rf"(?P<name>[^()]+)\((?P<options>\w+=(?:{_VALUE})(?: \w+=(?:{_VALUE}))*)\)")
_OPTION = re.compile(rf"(\w+)=({_VALUE})")


@dataclass(frozen=True, slots=True)
class Variant:
    """A strategy's name and those of its options that are not left at their defaults.

    >>> str(Variant("fedadam", {"tau": 0.01, "bias_correction": True}))
    'fedadam(tau=0.01 bias_correction=true)'
    >>> Variant.parse("fed_sb(bases=first_update)").options
    {'bases': 'first_update'}
    """

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({' '.join(f'{name}={_text(value)}' for name, value in self.options.items())})"

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Return what `__str__` wrote; a text without options in brackets is a name.

        Raises:
            ConfigError: an option stands twice.
        """
        found = _WHOLE.fullmatch(text)
        if found is None:
            return cls(text)
        pairs = _OPTION.findall(found["options"])
        options = {name: _value(raw) for name, raw in pairs}
        if len(options) < len(pairs):
            raise ConfigError(f"'{text}' gives an option twice.")
        return cls(found["name"], options)


def _text(value: Option) -> str:
    """Return a value so that `_value` reads the same one, of the same type."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(_VALUE, value) and not value.startswith('"') and _value(value) == value
    return value if plain else json.dumps(value)


def _value(raw: str) -> Option:
    try:
        value: object = json.loads(raw)
    except ValueError:
        return raw
    return value if isinstance(value, int | float | str | bool) else raw
