"""``fedit chat``: talk to a tuned model in the terminal, and to its base for comparison."""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fedit.cli.output import console, notes, working
from fedit.errors import ConfigError, UserError

if TYPE_CHECKING:
    from fedit.chatting import Chat, Sampling

EPILOG = """Examples:

fedit chat runs/first

fedit chat runs/first --prompt "Name three uses of a brick."

fedit chat runs/first/arms/centralised --base

echo "Classify: oak, salmon, pine" | fedit chat path/to/adapter --temperature 0.7 --seed 1"""

HELP = """/base   let the base model answer, or the tuned one again
/again  answer the last question once more, after /base to compare
/reset  forget the conversation
/quit   leave, as does Ctrl-D
Ctrl-C stops an answer; at the prompt it leaves."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and line feed: what a model writes must not steer the terminal."""


def chat(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_DIR|ADAPTER", help="A run, an arm of one, or a PEFT LoRA folder.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Base model, where it is not the one that was trained on.")
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Prompt template, where it is not the one of the training.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this and leave.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", min=1, help="Longest answer, in tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; more varies more.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option("--top_p", min=0.01, max=1.0, help="Draw from the likeliest tokens that have this share."),
    ] = 1.0,
    system: Annotated[str, typer.Option("--system", help="System prompt.")] = "",
    base: Annotated[bool, typer.Option("--base", help="Start with the base model answering.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Makes drawn answers repeatable.")] = None,
) -> None:
    """Talk to a tuned model, with exactly the model, adapter and prompt template that it was trained with.

    RUN_DIR: model, template and adapter come from the run; an unfinished one answers from its last round.
    ADAPTER: any PEFT LoRA folder; the base model is the one that its adapter_config.json names.
    With --prompt, or text on standard input, it answers once and leaves; else it is a conversation.
    """
    question = _question(prompt)
    with working("reading the adapter …"):
        from fedit.chatting import Chat, Sampling, find_tuned

        tuned = find_tuned(folder, model=model, template=template)
    if tuned.note:
        notes().print(tuned.note, style="yellow")
    with working("loading the model …"):
        talk = Chat(tuned, system=system, say=lambda text: notes().print(text, style="dim"))
        talk.use_base(base)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    out = console()
    if question is not None:
        talk.answer(question, writer(out), sampling)
        out.print()
        return
    out.print(Text.assemble((str(folder), "bold"), f" on {tuned.model}, template {talk.template.name}"))
    out.print("Ask something. /help shows the commands.", style="dim")
    converse(talk, out, sampling, _read_line)


def converse(talk: "Chat", out: Console, sampling: "Sampling", read: Callable[[str], str]) -> None:
    """Answer lines from ``read``, which is given the prompt to show, until it ends or asks to leave."""
    while True:
        try:
            line = read("base> " if talk.base_answers else "> ").strip()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print()
            raise
        if line in ("/quit", "/exit"):
            return
        question = _obey(talk, out, line) if line.startswith("/") else line
        if question:
            _answer(talk, out, sampling, question)


def writer(out: Console) -> Callable[[str], None]:
    """Return a function that shows pieces of an answer as they come."""

    def write(text: str) -> None:
        # Straight to the file: rich would turn tabs into spaces.
        out.file.write(_CONTROLS.sub("", text))
        out.file.flush()

    return write


def _answer(talk: "Chat", out: Console, sampling: "Sampling", question: str) -> None:
    try:
        talk.answer(question, writer(out), sampling)
        out.print("\n")
    except KeyboardInterrupt:
        out.print("\n(stopped)\n", style="dim")
    except UserError as error:
        notes().print(str(error), style="red")


def _obey(talk: "Chat", out: Console, command: str) -> str | None:
    """Follow a command; return the question to answer now, if it asks for one."""
    match command:
        case "/base":
            talk.use_base(not talk.base_answers)
            out.print(f"now the {'base' if talk.base_answers else 'tuned'} model answers", style="dim")
        case "/again":
            question = talk.take_back()
            if question is None:
                out.print("nothing was asked yet", style="dim")
            return question
        case "/reset":
            talk.messages.clear()
            out.print("the conversation starts anew", style="dim")
        case "/help":
            out.print(HELP, style="dim")
        case _:
            out.print(f"there is no command {command}", style="yellow")
            out.print(HELP, style="dim")
    return None


def _question(prompt: str | None) -> str | None:
    """Return what is to be answered once; None for a conversation.

    Raises:
        ConfigError: there is no text and no terminal to ask.
    """
    if prompt is None and sys.stdin.isatty():
        return None
    text = (sys.stdin.read() if prompt is None else prompt).strip()
    if not text:
        raise ConfigError("there is nothing to answer: give --prompt TEXT, or text on standard input.")
    return text


def _read_line(prompt: str) -> str:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing, where there is such a library)
    return input(prompt)
