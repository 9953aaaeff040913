"""What the engine needs of a connection to the sites, and that connection over Flower's SuperLink."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedit.flower.records import pack, unpack
from fedit.flower.spool import spooled
from fedit.flower.wire import Envelope, WireError

log = logging.getLogger(__name__)

NOTICES, TRIES_SEND = 8, 3
"""Threads that ask for answers; tries to hand a message over."""
PAUSE = 0.5
"""Seconds between two looks for an answer."""
TURN = 5.0
"""Seconds that an answer waits for another one to be fetched; that one may be stuck, or still be on its way."""
LOST_CODES = frozenset({3, 4, 5, 8})
"""Flower's codes for what got lost on the way: message, reply, node, the process that passes it on."""


@dataclass(frozen=True, slots=True)
class Node:
    """A site's node as the SuperLink sees it; ``name`` is what it was registered under."""

    node_id: int
    name: str
    online: bool


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message to a node. kind: "query" or "train"; expires: seconds after which nobody wants its answer."""

    node_id: int
    kind: str
    header: Mapping[str, object]
    pieces: Mapping[str, bytes]
    expires: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """Instead of an answer; ``lost``: the same may arrive when it is sent again."""

    reason: str
    lost: bool


class Link(Protocol):
    """A connection to the nodes of all sites."""

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that are registered."""
        ...

    def send(self, parcels: Sequence[Parcel]) -> list[str | Trouble]:
        """Hand messages over; return each one's id, or why it was not taken."""
        ...

    def answers(self, ids: Sequence[str]) -> Iterator[tuple[str, Envelope | Trouble]]:
        """Yield the answers that are there now, once each."""
        ...


class GridLink:
    """The connection of a Flower ServerApp.

    Every message is asked for on its own, in a thread: one whose answer got stuck holds back no other. Otherwise
    they are fetched one after the other, and wait on the disk.
    """

    def __init__(self, grid: Grid, folder: Path | None = None) -> None:
        """Take Flower's connection. folder: where answers wait; None: with the system's temporary files."""
        self._grid = grid
        self._folder = folder
        self._turn = threading.Lock()
        self._threads = ThreadPoolExecutor(NOTICES, thread_name_prefix="fedit-answers")
        self._asking: dict[str, Future[Envelope | Trouble | None]] = {}
        self._arrived: dict[str, Envelope | Trouble] = {}  # Flower gives an answer once, whoever wants it then

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that are registered."""
        return [Node(n.node_id, n.name or str(n.node_id), n.status == "online") for n in self._grid.get_nodes()]

    def send(self, parcels: Sequence[Parcel]) -> list[str | Trouble]:
        """Hand messages over; return each one's id, or why it was not taken."""
        found: list[str | Trouble] = []
        for parcel in parcels:
            content = pack(parcel.header, parcel.pieces)
            message = Message(content, parcel.node_id, parcel.kind, ttl=parcel.expires)
            found.append(self._push(message))
        return found

    def _push(self, message: Message) -> str | Trouble:
        error: Exception | None = None
        for attempt in range(TRIES_SEND):
            try:
                ids = list(self._grid.push_messages([message]))
            except Exception as failed:  # whatever the HTTP client raises
                error = failed
                time.sleep(2**attempt)
                continue
            return ids[0] if ids and ids[0] else Trouble("the SuperLink did not take the message", lost=True)
        return Trouble(f"the SuperLink cannot be reached: {error}", lost=True)

    def answers(self, ids: Sequence[str]) -> Iterator[tuple[str, Envelope | Trouble]]:
        """Yield the answers that are there now, once each."""
        for one in ids:
            if one not in self._asking and one not in self._arrived:
                self._asking[one] = self._threads.submit(self._pull, one)
        time.sleep(PAUSE)
        for one in [one for one, future in self._asking.items() if future.done()]:
            try:
                answer = self._asking.pop(one).result()
            except Exception as error:
                log.warning("asking for an answer failed, and is tried again: %s", error)
                continue
            if answer is not None:
                self._arrived[one] = answer
        for one in ids:
            if (answer := self._arrived.pop(one, None)) is not None:
                yield one, answer

    def _pull(self, one: str) -> Envelope | Trouble | None:
        own_turn = self._turn.acquire(timeout=TURN)
        try:
            messages = list(self._grid.pull_messages([one]))
            return _opened(messages.pop(), self._folder) if messages else None
        finally:
            if own_turn:
                self._turn.release()

    def close(self) -> None:
        """Leave; an answer that is being asked for is not waited for."""
        with suppress(RuntimeError):
            self._threads.shutdown(wait=False, cancel_futures=True)


def _opened(message: Message, folder: Path | None) -> Envelope | Trouble:
    if message.has_error():
        code, reason = message.error.code, message.error.reason
        return Trouble(f"{reason or 'no reason given'} (code {code})", lost=code in LOST_CODES)
    try:
        header, pieces = unpack(message.content)
        return header, spooled(pieces, folder)
    except WireError as error:
        return Trouble(str(error), lost=False)
