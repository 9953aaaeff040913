"""The loop: state, broadcast, local training, aggregation, next state."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedit import lora, seeds, tensors
from fedit.diagnostics import AggregationBias, Drift
from fedit.engines.base import Engine
from fedit.errors import NoUpdates, RoundError
from fedit.strategies.base import Strategy
from fedit.types import (
    Broadcast,
    ClientFailure,
    ClientInfo,
    ClientTask,
    ClientUpdate,
    LocalTraining,
    ServerState,
    Tensors,
)
from fedit.updates import Updates

MOST_EMPTY_ROUNDS = 3
"""So many rounds in a row without enough updates end the run: something is wrong with all clients."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in one round. Bytes are those of the tensors sent; seconds are wall-clock."""

    round: int
    cohort: list[str]
    clients: list[dict[str, float | str]]
    failures: list[ClientFailure]
    aggregated: bool
    loss: float | None
    tokens: int
    bytes_up: int
    bytes_down: int
    seconds: float
    diagnostics: dict[str, float]


@dataclass(slots=True)
class _Tally:
    """Adds up what passes on its way to the strategy."""

    clients: list[dict[str, float | str]] = field(default_factory=list)
    tokens: int = 0
    bytes_up: int = 0
    weight: float = 0.0
    weighted_loss: float = 0.0

    def observe(self, update: ClientUpdate) -> None:
        metrics = dict(update.metrics)
        self.clients.append(
            {"client": update.client_id, "examples": update.num_examples, "weight": update.weight, **metrics}
        )
        self.tokens += int(metrics.get("tokens", 0))
        self.bytes_up += tensors.num_bytes(update.delta) + tensors.num_bytes(update.extra)
        self.weight += update.weight
        self.weighted_loss += update.weight * metrics.get("loss", 0.0)


def run_rounds(
    server: ServerState,
    engine: Engine,
    strategy: Strategy,
    *,
    rounds: int,
    cohort: Callable[[Sequence[ClientInfo], int], list[str]],
    training: Callable[[int], LocalTraining],
    seed: int,
    min_clients: int = 1,
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Yield the server state and a record after every round, from ``server.round + 1`` to ``rounds``.

    The caller evaluates, saves, prints and stops: there are no callbacks.

    cohort:   (clients, round) -> ids of those who take part, sorted.
    training: round -> how clients train in it.

    Raises:
        RoundError: several rounds in a row had fewer than ``min_clients`` usable updates.
    """
    clients = {client.client_id: client for client in engine.clients()}
    strategy = strategy.settled(server.adapter)
    if tensors.can_flatten(server.adapter):
        server = replace(server, adapter=tensors.flatten(server.adapter))
    empty = 0
    while server.round < rounds:
        server, record = _one_round(server, engine, strategy, clients, cohort, training, seed, min_clients)
        empty = 0 if record.aggregated else empty + 1
        yield server, record
        if empty == MOST_EMPTY_ROUNDS:
            first = record.failures[0] if record.failures else None
            cause = f" First failure: {first.client_id}: {first.reason}." if first else ""
            raise RoundError(
                f"round {record.round}: fewer than min_clients={min_clients} of {len(record.cohort)} clients "
                f"delivered, as in the {empty - 1} rounds before.{cause}"
            )


def _one_round(
    server: ServerState,
    engine: Engine,
    strategy: Strategy,
    clients: dict[str, ClientInfo],
    cohort: Callable[[Sequence[ClientInfo], int], list[str]],
    training: Callable[[int], LocalTraining],
    seed: int,
    min_clients: int,
) -> tuple[ServerState, RoundRecord]:
    number = server.round + 1
    started = time.perf_counter()
    chosen = cohort(list(clients.values()), number)
    how = training(number)
    tasks = [
        ClientTask(
            number,
            client_id,
            strategy.broadcast(server, clients[client_id]),
            how,
            seeds.derive(seed, "train", number, client_id),
        )
        for client_id in chosen
    ]
    bytes_down = sum(broadcast_bytes(task.broadcast) for task in tasks)
    tally, drift = _Tally(), Drift(server.adapter)
    bias = AggregationBias(server.adapter, seeds.derive(seed, "bias", number))

    def observe(update: ClientUpdate, norm: float) -> None:
        tally.observe(update)
        drift.observe(update, norm)
        bias.observe(update)

    updates = Updates(
        engine.run(tasks),
        server.adapter,
        observe,
        starts=_starts(strategy, server, tasks),
        uploads=partial(strategy.uploads, round=number),
    )
    try:
        after = strategy.aggregate(server, updates)
    except NoUpdates:
        after = server
    aggregated = len(tally.clients) >= min_clients
    state = after if aggregated else server
    mean = updates.deltas.value() if updates.alike else {}
    record = RoundRecord(
        round=number,
        cohort=chosen,
        clients=[{**client, "update_norm": drift.norms[str(client["client"])]} for client in tally.clients],
        failures=updates.failures,
        aggregated=aggregated,
        loss=tally.weighted_loss / tally.weight if tally.weight else None,
        tokens=tally.tokens,
        bytes_up=tally.bytes_up,
        bytes_down=bytes_down,
        seconds=time.perf_counter() - started,
        diagnostics={**drift.report(mean), **bias.report(mean)},
    )
    return replace(state, round=number), record


def broadcast_bytes(broadcast: Broadcast) -> int:
    """Return the bytes of the tensors of a broadcast."""
    return sum(map(tensors.num_bytes, (broadcast.adapter, broadcast.ledger, broadcast.extra)))


def _starts(strategy: Strategy, server: ServerState, tasks: Sequence[ClientTask]) -> dict[str, Tensors]:
    """Return by client id what those start from that do not start from the server's adapter as it is."""
    own: dict[str, Tensors] = {}
    for task in tasks:
        sent = task.broadcast.adapter
        if sent is not server.adapter:
            missing = {name: tensor for name, tensor in server.adapter.items() if name not in sent}
            own[task.client_id] = {**lora.cut_to(missing, sent), **sent}
    return own
