"""What every prompt template gives: text, and where in it the answers are."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedit.data.examples import Example, Message


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text; positions count characters.

    spans:    (start, end) of each answer, with the end-of-turn or end-of-sequence text the model must write.
    literals: (start, end) of text from the row that looks like a control token and must not become one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    literals: tuple[tuple[int, int], ...] = ()


class Template(Protocol):
    """How conversations become text. The last answer always ends with the end-of-sequence text."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what it writes."""

    def render(self, example: Example) -> Rendered:
        """Return the whole conversation and its answers' ranges.

        Raises:
            DataError: the template refuses the conversation.
            ConfigError: the template fails, or its answers cannot be located.
        """

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        """Return the text up to where the next answer starts; never with a trailing space.

        A space belongs to the word after it in nearly every vocabulary, so the model writes it.
        """


def digest(*parts: str) -> str:
    """Return the SHA-256 of a list of texts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
