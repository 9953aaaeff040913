"""Prompt formats of rounds: Alpaca, Vicuna and files in Shepherd's layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedit.data.examples import Example, Message
from fedit.data.rendering import Rendered, digest
from fedit.errors import ConfigError, DataError
from fedit.reading import Unreadable, parse_json


@dataclass(frozen=True, slots=True)
class RoundTemplate:
    """A format of rounds: each is a prompt, the answer and the end of sequence; rounds follow each other.

    Attributes:
        with_context: a round's prompt with {instruction} and {input}.
        without_context: a round's prompt with {instruction}.
        lead: text between prompt and answer that the model writes.
        end: the tokenizer's end-of-sequence text.
        preface: text before the first round; a system turn takes its place.
        preface_end: what separates it from the first round.
    """

    name: str
    with_context: str
    without_context: str
    end: str
    lead: str = ""
    preface: str = ""
    preface_end: str = "\n\n"

    @property
    def fingerprint(self) -> str:
        """Hash of the format's texts."""
        return digest("rounds", *(str(getattr(self, name)) for name in self.__slots__ if name != "name"))

    def render(self, example: Example) -> Rendered:
        """Return the rounds, one after the other, and their answers' ranges."""
        return self._write(example.messages, example.context)

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        """Return the rounds so far and the prompt of the next."""
        if not messages or messages[-1].role != "user":
            raise DataError("a conversation to answer must end with a user turn.")
        return self._write([*messages, Message("assistant", "")], context, answer_last=False).text

    def _write(self, messages: Sequence[Message], context: str, *, answer_last: bool = True) -> Rendered:
        system = [message.content for message in messages if message.role == "system"]
        preface = "\n\n".join(system) or self.preface
        text = preface + self.preface_end if preface else ""
        spans: list[tuple[int, int]] = []
        asked: list[str] = []
        for number, message in enumerate(messages, 1):
            if message.role == "user":
                asked.append(message.content)
            if message.role != "assistant":
                continue
            body = self.with_context if context else self.without_context
            whole = body.format(instruction="\n\n".join(asked), input=context)
            asked, context = [], ""
            head = whole.rstrip(" ")
            text += head
            if number < len(messages) or answer_last:
                answer = whole[len(head) :] + self.lead + message.content + self.end
                spans.append((len(text), len(text) + len(answer)))
                text += answer
        return Rendered(text, tuple(spans))


_ALPACA_HEAD = "Below is an instruction that describes a task"
_ALPACA_ASK = "Write a response that appropriately completes the request.\n\n"
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _alpaca(end: str) -> RoundTemplate:
    # The two prompts of Stanford Alpaca, as in Shepherd's templates/alpaca.json.
    return RoundTemplate(
        "alpaca",
        with_context=f"{_ALPACA_HEAD}, paired with an input that provides further context. {_ALPACA_ASK}"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        without_context=f"{_ALPACA_HEAD}. {_ALPACA_ASK}### Instruction:\n{{instruction}}\n\n### Response:\n",
        end=end,
    )


def _alpaca_short(end: str) -> RoundTemplate:
    return RoundTemplate(
        "alpaca_short",
        with_context="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        without_context="### Instruction:\n{instruction}\n\n### Response:\n",
        end=end,
    )


def _vicuna(end: str) -> RoundTemplate:
    # Vicuna v1.1: one line, rounds separated by the end of sequence alone.
    return RoundTemplate(
        "vicuna",
        with_context="USER: {instruction}\n\n{input} ASSISTANT:",
        without_context="USER: {instruction} ASSISTANT:",
        end=end,
        lead=" ",
        preface=_VICUNA_SYSTEM,
        preface_end=" ",
    )


ROUND_TEMPLATES: Mapping[str, Callable[[str], RoundTemplate]] = {
    "alpaca": _alpaca,
    "alpaca_short": _alpaca_short,
    "vicuna": _vicuna,
}


def from_json(text: str, end: str, name: str, origin: str) -> RoundTemplate:
    """Return the format that a JSON file in Shepherd's layout holds.

    Reads ``prompt_input`` and ``prompt_no_input``; ``response_split`` is not needed to locate answers.

    Raises:
        ConfigError: the file is broken or lacks a text.
    """
    try:
        content: object = parse_json(text)
    except Unreadable as error:
        raise ConfigError(f"{origin}:{error.line or 1}: broken JSON: {error.reason}.") from error
    fields = {"prompt_input": ("instruction", "input"), "prompt_no_input": ("instruction",)}
    bodies = [content.get(key) if isinstance(content, dict) else None for key in fields]
    for key, body in zip(fields, bodies, strict=True):
        _check_body(key, body, fields[key], origin)
    return RoundTemplate(name, str(bodies[0]), str(bodies[1]), end)


def _check_body(key: str, body: object, fields: tuple[str, ...], origin: str) -> None:
    if not isinstance(body, str):
        raise ConfigError(f"{origin}: the text '{key}' is missing.")
    for field in fields:
        if "{" + field + "}" not in body:
            raise ConfigError(f"{origin}: '{key}' has no {{{field}}}.")
    try:
        body.format(**dict.fromkeys(fields, ""))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        allowed = " and ".join("{" + field + "}" for field in fields)
        raise ConfigError(
            f"{origin}: '{key}' may hold {allowed} and no other braces; write {{{{ and }}}} for braces: {error}."
        ) from error
