"""A Gradio app for a hosted Space: chat with an exported adapter, or with its base.

A Space needs this file as app.py, the adapter's folder as ./adapter, and a requirements.txt that names fedit and
gradio. The adapter's card says which base model and which prompt template it was trained with.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from fedit.data.examples import Message
from fedit.resident import Resident, Sampling
from fedit.tuned import find_tuned
from fedit.ui.speaker import Speaker

TUNED, BASE = "tuned", "base"


def load(adapter: Path) -> Speaker:
    """Load the base once, to answer with the adapter and without."""
    tuned = find_tuned(adapter)
    return Speaker(Resident({TUNED: tuned, BASE: tuned.base()}, say=print))


def answer(speaker: Speaker, who: str, question: str, history: list[dict], sampling: Sampling) -> Iterator[str]:
    """Yield the answer as it grows; generation ends when the reader leaves."""
    turns = [Message(old["role"], text_of(old["content"])) for old in history]
    request = speaker.ask(who, [*turns, Message("user", question)], sampling)
    text = ""
    try:
        for piece in request.pieces():
            if isinstance(piece, str) and piece:
                text += piece
                yield text
    finally:
        request.cancel()


def text_of(content: str | list[dict]) -> str:
    """Return a message's text; Gradio may hand it over in parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def build(speaker: Speaker) -> gr.ChatInterface:
    """Return the app."""

    def reply(question: str, history: list[dict], who: str, temperature: float, longest: float) -> Iterator[str]:
        yield from answer(speaker, who, question, history, Sampling(int(longest), temperature))

    settings = [
        gr.Radio([TUNED, BASE], value=TUNED, label="Who answers"),
        gr.Slider(0, 2, 0, label="Temperature"),
        gr.Slider(16, 512, 256, step=16, label="Longest answer, in tokens"),
    ]
    return gr.ChatInterface(reply, additional_inputs=settings, title="Federated instruction tuning")


if __name__ == "__main__":
    build(load(Path(sys.argv[1] if len(sys.argv) > 1 else "adapter"))).launch()
