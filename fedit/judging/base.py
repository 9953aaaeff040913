"""The interface of judges: one request for a verdict, one reply."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedit.data.examples import Message


@dataclass(frozen=True, slots=True)
class Request:
    """What a judge is asked.

    choices: all verdicts there are, for judges that weigh them instead of writing.
    repeat:  number of the repetition; the same question asked again is another request.
    """

    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge gave back: ``text``, or else ``likelihoods``: the log-likelihood of each choice, in nats.

    tokens_in, tokens_out: as the endpoint counts them; estimated from characters where it does not say.
    """

    text: str | None
    likelihoods: Mapping[str, float] | None
    tokens_in: int
    tokens_out: int
    estimated: bool = False


class Judge(Protocol):
    """Something that can be asked for verdicts."""

    @property
    def name(self) -> str:
        """Which model it is; part of the key under which verdicts are kept."""

    @property
    def explains(self) -> bool:
        """Whether it writes text; else it weighs the choices of a request."""

    @property
    def concurrency(self) -> int:
        """How many requests it may be asked at the same time."""

    @property
    def sampling(self) -> Mapping[str, object]:
        """How replies are drawn; part of the key under which verdicts are kept."""

    def describe(self) -> dict[str, object]:
        """Return what results say about it; never a secret."""

    def ask(self, request: Request) -> Reply:
        """Return the reply to one request; called from several threads.

        Raises:
            NoReply: this request got none, others may.
            UserError: no request can get one as things are set up.
        """


class NoReply(Exception):
    """One request got no reply; the message says why."""


def key_of(judge: Judge, request: Request) -> str:
    """Return the SHA-256 under which the reply is kept: of model, messages, sampling and repeat."""
    parts = {
        "model": judge.name,
        "messages": [[message.role, message.content] for message in request.messages],
        "sampling": dict(judge.sampling),
        "repeat": request.repeat,
        # What a weighing judge weighs is part of its question.
        **({} if judge.explains else {"choices": list(request.choices)}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
