"""What is fuzzed: a function that takes bytes, examples of good ones, and the errors that it may raise."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that broke something once, a folder a target."""


class NotAsPromised(AssertionError):
    """A parser took an input and gave something that it promises not to give."""


class NoInput(Exception):
    """Bytes that a target cannot make the value of that it hands to its parser."""


@dataclass(frozen=True)
class Target:
    """A parser of outside input.

    name:    of the target, and of its folder in the corpus.
    covers:  modules of fedit whose reading of outside input this goes through.
    run:     takes any bytes; an exception that is none of ``errors`` is a crash.
    examples: makes good inputs, from which broken ones are made.
    errors:  what the parser documents.
    kind:    "json", "jsonl" (values are changed as values), "text" or "bytes".
    words:   pieces of the format that broken inputs are made of.
    """

    name: str
    covers: tuple[str, ...]
    run: Callable[[bytes], object]
    examples: Callable[[], Sequence[bytes]]
    errors: tuple[type[Exception], ...]
    kind: str = "bytes"
    words: tuple[bytes, ...] = ()

    @cached_property
    def seeds(self) -> list[bytes]:
        """Good inputs, and those that broke something once."""
        return [*self.examples(), *(path.read_bytes() for path in self.kept())]

    def kept(self) -> list[Path]:
        """Return the files of inputs that broke something once."""
        return sorted((CORPUS / self.name).glob("*"))

    def try_(self, data: bytes) -> None:
        """Run one input; what the parser documents is no error.

        Raises:
            BaseException: a crash.
        """
        try:
            self.run(data)
        except (NoInput, *self.errors):
            return


def table_of(data: bytes) -> dict:
    """Return the JSON object in ``data``, for targets whose parser takes values.

    Raises:
        NoInput: there is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NoInput from error
    if not isinstance(value, dict):
        raise NoInput
    return value


def name_of(data: bytes) -> str:
    """Return the name of the file that keeps an input."""
    return hashlib.sha256(data).hexdigest()[:12]


def promise(kept: bool, what: str) -> None:
    """Raise `NotAsPromised` unless a promise is kept; not an ``assert``, which ``python -O`` leaves out."""
    if not kept:
        raise NotAsPromised(what)
