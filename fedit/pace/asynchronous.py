"""Rounds of arrivals: clients train at their own speed, and so many updates make a server step.

A queue of events in virtual time says who arrives when. A client that arrives makes room for another one, which
starts from the server's state of that moment; those under way keep the state that they started from (Xie et al.,
2019, arXiv:1903.03934; Nguyen et al., 2022, arXiv:2106.06639). Since arrivals follow from sizes alone, a client is
trained in the round in which it arrives, and nothing is trained that the run does not live to see.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedit import tensors
from fedit.availability import Always, Availability
from fedit.clock import Clock, Duration
from fedit.errors import RoundError
from fedit.pace.base import Asked, Pace, Plan, Traffic, Training, decode, encode
from fedit.selection.base import Pool, Selection
from fedit.types import ClientInfo, ServerState, Tensors

_PARTS = ("adapter", "ledger", "memory")


@dataclass(frozen=True, slots=True)
class Flight:
    """A client under way: the round of the state that it started from, and when it arrives."""

    client_id: str
    version: int
    arrives: float


@dataclass(frozen=True, slots=True)
class Flights(Plan):
    """The plan of one server step, and who is still under way after it."""

    under_way: Sequence[Flight] = ()


@dataclass(frozen=True)
class Asynchronous(Pace):
    """Keeps clients under way and takes a server step after every ``buffer`` arrivals, or the last of all.

    No client is under way twice, and none arrives twice in a round: the free place goes to another one, else it
    stays free until the step. What arrives at one moment is taken in the order of ids, before anybody departs.

    concurrency: clients under way at a time.
    buffer:      arrivals that make a step.
    """

    selection: Selection
    concurrency: int
    buffer: int
    seed: int
    clock: Clock
    availability: Availability = field(default_factory=Always)

    def plan(
        self, server: ServerState, clients: Sequence[ClientInfo], training: Training, traffic: Traffic
    ) -> Plan:
        """Let time pass until enough clients have arrived.

        Raises:
            RoundError: nobody has arrived, is under way, or is available any more.
        """
        return _Queue(self, server, clients, training, traffic).run()

    def under_way(
        self, server: ServerState, clients: Sequence[ClientInfo]
    ) -> Sequence[tuple[ClientInfo, ServerState]]:
        """Return the clients under way, by their ids, and the states that they started from."""
        by_id = {client.client_id: client for client in clients}
        flights = sorted(_read_flights(server, clients), key=lambda flight: flight.client_id)
        return [(by_id[flight.client_id], _state(server, flight.version)) for flight in flights]

    def after(
        self,
        server: ServerState,
        clients: Sequence[ClientInfo],
        plan: Plan,
        heard: Sequence[Mapping[str, float | str]],
    ) -> Tensors:
        """Return the time, who is under way, and the states that they started from."""
        if not isinstance(plan, Flights):
            raise TypeError("an asynchronous pace continues its own plans")
        standing = plan.standing
        if self.selection.remembers:
            standing = standing.hear(server.round + 1, heard)
        places = {client.client_id: place for place, client in enumerate(clients)}
        held = encode(standing, clients)
        flights = plan.under_way
        held["flight.client"] = torch.tensor([places[f.client_id] for f in flights], dtype=torch.int64)
        held["flight.version"] = torch.tensor([f.version for f in flights], dtype=torch.int64)
        held["flight.arrives"] = torch.tensor([f.arrives for f in flights], dtype=torch.float64)
        for version in sorted({flight.version for flight in flights}):
            held |= _keep(_state(server, version))
        return held


class _Queue:
    """One round's events."""

    def __init__(
        self,
        pace: Asynchronous,
        server: ServerState,
        clients: Sequence[ClientInfo],
        training: Training,
        traffic: Traffic,
    ) -> None:
        self._pace = pace
        self._server = server
        self._clients = clients
        self._by_id = {client.client_id: client for client in clients}
        self._training = training
        self._traffic = traffic
        self._standing = decode(server.schedule, clients)
        self._now = self._standing.now
        self._flights = _read_flights(server, clients)
        self._arrived: list[Flight] = []
        self._states: dict[int, ServerState] = {}

    def run(self) -> Flights:
        """Return what arrives until the buffer is full, or until nobody can come any more."""
        begun = self._now
        self._depart()
        flushed = False
        while len(self._arrived) < self._pace.buffer:
            moment = self._next_moment()
            if math.isinf(moment):
                self._refuse_nobody()
                flushed = True
                break
            self._now = moment
            room = self._pace.buffer - len(self._arrived)
            here = sorted((f for f in self._flights if f.arrives <= self._now), key=_order)[:room]
            self._arrived += here
            self._flights = [flight for flight in self._flights if flight not in here]
            if len(self._arrived) < self._pace.buffer:
                self._depart()
        asked = [self._asked(flight) for flight in sorted(self._arrived, key=lambda f: f.client_id)]
        standing = replace(self._standing, now=self._now)
        left = sorted(self._flights, key=_order)
        return Flights(asked, (), self._now - begun, standing, flushed, left)

    def _depart(self) -> None:
        """Fill the free places with clients that start now from the server's state."""
        free = self._pace.concurrency - len(self._flights)
        present = [client for client in self._idle() if self._wait(client) == 0]
        if free <= 0 or not present:
            return
        number = self._server.round + 1
        pool = Pool(present, free, len(self._clients), number, self._pace.seed, self._standing.known)
        chosen = sorted(self._pace.selection.choose(pool))
        if self._pace.selection.remembers:
            self._standing = self._standing.ask(chosen)
        for client_id in chosen:
            arrives = self._now + self._duration(self._by_id[client_id], self._server).total
            self._flights.append(Flight(client_id, self._server.round, arrives))

    def _next_moment(self) -> float:
        """Return when somebody arrives or, where a place is free, when somebody can depart; infinity: never."""
        moments = [flight.arrives for flight in self._flights]
        if len(self._flights) < self._pace.concurrency:
            # Time must move, even where a wait is too short to be added to it.
            soon = math.nextafter(self._now, math.inf)
            waits = [wait for client in self._idle() if (wait := self._wait(client)) > 0]
            moments += [max(self._now + wait, soon) for wait in waits]
        return max(min(moments, default=math.inf), self._now)

    def _refuse_nobody(self) -> None:
        """Raise ``RoundError`` where nobody has arrived: there is nothing to make a step of."""
        if not self._arrived:
            raise RoundError(
                f"round {self._server.round + 1}: no client is under way or available after {self._now:.3f} "
                "simulated seconds."
            )

    def _idle(self) -> list[ClientInfo]:
        busy = {flight.client_id for flight in [*self._flights, *self._arrived]}
        return [client for client in self._clients if client.client_id not in busy]

    def _wait(self, client: ClientInfo) -> float:
        return self._pace.availability.wait(client.client_id, self._now, self._pace.seed)

    def _asked(self, flight: Flight) -> Asked:
        version, client = flight.version, self._by_id[flight.client_id]
        if version not in self._states:
            self._states[version] = _state(self._server, version)
        start = self._states[version]
        weight = 1.0 if self._pace.selection.averages_draws else None
        how, duration = self._training(version + 1), self._duration(client, start)
        return Asked(client, version + 1, start, how, duration, weight)

    def _duration(self, client: ClientInfo, start: ServerState) -> Duration:
        traffic = self._traffic(start, client)
        return self._pace.clock.duration(client, self._training(start.round + 1), *traffic)


def _order(flight: Flight) -> tuple[float, str]:
    return flight.arrives, flight.client_id


def _read_flights(server: ServerState, clients: Sequence[ClientInfo]) -> list[Flight]:
    if "flight.client" not in server.schedule:
        return []
    columns = [server.schedule[f"flight.{name}"].tolist() for name in ("client", "version", "arrives")]
    return [
        Flight(clients[place].client_id, version, arrives)
        for place, version, arrives in zip(*columns, strict=True)
    ]


def _state(server: ServerState, version: int) -> ServerState:
    """Return the state of an earlier round, which ``server`` carries as long as somebody is under way from it."""
    if version == server.round:
        return server
    parts: dict[str, Tensors] = {part: {} for part in _PARTS}
    prefix = f"version.{version}/"
    for name, tensor in server.schedule.items():
        if name.startswith(prefix):
            part, _, key = name.removeprefix(prefix).partition("/")
            parts[part][key] = tensor
    if tensors.can_flatten(parts["adapter"]):
        parts["adapter"] = tensors.flatten(parts["adapter"])
    return replace(
        server,
        round=version,
        schedule={},
        adapter=parts["adapter"],
        ledger=parts["ledger"],
        memory=parts["memory"],
    )


def _keep(state: ServerState) -> Tensors:
    """Return that a client who started from a state needs of it."""
    held: Tensors = {}
    for part in _PARTS:
        for name, tensor in sorted(getattr(state, part).items()):
            held[f"version.{state.round}/{part}/{name}"] = tensor
    return held
