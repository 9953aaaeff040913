"""Jinja templates: the tokenizer's own chat template, or a user's file."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from fedit.data.examples import Example, Message
from fedit.data.rendering import Rendered, digest
from fedit.data.sandbox import Sandbox, rendered
from fedit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Takes an answer's place where it has to be located; a template can neither know nor change it.
_STAND_IN = "\ufdee\ufdef"
# What a template may raise: its own refusals, and operations on values that are not as it expects.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
# Some templates print today's date; tokens must not depend on the day. Llama 3.1's own default.
TODAY = datetime(2024, 7, 26)


@dataclass(frozen=True, slots=True)
class JinjaTemplate:
    """Conversations rendered by Jinja in a sandbox.

    Answers are located by rendering the conversation up to and including each of them, never by
    searching for markers.

    Attributes:
        source: the Jinja text.
        names: the tokenizer's special tokens by name (bos_token, eos_token, …).
        origin: what the source is called in messages.
        silent: the template ignores ``add_generation_prompt``, so its answers' headings belong to the prompt.
    """

    name: str
    source: str
    names: dict[str, str]
    origin: str
    _compiled: jinja2.Template = field(repr=False, compare=False)
    _takes_context: bool
    silent: bool

    @classmethod
    def from_chat_template(cls, tokenizer: "PreTrainedTokenizerBase") -> "JinjaTemplate":
        """Return the chat template that the tokenizer ships.

        Raises:
            ConfigError: it has no default template or does not parse.
        """
        try:
            source = tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(f"template 'chat': {error}") from error
        return cls._build("chat", source, "the tokenizer's chat template", tokenizer)

    @classmethod
    def from_file(cls, path: Path, source: str, tokenizer: "PreTrainedTokenizerBase") -> "JinjaTemplate":
        r"""Return the template that a user wrote.

        As in chat templates, the line break after a ``{% … %}`` is dropped; ``{{ '\n' }}`` writes one.

        Raises:
            ConfigError: it does not parse, or leaves out the instruction or the answer.
        """
        template = cls._build(path.name, source, os.fspath(path), tokenizer)
        asked, answered = "instruction \ufdec", f"answer {_STAND_IN}"
        try:
            text = template._text([Message("user", asked), Message("assistant", answered)])
        except DataError as error:
            raise ConfigError(f"{path}: a plain question and answer cannot be rendered: {error}") from error
        for what, probe in (("instruction", asked), ("answer", answered)):
            if probe not in text:
                raise ConfigError(
                    f"{path}: the rendered text leaves out the {what}; write {{{{ instruction }}}} and "
                    "{{ messages[-1].content }}, or loop over messages."
                )
        return template

    @classmethod
    def _build(cls, name: str, source: str, origin: str, tokenizer: "PreTrainedTokenizerBase") -> "JinjaTemplate":
        try:
            compiled, tree = _environment().compiled(source)
            used = jinja2.meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{origin}:{error.lineno}: {error.message}") from error
        named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        names = {"bos_token": "", **named}  # templates print it even for tokenizers that have none
        return cls(name, source, names, origin, compiled, "context" in used, "add_generation_prompt" not in used)

    @property
    def fingerprint(self) -> str:
        """Hash of the source and the special tokens it may print."""
        return digest("jinja", self.source, *(f"{k}={v}" for k, v in sorted(self.names.items())))

    def render(self, example: Example) -> Rendered:
        """Return the conversation and its answers' ranges.

        Raises:
            DataError: the template refuses this conversation.
            ConfigError: an answer cannot be located in what it writes.
        """
        messages, context = example.messages, example.context
        full = self._text(messages, context, example.where)
        spans = tuple(
            self._span(messages, context, index, full, example.where)
            for index, message in enumerate(messages)
            if message.role == "assistant"
        )
        # What follows the last answer teaches nothing and is left out.
        text, end = full[: spans[-1][1]], self.names["eos_token"]
        if not text.endswith(end):
            text += end
            spans = (*spans[:-1], (spans[-1][0], len(text)))
        return Rendered(text, spans)

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        """Return the text up to where the next answer starts."""
        if not messages or messages[-1].role == "assistant":
            raise DataError("a conversation to answer must end with a user turn.")
        if self.silent:
            text = self._text([*messages, Message("assistant", _STAND_IN)], context)
            head, found, _ = text.partition(_STAND_IN)
            if not found:
                raise self._unlocatable("")
            return head.rstrip(" ")
        return self._text(messages, context, generate=True).rstrip(" ")

    def _span(
        self, messages: Sequence[Message], context: str, index: int, full: str, where: str
    ) -> tuple[int, int]:
        """Return the range of answer ``index`` and its end-of-turn text in ``full``.

        The template has to write the same text before an answer with and without the answer,
        and the same text up to its end with and without later turns.
        """
        if self.silent or index == 0:
            return self._span_by_exchange(messages, context, index, full, where)
        head = self._text(messages[:index], context, where, generate=True)
        last = index == len(messages) - 1
        turn = full if last else self._text(messages[: index + 1], context, where)
        if not (turn.startswith(head) and full.startswith(turn.rstrip())):
            return self._span_by_exchange(messages, context, index, full, where, head)
        body, answer = turn[len(head) :], messages[index].content
        end = len(body.rstrip())
        # White space at the end is the template's, unless the answer itself ends with it.
        if (found := body.find(answer)) >= 0:
            end = max(end, found + len(answer))
        return len(head.rstrip(" ")), len(head) + end

    def _span_by_exchange(
        self,
        messages: Sequence[Message],
        context: str,
        index: int,
        full: str,
        where: str,
        head: str | None = None,
    ) -> tuple[int, int]:
        """Locate an answer by rendering another in its place: what differs is the answer.

        For templates that write a turn differently once later turns follow (leaving out earlier
        reasoning, say) or that have no generation prompt.
        """
        exchanged = Message("assistant", _STAND_IN)
        other = self._text([*messages[:index], exchanged, *messages[index + 1 :]], context, where)
        alone = self._text([*messages[:index], exchanged], context, where)
        before, found, after = other.partition(_STAND_IN)
        closing = alone.rpartition(_STAND_IN)[2]
        if not found or not (full.startswith(before) and full.endswith(after)):
            raise self._unlocatable(where)
        if len(before) + len(after) > len(full):
            raise self._unlocatable(where)
        end = len(full) - len(after) + len(_common_start(closing, after).rstrip())
        start = len(before)
        if head is not None and len(head) <= start and full.startswith(head):
            start = len(head)
        return len(full[:start].rstrip(" ")), end

    def _text(
        self, messages: Sequence[Message], context: str = "", where: str = "", *, generate: bool = False
    ) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if context and not self._takes_context:
            asked = next((turn for turn in turns if turn["role"] == "user"), None)
            if asked is not None:
                asked["content"] += f"\n\n{context}"
        instruction = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
        try:
            return rendered(
                self._compiled,
                {
                    **self.names,
                    "messages": turns,
                    "context": context,
                    "instruction": instruction,
                    "add_generation_prompt": generate,
                    "tools": None,
                    "documents": None,
                },
            )
        except _FAILURES as error:
            place = f"{where}: " if where else ""
            raise DataError(
                f"{place}{self.origin} refuses this conversation: {error}. "
                "Change or remove the row, or choose another template."
            ) from error

    def _unlocatable(self, where: str) -> ConfigError:
        place = f"{where}: " if where else ""
        return ConfigError(
            f"{place}{self.origin} changes the text around an answer with the answer itself, so the tokens "
            "to learn cannot be told; use template 'alpaca' or a Jinja file of your own."
        )


class _Generation(jinja2.ext.Extension):
    """Accepts ``{% generation %}``, which some chat templates put around answers."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> Sandbox:
    """Return an environment with what transformers gives to chat templates (5.23)."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _today
    return environment


def _today(pattern: str) -> str:
    # Widths in patterns ("%999999999d") are not needed, and some systems write them out.
    if len(pattern) > 100 or any(char.isdigit() for char in pattern):
        raise jinja2.TemplateError("strftime_now takes a pattern of at most 100 characters without digits")
    return TODAY.strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _common_start(one: str, other: str) -> str:
    pairs = zip(one, other, strict=False)
    return one[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
