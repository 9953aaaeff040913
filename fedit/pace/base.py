"""Pace: what the round loop asks before and after every round; the loop itself is one for all paces."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedit.clock import Duration
from fedit.selection.base import UNKNOWN, Known
from fedit.types import ClientInfo, LocalTraining, ServerState, Tensors

CohortRule = Callable[[Sequence[ClientInfo], int], list[str]]
"""(clients, round) -> ids of those who take part, sorted."""

Training = Callable[[int], LocalTraining]
"""Round -> how clients train that were asked for it."""

Traffic = Callable[[ServerState, ClientInfo], tuple[int, int]]
"""(what a client starts from, client) -> bytes that it is sent and that it sends."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One client that was asked.

    round:    for which: one after the round of the state that it starts from.
    start:    the server's state that it is sent.
    duration: of its round on the virtual clock; None: there is no clock.
    weight:   of its update; None: what the client says.
    """

    client: ClientInfo
    round: int
    start: ServerState
    training: LocalTraining
    duration: Duration | None = None
    weight: float | None = None

    @property
    def client_id(self) -> str:
        """The client's id."""
        return self.client.client_id


@dataclass(frozen=True, slots=True)
class Standing:
    """What a pace keeps from round to round, beside the server's state.

    now:   seconds of the virtual clock.
    known: client id -> what the server knows of it; empty where nobody asks.
    """

    now: float = 0.0
    known: Mapping[str, Known] = field(default_factory=dict)

    def ask(self, client_ids: Iterable[str]) -> "Standing":
        """Return it after these clients were asked."""
        asked = {c: replace(k := self.known.get(c, UNKNOWN), asked=k.asked + 1) for c in client_ids}
        return replace(self, known={**self.known, **asked})

    def hear(self, round: int, heard: Iterable[Mapping[str, float | str]]) -> "Standing":
        """Return it after these updates were accepted; heard: their clients and metrics."""
        known = dict(self.known)
        for one in heard:
            client = str(one["client"])
            seconds = one.get("simulated_seconds")
            known[client] = replace(
                known.get(client, UNKNOWN),
                heard=round,
                loss=float(one.get("loss", 0.0)),
                seconds=None if seconds is None else float(seconds),
            )
        return replace(self, known=known)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round does.

    asked:    those whose update is trained and waited for, sorted by id.
    dropped:  those who were sent their broadcast in vain, and why.
    seconds:  that the round takes on the virtual clock; None: there is none.
    standing: at its end, without what it will hear.
    flushed:  whether it takes fewer updates than it wants, since no more can ever come.
    """

    asked: Sequence[Asked]
    dropped: Sequence[tuple[Asked, str]] = ()
    seconds: float | None = None
    standing: Standing = field(default_factory=Standing)
    flushed: bool = False

    @property
    def cohort(self) -> list[str]:
        """Ids of all who take part, sorted."""
        return sorted([*(one.client_id for one in self.asked), *(one.client_id for one, _ in self.dropped)])


class Pace(ABC):
    """Decides whom a round asks and whose update counts.

    It holds no state: what it must remember is in ``ServerState.schedule``, so that a resumed run goes on alike.
    """

    @abstractmethod
    def plan(
        self, server: ServerState, clients: Sequence[ClientInfo], training: Training, traffic: Traffic
    ) -> Plan:
        """Return what round ``server.round + 1`` does; clients: all of them, sorted by id."""

    @abstractmethod
    def after(
        self,
        server: ServerState,
        clients: Sequence[ClientInfo],
        plan: Plan,
        heard: Sequence[Mapping[str, float | str]],
    ) -> Tensors:
        """Return the schedule that the next state carries.

        server: before the round; heard: client and metrics of every accepted update.
        """

    def under_way(
        self, server: ServerState, clients: Sequence[ClientInfo]
    ) -> Sequence[tuple[ClientInfo, ServerState]]:
        """Return who has been sent something and is not heard of yet, with the state that it was sent."""
        return ()


@dataclass(frozen=True)
class ByRule(Pace):
    """Asks whom a function names and waits for all of them; there is no clock and nothing to remember."""

    rule: CohortRule

    def plan(
        self, server: ServerState, clients: Sequence[ClientInfo], training: Training, traffic: Traffic
    ) -> Plan:
        """Return the plan of the function's cohort."""
        by_id = {client.client_id: client for client in clients}
        number = server.round + 1
        how = training(number)
        return Plan([Asked(by_id[client_id], number, server, how) for client_id in self.rule(clients, number)])

    def after(
        self,
        server: ServerState,
        clients: Sequence[ClientInfo],
        plan: Plan,
        heard: Sequence[Mapping[str, float | str]],
    ) -> Tensors:
        """Return nothing."""
        return {}


def encode(standing: Standing, clients: Sequence[ClientInfo]) -> Tensors:
    """Return a standing as tensors: a number, and one entry a client where something is known of them.

    clients: all of them, in their order.
    """
    held: Tensors = {"now": torch.tensor(standing.now, dtype=torch.float64)}
    if standing.known:
        known = [standing.known.get(client.client_id, UNKNOWN) for client in clients]
        for name in ("asked", "heard"):
            held[f"known.{name}"] = torch.tensor([getattr(k, name) for k in known], dtype=torch.int64)
        for name in ("loss", "seconds"):
            values = [getattr(k, name) for k in known]
            held[f"known.{name}"] = torch.tensor(
                [math.nan if value is None else value for value in values], dtype=torch.float64
            )
    return held


def decode(held: Mapping[str, Tensor], clients: Sequence[ClientInfo]) -> Standing:
    """Return the standing that `encode` was given; a fresh one from nothing."""
    if "now" not in held:
        return Standing()
    now = float(held["now"])
    if "known.asked" not in held:
        return Standing(now)
    columns = [held[f"known.{name}"].tolist() for name in ("asked", "heard", "loss", "seconds")]
    known = {}
    for client, asked, heard, loss, seconds in zip(clients, *columns, strict=True):
        if asked or heard:
            known[client.client_id] = Known(int(asked), int(heard), _given(loss), _given(seconds))
    return Standing(now, known)


def _given(value: float) -> float | None:
    return None if math.isnan(value) else value
