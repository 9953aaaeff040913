"""The arguments of one constraint, read with errors that name the kind and the field."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedit.errors import DataError

_RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "at least": lambda found, wanted: found >= wanted,
    "less than": lambda found, wanted: found < wanted,
}


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``kwargs`` holds for the kind ``kind``; ``prompt`` is the instruction it belongs to."""

    kind: str
    values: Mapping[str, object]
    prompt: str

    def refuse_others(self, known: tuple[str, ...]) -> None:
        """Raise DataError if there are arguments that the kind does not have."""
        for name in self.values:
            if name not in known:
                expected = f"it has {', '.join(known)}" if known else "it has none"
                raise self.error(name, f"is no argument of this kind; {expected}")

    def count(self, name: str) -> int:
        """Return a whole number from 1; floats that are whole, as tables make them, count."""
        value = self.values.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, f"is {value!r} and must be a whole number from 1")
        return value

    def text(self, name: str) -> str:
        """Return a text that is not blank."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, f"is {value!r} and must be text")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of at least one text, none blank."""
        values = self.values.get(name)
        if not isinstance(values, list) or not values:
            raise self.error(name, f"is {values!r} and must be a list of texts")
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise self.error(name, f"is {values!r} and must be a list of texts, none blank")
        return values

    def comparison(self, relation: str, count: str) -> Callable[[int], bool]:
        """Return the test of a count against the argument ``count`` in the sense of the argument ``relation``."""
        name, wanted = self.values.get(relation), self.count(count)
        if not isinstance(name, str) or name not in _RELATIONS:
            raise self.error(relation, f"is {name!r} and must be 'at least' or 'less than'")
        compare = _RELATIONS[name]
        return lambda found: compare(found, wanted)

    def error(self, name: str, reason: str) -> DataError:
        """Return the error for the argument ``name``."""
        return DataError(f"the constraint {self.kind}: '{name}' {reason}.")
