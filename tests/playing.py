"""A session of secure aggregation played in one process, with whoever drops out where."""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedit.errors import ProtocolError
from fedit.privacy.secagg import client, server
from fedit.privacy.secagg.encoding import FixedPoint
from fedit.privacy.secagg.messages import AskKeys, AskMasked, AskShares, AskUnmask, Masked, Message

STAGES = ("keys", "shares", "masked", "unmask")
Dropping = Mapping[str, str]
"""Client -> the stage that it does not answer any more."""


def carried(message: Message) -> object:
    """Return what arrives of a message that is sent as JSON."""
    return json.loads(json.dumps(message.as_json()))


class Played:
    """clients: id -> its vector, uint64; dropping: who drops out; seen: masked vectors as the server gets them."""

    def __init__(
        self,
        clients: Mapping[str, np.ndarray],
        dropping: Dropping = {},  # noqa: B006  (never changed)
        *,
        threshold: float = 0.5,
        neighbours: int | None = None,
        tamper: Callable[[str, str, object], object] = lambda stage, client, said: said,
    ) -> None:
        self.vectors = clients
        self.dropping = dropping
        self.threshold = threshold
        self.tamper = tamper
        self.server = server.Session(list(clients), threshold=threshold, neighbours=neighbours)
        self.sessions: dict[str, client.Session] = {}
        self.seen: dict[str, np.ndarray] = {}
        self.refused: dict[str, str] = {}

    def run(self) -> tuple[np.ndarray, list[str]]:
        """Return the sum, and who is in it."""
        size = len(next(iter(self.vectors.values())))
        self._stage("keys", self.server.ask_keys(), self._keys, self.server.keys)
        self._stage("shares", self.server.ask_shares(), self._shares, self.server.shares)
        grid = FixedPoint.for_cohort(1.0, len(self.vectors), 1)
        terms = server.Terms(size, (), grid.limit, grid.bits, 1, None, 0.0, ())
        self._stage("masked", self.server.ask_masked(terms), self._masked, self._take_masked)
        self._stage("unmask", self.server.ask_unmask(), self._unmask, self.server.unmask)
        return self.server.total(), self.server.survivors

    def _stage(self, stage, questions, answer, take):
        for own, question in questions.items():
            if STAGES.index(self.dropping.get(own, "unmask")) < STAGES.index(stage) or (
                self.dropping.get(own) == stage
            ):
                continue
            try:
                take(own, self.tamper(stage, own, carried(answer(own, carried(question)))))
            except ProtocolError as error:
                self.refused[own] = str(error)

    def _keys(self, own, question):
        self.sessions[own], answer = client.begin(own, 1, AskKeys.read(question))
        return answer

    def _shares(self, own, question):
        asked = AskShares.read(question)
        self.sessions[own], answer = client.hand_out(self.sessions[own], asked, self.threshold)
        return answer

    def _masked(self, own, question):
        accepted = client.accept(self.sessions[own], AskMasked.read(question), self.threshold)
        self.seen[own] = self.vectors[own].copy()
        self.sessions[own] = client.mask(accepted, self.seen[own])
        return Masked(())

    def _take_masked(self, own, said):
        self.server.masked(own, said, self.seen[own])

    def _unmask(self, own, question):
        self.sessions[own], answer = client.reveal(self.sessions[own], AskUnmask.read(question), self.threshold)
        return answer


def words(names: Sequence[str], size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a vector a client whose entries are anywhere in 64 bits."""
    drawn = np.random.default_rng(seed)
    return {name: drawn.integers(0, 2**64, size, dtype=np.uint64) for name in names}


def added(vectors: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return a sum modulo 2^64, through whole numbers without bounds."""
    columns = zip(*(vectors[name].tolist() for name in names), strict=True)
    return np.array([sum(column) % 2**64 for column in columns], dtype=np.uint64)
