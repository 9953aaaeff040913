"""Ollama: the merged model as GGUF, and a Modelfile whose template is the run's in Go's language."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedit.data.encoding import encoder_of
from fedit.data.examples import Message
from fedit.data.rendering import Template
from fedit.data.templates import get_template
from fedit.errors import DataError, ModelError
from fedit.export.ggufs import MODEL, write_gguf_model
from fedit.export.merged import tokenizer_of
from fedit.export.prompts import PROBES
from fedit.export.subject import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _FIRST, _ANSWER, _NEXT = "\ufde0", "\ufde1", "\ufde2", "\ufde3"


@dataclass(frozen=True, slots=True)
class Turns:
    """A template that writes every message between two texts of its role.

    system, user, assistant: what stands before and after such a message.
    without_system: what opens a conversation that has no system message; ask: what the answer follows.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    without_system: str
    ask: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the prompt as the Modelfile's template writes it."""
        text = "" if any(message.role == "system" for message in messages) else self.without_system
        for message in messages:
            before, after = getattr(self, message.role)
            text += before + message.content + after
        return text + self.ask

    def as_go(self) -> str:
        """Return the template in Go's language, with Ollama's names."""
        roles = [
            f'{{{{ {word} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
            for word, role, (before, after) in (
                ("if", "system", self.system),
                ("else if", "user", self.user),
                ("else if", "assistant", self.assistant),
            )
        ]
        opening = f"{{{{ if not .System }}}}{_go(self.without_system)}{{{{ end }}}}" if self.without_system else ""
        return f"{opening}{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}{_go(self.ask)}"


def write_ollama(subject: Subject, folder: Path, *, dtype: str, say: Callable[[str], None]) -> str:
    """Write model and Modelfile; return how the model is stored.

    Raises:
        ModelError: llama.cpp, on which Ollama is built, does not take the model, or the template has another form.
    """
    tokenizer, stops = tokenizer_of(subject)
    turns = turns_of(get_template(subject.tuned.template, tokenizer), tokenizer)
    text = modelfile(turns, [str(tokenizer.decode([stop])) for stop in stops])
    chosen = write_gguf_model(subject, folder / MODEL, dtype=dtype, say=say)
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return chosen


def modelfile(turns: Turns, stops: Sequence[str]) -> str:
    """Return a Modelfile for the model beside it.

    Raises:
        ModelError: the template holds three quotation marks, which end it there.
    """
    template = turns.as_go()
    if '"""' in template or template.endswith('"'):
        raise ModelError('the template holds """ or ends with ", which a Modelfile cannot say; use --to gguf.')
    ends = "".join(f'PARAMETER stop "{stop}"\n' for stop in stops if '"' not in stop)
    return f'FROM ./{MODEL}\nTEMPLATE """{template}"""\n{ends}'


def turns_of(template: Template, tokenizer: "PreTrainedTokenizerBase") -> Turns:
    """Return what ``template`` writes around messages, found by asking it.

    Raises:
        ModelError: it does more than writing messages one after the other.
    """
    found = _split(template)
    bos = tokenizer.bos_token if encoder_of(tokenizer).bos else None
    if isinstance(bos, str):  # llama.cpp puts it there itself
        found = Turns(
            (found.system[0].removeprefix(bos), found.system[1]),
            (found.user[0], found.user[1]),
            found.assistant,
            found.without_system.removeprefix(bos),
            found.ask,
        )
    longer = (*PROBES[1], Message("assistant", "Five."), Message("user", "Six?"))
    for conversation in (*PROBES, longer, (Message("system", "S"), *longer)):
        try:
            own = template.prompt(conversation)
        except DataError:
            continue
        if found.prompt(conversation) != (own.removeprefix(bos) if isinstance(bos, str) else own):
            raise ModelError(
                f"template '{template.name}' does more than writing messages one after the other, and no "
                "Modelfile is written for that; use --to gguf, whose chat template llama.cpp runs as it is."
            )
    return found


def _split(template: Template) -> Turns:
    asked, answered = Message("user", _FIRST), Message("assistant", _ANSWER)
    first = template.prompt([asked]).split(_FIRST)
    rounds = template.prompt([asked, answered, Message("user", _NEXT)])
    if len(first) != 2 or not all(rounds.count(mark) == 1 for mark in (_FIRST, _ANSWER, _NEXT)):
        raise ModelError(f"template '{template.name}' writes a message more than once; use --to gguf.")
    _, rest = rounds.split(_FIRST)
    to_answer, rest = rest.split(_ANSWER)
    to_next, _ = rest.split(_NEXT)
    opening, end = first
    user_end = _common_start([to_answer, end])
    openings = [opening, to_next]
    system = ("", "")
    try:
        text = template.prompt([Message("system", _SYSTEM), asked])
        system_start, rest = text.split(_SYSTEM)
        system_end = rest.split(_FIRST)[0]
        openings.append(system_end)
    except (DataError, ValueError):  # it refuses system messages, or leaves them out
        system_start = system_end = ""
    user_start = _common_start([text[::-1] for text in openings])[::-1]
    if system_start or system_end:
        system = (system_start, system_end.removesuffix(user_start))
    return Turns(
        system,
        (user_start, user_end),
        (to_answer.removeprefix(user_end), to_next.removesuffix(user_start)),
        opening.removesuffix(user_start),
        end.removeprefix(user_end),
    )


def _common_start(texts: Sequence[str]) -> str:
    """Return the longest text that all of ``texts`` begin with."""
    alike = [len(set(chars)) == 1 for chars in zip(*texts, strict=False)]
    return texts[0][: alike.index(False) if False in alike else len(alike)]


def _go(text: str) -> str:
    """Return plain text inside a Go template."""
    return text.replace("{{", '{{ "{{" }}')
