"""What may be asked for: the bodies of requests, checked, with messages that say what to change."""

from collections.abc import Collection, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fedit.data.examples import Message
from fedit.errors import ConfigError, UnknownName, did_you_mean
from fedit.resident import Sampling

MAX_NEW_TOKENS = 256
"""Longest answer where a request does not say."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Part(_Body):
    """A piece of a message; pictures and sound are not taken."""

    type: Literal["text"]
    text: str


class Turn(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def message(self) -> Message:
        """Return it as templates know it."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role, text)


class StreamOptions(_Body):
    """What a stream says beside the text."""

    include_usage: bool = False


class _Drawn(_Body):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] | None = None

    def limit(self) -> int:
        """Return the longest answer, in tokens."""
        return self.max_tokens or MAX_NEW_TOKENS

    def sampling(self) -> Sampling:
        """Return how answers are drawn: greedily where nothing is said."""
        return Sampling(
            self.limit(),
            0.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            self.seed,
        )


class Completion(_Drawn):
    """A request in OpenAI's format for chat completions; what it cannot have is refused, not ignored."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Literal[1] | None = None

    def limit(self) -> int:
        """Return the longest answer, in tokens; the newer name wins."""
        return self.max_completion_tokens or super().limit()

    def conversation(self) -> list[Message]:
        """Return the messages.

        Raises:
            ConfigError: they are not a system message, where there is one, and turns by user and assistant that
                begin and end with the user's.
        """
        return check_turns([turn.message() for turn in self.messages])


class Comparing(_Drawn):
    """One question to several arms. ``question_id`` is that of a question of the set, "" for any other."""

    arms: list[str]
    question: Annotated[str, Field(min_length=1)]
    question_id: str = ""
    system: str = ""
    blind: bool = True


class Voting(_Body):
    """A vote on a comparison: a label, "tie" or "both_bad"."""

    comparison: str
    choice: str


Body = TypeVar("Body", bound=_Body)


def read_body(kind: type[Body], text: bytes) -> Body:
    """Return the body in ``text``.

    Raises:
        ConfigError: it is not JSON, or not what is expected; the message names every field that is wrong.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("; ".join(dict.fromkeys(_say(kind, item) for item in error.errors()))) from None


def check_turns(messages: Sequence[Message]) -> list[Message]:
    """Return ``messages`` if a model can answer them; see `Completion.conversation`."""
    turns = [message.role for message in messages]
    spoken = turns[1:] if turns[:1] == ["system"] else turns
    if len(spoken) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise ConfigError(
            f"messages have the roles {', '.join(turns)}; expected one system message or none, then user and "
            "assistant in turn, the user last."
        )
    return list(messages)


def check_arm(name: str, known: Collection[str]) -> str:
    """Return ``name`` if it is one of ``known``.

    Raises:
        UnknownName: it is not; the message suggests the nearest.
    """
    if name not in known:
        raise UnknownName("model", name, known)
    return name


def _say(kind: type[BaseModel], error: ErrorDetails) -> str:
    if error["type"] == "json_invalid":
        return f"the body is no JSON: {error['ctx']['error']}"
    place = [str(part) for part in error["loc"]]
    name = ".".join(place)
    if error["type"] == "extra_forbidden":
        if len(place) > 1:
            return f"{name} is not known here"
        known = kind.model_fields
        return f"{name} is not supported here{did_you_mean(name, known)} Supported: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{name} is missing"
    shown = repr(error["input"])
    if len(shown) > 60:
        shown = f"of type {type(error['input']).__name__}"
    return f"{name or 'the body'} is {shown}: {error['msg'][:1].lower()}{error['msg'][1:]}"
