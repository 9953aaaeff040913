"""The loop: state, broadcast, local training, aggregation, next state."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedit import lora, seeds, tensors
from fedit.diagnostics import AggregationBias, Drift
from fedit.engines.base import Engine
from fedit.errors import NoUpdates, RoundError
from fedit.pace.base import Asked, ByRule, CohortRule, Pace, Training
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientFailure, ClientInfo, ClientTask, ClientUpdate, ServerState, Tensors
from fedit.updates import Updates

MOST_EMPTY_ROUNDS = 3
"""So many rounds in a row without enough updates end the run: something is wrong with all clients."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in one round. Bytes are those of the tensors sent; seconds are wall-clock.

    cohort: those who were asked, whether their update was waited for or not; in rounds of arrivals, who arrived.
    simulated_seconds: that it took on the virtual clock; None: there is none.
    """

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
    simulated_seconds: float | None = None


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
    cohort: CohortRule | Pace,
    training: Training,
    seed: int,
    min_clients: int = 1,
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Yield the server state and a record after every round, from ``server.round + 1`` to ``rounds``.

    The caller evaluates, saves, prints and stops: there are no callbacks.

    cohort:   (clients, round) -> ids of those who take part, sorted; or a pace, which also knows of clocks, slow
              clients, and rounds of arrivals.
    training: round -> how clients train in it.

    Raises:
        RoundError: several rounds in a row had fewer than ``min_clients`` usable updates.
    """
    clients = engine.clients()
    pace = cohort if isinstance(cohort, Pace) else ByRule(cohort)
    if tensors.can_flatten(server.adapter):
        server = replace(server, adapter=tensors.flatten(server.adapter))
    empty = 0
    while server.round < rounds:
        server, record = _one_round(server, engine, strategy, clients, pace, training, seed, min_clients)
        # Nobody to ask is no failure.
        empty = 0 if record.aggregated else empty + bool(record.cohort)
        yield server, record
        if empty == MOST_EMPTY_ROUNDS and record.cohort:
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
    clients: Sequence[ClientInfo],
    pace: Pace,
    training: Training,
    seed: int,
    min_clients: int,
) -> tuple[ServerState, RoundRecord]:
    number = server.round + 1
    started = time.perf_counter()
    plan = pace.plan(server, clients, training, partial(_traffic, strategy))
    tasks = [_task(strategy, one, seed) for one in plan.asked]
    in_vain = sum(broadcast_bytes(strategy.broadcast(one.start, one.client)) for one, _ in plan.dropped)
    bytes_down = in_vain + sum(broadcast_bytes(task.broadcast) for task in tasks)
    tally, drift = _Tally(), Drift(server.adapter)
    bias = AggregationBias(server.adapter, seeds.derive(seed, "bias", number))

    def observe(update: ClientUpdate, norm: float) -> None:
        tally.observe(update)
        drift.observe(update, norm)
        bias.observe(update)

    updates = Updates(
        _arrivals(engine.run(tasks), plan.asked, number, strategy),
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
        cohort=plan.cohort,
        clients=[{**client, "update_norm": drift.norms[str(client["client"])]} for client in tally.clients],
        failures=[ClientFailure(one.client_id, number, why) for one, why in plan.dropped] + updates.failures,
        aggregated=aggregated,
        loss=tally.weighted_loss / tally.weight if tally.weight else None,
        tokens=tally.tokens,
        bytes_up=tally.bytes_up,
        bytes_down=bytes_down,
        seconds=time.perf_counter() - started,
        diagnostics={**drift.report(mean), **bias.report(mean)},
        simulated_seconds=plan.seconds,
    )
    return replace(state, round=number, schedule=pace.after(server, clients, plan, tally.clients)), record


def _task(strategy: Strategy, asked: Asked, seed: int) -> ClientTask:
    """Return the work that a client was asked for, with what it started from."""
    return ClientTask(
        asked.round,
        asked.client_id,
        strategy.broadcast(asked.start, asked.client),
        asked.training,
        seeds.derive(seed, "train", asked.round, asked.client_id),
    )


def _arrivals(
    results: Iterable[ClientUpdate | ClientFailure], asked: Sequence[Asked], number: int, strategy: Strategy
) -> Iterator[ClientUpdate | ClientFailure]:
    """Yield results as what they are in round ``number``: of what age, weight, and duration."""
    for one, result in zip(asked, results, strict=True):
        if isinstance(result, ClientFailure):
            yield replace(result, round=number)
            continue
        staleness, metrics = number - one.round, dict(result.metrics)
        if one.duration is not None:
            metrics["simulated_seconds"] = one.duration.total
        if strategy.buffer is not None:
            metrics["staleness"] = float(staleness)
        factor = strategy.discount(staleness)
        yield replace(
            result,
            round=number,
            staleness=staleness,
            weight=result.weight if one.weight is None or result.weight == 0 else one.weight,
            delta=result.delta if factor == 1 else tensors.scaled(result.delta, factor),
            metrics=metrics,
        )


def _traffic(strategy: Strategy, start: ServerState, client: ClientInfo) -> tuple[int, int]:
    """Return the bytes that a client is sent, and those of the adapter that it sends, uncompressed."""
    sent = strategy.broadcast(start, client)
    missing = {name: tensor for name, tensor in start.adapter.items() if name not in sent.adapter}
    adapter = {**lora.cut_to(missing, sent.adapter), **sent.adapter} if missing else sent.adapter
    uploads = {n: t for n, t in adapter.items() if strategy.uploads(n, start.round + 1)}
    return broadcast_bytes(sent), tensors.num_bytes(uploads)


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
