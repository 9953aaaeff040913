"""The process that Flower starts at a site for every message: it passes on to the site's worker, and back."""

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedit.flower import wire
from fedit.flower.records import pack, unpack

PATIENCE = 120.0
"""Seconds in which a worker that died must be back: its supervisor starts it again, it loads the base model."""
PAUSE = 0.5

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer what the server asks about the site."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Have the site's worker train."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    path = Path(str(context.node_config["socket"]))
    header, pieces = unpack(message.content)
    return Message(content=pack(*asked(path, header, pieces)), reply_to=message)


def asked(
    path: Path, header: wire.Header, pieces: Mapping[str, bytes], patience: float = PATIENCE
) -> wire.Envelope:
    """Return the worker's answer; one that dies is asked again when it is back.

    What it had finished it answers from its cache. Dying at the same message twice is an answer too.
    """
    deaths, waiting_since = 0, time.monotonic()
    while True:
        try:
            return wire.ask(path, header, pieces, timeout=None)
        except (ConnectionRefusedError, FileNotFoundError):
            if time.monotonic() - waiting_since > patience:
                return {"lost": f"the site's worker did not come back within {patience:.0f} s"}, {}
            time.sleep(PAUSE)
        except (OSError, wire.WireError):
            deaths += 1
            if deaths == 2:
                return {"lost": "the site's worker died twice at this work; is there enough memory?"}, {}
            waiting_since = time.monotonic()
