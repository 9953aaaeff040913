"""A run's prompt template as a chat template, so that another program asks in the same words."""

import re
from collections.abc import Sequence
from string import Formatter
from typing import TYPE_CHECKING, cast

from fedit.data.chat import TODAY, JinjaTemplate
from fedit.data.examples import Message
from fedit.data.rendering import Template
from fedit.data.rounds import RoundTemplate
from fedit.data.tokens import encode_prompt
from fedit.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_IN = "\ufdee\ufdef"
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_LONGEST = 1 << 20

PROBES: Sequence[Sequence[Message]] = (
    (Message("user", "Name a colour. "),),
    (Message("user", "One?\nTwo?"), Message("assistant", "Three."), Message("user", " Four? ")),
    (Message("system", "Be brief."), Message("user", "Why?")),
)
"""Conversations in which what was exported is compared with what was trained."""


def chat_template(template: Template, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return Jinja text from which any program makes, for conversations, the prompts of ``template``.

    Checked on `PROBES`, token by token, before it is returned; a conversation that the template itself refuses is
    not part of the comparison.

    Raises:
        ModelError: no such text could be written.
    """
    if isinstance(template, RoundTemplate):
        candidates = [_from_rounds(template)]
    elif isinstance(template, JinjaTemplate):
        plain = _dated(_with_names(template.source))
        candidates = [plain, _cut_off(plain, silent=template.silent)]
    else:
        raise ModelError(f"template '{template.name}' is of a kind that no chat template is known for.")
    bos = _bos_text(tokenizer)
    if bos:  # who applies a chat template adds no token of its own
        candidates += [f"{{{{- bos_token -}}}}{text}" for text in candidates]
    for text in candidates:
        if (wrong := _first_difference(text, template, tokenizer)) is None:
            return text
    raise ModelError(
        f"template '{template.name}' cannot be written as a chat template: {wrong}. "
        "Other programs would ask in other words; export with --template chat, or train with another template."
    )


def _first_difference(text: str, template: Template, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return where the chat template ``text`` gives other tokens than ``template``; None: nowhere."""
    for conversation in PROBES:
        try:
            own = encode_prompt(conversation, "", tokenizer, template, max_length=_LONGEST)
        except DataError:
            continue
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
        try:
            theirs = cast(
                list[int],
                tokenizer.apply_chat_template(
                    turns, chat_template=text, add_generation_prompt=True, tokenize=True, return_dict=False
                ),
            )
        except Exception as error:  # whatever Jinja and foreign templates raise
            return f"it fails on {conversation[-1].content!r}: {error}"
        if theirs != own:
            return f"{tokenizer.decode(theirs)!r} instead of {tokenizer.decode(own)!r}"
    return None


def _from_rounds(template: RoundTemplate) -> str:
    """Return the Jinja text of a format of rounds; contexts, which no chat message has, are left out."""
    before, after = round_texts(template)
    asked = f"{_quoted(before)} + (ns.asked | join('\\n\\n')) + {_quoted(after)}"
    bare = after.rstrip(" ")
    last = f"{_quoted(before)} + (ns.asked | join('\\n\\n')) + {_quoted(bare)}"
    if not bare:
        last = f"({last}).rstrip(' ')"
    preface = _quoted(template.preface) if template.preface else "''"
    return (
        "{%- set ns = namespace(system=[], asked=[]) -%}"
        "{%- for message in messages if message['role'] == 'system' -%}"
        "{%- set ns.system = ns.system + [message['content']] -%}{%- endfor -%}"
        f"{{%- set preface = (ns.system | join('\\n\\n')) or {preface} -%}}"
        f"{{%- if preface -%}}{{{{- preface + {_quoted(template.preface_end)} -}}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{%- set ns.asked = ns.asked + [message['content']] -%}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {asked} + {_quoted(template.lead)} + message['content'] + {_quoted(template.end)} -}}}}"
        "{%- set ns.asked = [] -%}{%- endif -%}{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {last} -}}}}{{%- endif -%}}"
    )


def round_texts(template: RoundTemplate) -> tuple[str, str]:
    """Return what stands before and after the instruction in a round without a context.

    Raises:
        ModelError: the instruction stands there more than once, or is changed on its way.
    """
    pieces = list(Formatter().parse(template.without_context))
    fields = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    if fields != [("instruction", "", None)]:
        raise ModelError(
            f"template '{template.name}' does not show its instruction once and as it is, "
            "which a chat template would have to."
        )
    at = next(index for index, piece in enumerate(pieces) if piece[1] is not None)
    return "".join(p[0] for p in pieces[: at + 1]), "".join(p[0] for p in pieces[at + 1 :])


def _quoted(text: str) -> str:
    """Return a text as Jinja writes it down."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _dated(source: str) -> str:
    """Return a template that prints the one day of all training prompts instead of today."""
    return _DATE.sub(lambda found: _quoted(TODAY.strftime(found[2])), source)


def _with_names(source: str) -> str:
    """Return a template that also finds the names which only fedit gives to templates."""
    names = ""
    if "instruction" in source:
        names += (
            "{%- set instruction = (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] -%}"
        )
    if "context" in source:
        names += "{%- set context = '' -%}"
    return names + source


def _cut_off(source: str, *, silent: bool) -> str:
    """Return a template whose prompt ends where answers begin: without spaces, and without what follows them.

    silent: the template has no generation prompt, so that an answer's place is found by a stand-in.
    """
    turns = ""
    if silent:
        turns = (
            "{%- if add_generation_prompt -%}{%- set messages = messages + "
            f"[{{'role': 'assistant', 'content': '{STAND_IN}'}}] -%}}{{%- endif -%}}"
        )
    cut = f".split('{STAND_IN}')[0]" if silent else ""
    return (
        f"{turns}{{%- set written -%}}{source}{{%- endset -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{- (written | string){cut}.rstrip(' ') -}}}}"
        "{%- else -%}{{- written -}}{%- endif -%}"
    )


def _bos_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a token that the tokenizer puts before everything; "" without one."""
    bos = tokenizer.bos_token
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return bos if isinstance(bos, str) and ids[:1] == [tokenizer.bos_token_id] else ""
