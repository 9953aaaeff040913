"""What a row becomes: a conversation that ends with the answer to learn."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation whose assistant turns are learnt.

    context:  text that belongs to the one user turn (Alpaca's input, Dolly's context); "" for chats.
    category: label used by partitions and by per-category results; never part of a prompt.
    owner:    value of the field that ``partition_by`` names.
    check:    how an answer is verified (see `fedit.evaluation.grading`); None: only by its loss.
    keys:     entities and phrasings the row uses; rows of different splits may share none.
    where:    "file:line" for messages to the user.
    rejected: an answer in place of the last one that somebody liked less; None: the row is no preference.
    """

    messages: tuple[Message, ...]
    context: str = ""
    category: str | None = None
    owner: str | None = None
    check: str | None = None
    keys: tuple[str, ...] = ()
    where: str = ""
    rejected: str | None = None
    _id: str = field(default="", init=False, repr=False, compare=False)  # of `row_id`, once it was asked for

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Corpus:
    """A data set as loaded. Splits that the source itself defines come filled; others are empty."""

    name: str
    examples: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    held_out: tuple[Example, ...] = ()

    def all(self) -> tuple[Example, ...]:
        """Every row: training, validation, held-out."""
        return self.examples + self.validation + self.held_out


def row_id(example: Example) -> str:
    """Return 16 hex digits that depend on the conversation, its context and its rejected answer alone."""
    if not example._id:
        parts: list[object] = [example.context, *((m.role, m.content) for m in example.messages)]
        identity = _digest(parts if example.rejected is None else [*parts, ("rejected", example.rejected)])
        object.__setattr__(example, "_id", identity)  # frozen; nothing that is compared changes
    return example._id


def prompt_id(example: Example) -> str:
    """Return 16 hex digits of the conversation without its last answer."""
    return _digest([example.context, *((m.role, m.content) for m in example.messages[:-1])])


def fingerprint(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of the rows' ids, categories and owners, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{row_id(example)}\x1f{example.category}\x1f{example.owner}\n".encode())
    return digest.hexdigest()


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
