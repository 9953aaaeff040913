"""The one thread that runs the model: it answers one request after the other, in the order they came."""

import hashlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit.data.examples import Message
from fedit.errors import FeditError
from fedit.resident import Resident, Sampling

MOST_WAITING = 64
"""Requests that may wait; more are turned away instead of being kept for an unknown time."""


class Busy(FeditError):
    """Too many requests wait already, or the server is about to end."""


class _Stopped(Exception):
    """Whoever asked does not want the rest of the answer."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer and what it took.

    tokens, prompt_tokens: generated and read.
    seconds: from the prompt's first pass to the last token; waiting is not counted.
    reason:  "stop": the model ended it; "length": it has max_new_tokens; "cancelled": it was stopped.
    prompt:  SHA-256 of the prompt's tokens, each as a little-endian int32.
    """

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    reason: str
    prompt: str

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over seconds; 0 where nothing was generated."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(eq=False)
class Request:
    """One answer that was asked for: its pieces as they come, and a way to stop it."""

    voice: str
    messages: Sequence[Message]
    sampling: Sampling
    _out: "queue.SimpleQueue[str | Spoken | Exception]" = field(default_factory=queue.SimpleQueue, init=False)
    _unwanted: threading.Event = field(default_factory=threading.Event, init=False)

    def cancel(self) -> None:
        """Stop before the next token."""
        self._unwanted.set()

    def pieces(self, idle: float = 0.1) -> Iterator[str | Spoken]:
        """Yield the answer's text as it comes, "" after every ``idle`` seconds without any, and last what it took.

        Raises:
            FeditError: it cannot be answered.
        """
        while True:
            try:
                piece = self._out.get(timeout=idle)
            except queue.Empty:
                yield ""
                continue
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if isinstance(piece, Spoken):
                return


class Speaker:
    """Answers requests in a thread of its own, so that it never matters which connection is slow."""

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is queued behind the end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def ask(self, voice: str, messages: Sequence[Message], sampling: Sampling) -> Request:
        """Queue a request; ``messages`` end with the user's.

        Raises:
            Busy: too many wait already.
        """
        request = Request(voice, messages, sampling)
        with self._lock:
            if self._closed:
                raise Busy("the server is about to end.")
            if self._waiting.qsize() >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} requests wait already; try again later.")
            self._waiting.put(request)
        return request

    def close(self, timeout: float = 10.0) -> None:
        """Stop the present answer and those that wait, and end the thread; a prompt's first pass is waited for."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None:
            try:
                request._out.put(self._answer(request))
            except Exception as error:  # whoever asked learns of it; the thread goes on
                request._out.put(error)

    def _answer(self, request: Request) -> Spoken:
        pieces: list[str] = []
        tokens = 0

        def write(text: str) -> None:
            pieces.append(text)
            request._out.put(text)

        def heed() -> None:
            if request._unwanted.is_set() or self._closed:
                raise _Stopped

        def count() -> None:
            nonlocal tokens
            heed()
            tokens += 1

        begun = time.monotonic()
        prompt: list[int] = []
        try:
            heed()
            limit = request.sampling.max_new_tokens
            prompt = self.resident.prompt(request.voice, request.messages, limit)
            turn = sum(message.role != "system" for message in request.messages) - 1
            answer = self.resident.answer(
                request.voice, prompt, write, request.sampling, turn=turn, on_token=count
            )
            reason = "stop" if answer.ended else "length"
        except _Stopped:
            reason = "cancelled"
        seconds = time.monotonic() - begun
        digest = hashlib.sha256(np.asarray(prompt, dtype="<i4").tobytes()).hexdigest()
        return Spoken("".join(pieces), tokens, len(prompt), seconds, reason, digest)
