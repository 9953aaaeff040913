"""The loop: state, broadcast, local training, aggregation, next state."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedit import lora, seeds, tensors
from fedit.diagnostics import AggregationBias, AggregationError, Drift
from fedit.engines.base import Engine
from fedit.errors import NoUpdates, RoundError
from fedit.pace.base import Asked, ByRule, CohortRule, Pace, Plan, Training
from fedit.privacy.client import ClientPrivacy
from fedit.privacy.secagg.sealing import Securely
from fedit.rehearsal import extras, refuse_larger_ranks
from fedit.roundrecord import RoundRecord, summed, withheld
from fedit.strategies.base import Strategy
from fedit.transforms.base import Transform
from fedit.transforms.chain import Downlink, receive
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
class Screen:
    """What an update may be at most: its weight, by its client; its norm, in medians of the cohort's (0: any)."""

    heaviest: Callable[[ClientInfo], float]
    most_norm: float


@dataclass(slots=True)
class _Tally:
    """Adds up what passes on its way to the strategy."""

    clients: list[dict[str, float | str]] = field(default_factory=list)
    tokens: int = 0

    def observe(self, update: ClientUpdate) -> None:
        metrics = dict(update.metrics)
        self.clients.append(
            {"client": update.client_id, "examples": update.num_examples, "weight": update.weight, **metrics}
        )
        tokens = metrics.get("tokens", 0.0)
        # What a client says of itself; a lie must not be the end of the run.
        self.tokens += int(tokens) if 0 <= tokens < 1e18 else 0

    def used(self, updates: Updates) -> list[dict[str, float | str]]:
        """Return the clients that the strategy did not reject, with their part in the aggregate if it is known."""
        kept = [client for client in self.clients if client["client"] not in updates.rejected]
        if not updates.shares:
            return kept
        return [{**client, "share": updates.shares.get(str(client["client"]), 0.0)} for client in kept]


@dataclass(slots=True)
class _Uplink:
    """What clients send, as it was before their transforms; adds up its bytes."""

    transforms: Sequence[Transform]
    bytes: int = 0
    raw_bytes: int = 0

    def received(self, results: Iterable[ClientUpdate | ClientFailure]) -> Iterator[ClientUpdate | ClientFailure]:
        for result in results:
            if isinstance(result, ClientFailure):
                yield result
                continue
            self.bytes += _update_bytes(result)
            opened = receive(self.transforms, result)
            self.raw_bytes += _update_bytes(result if isinstance(opened, ClientFailure) else opened)
            yield opened


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
    weigh: Callable[[ClientInfo], float] = lambda client: client.num_examples,
    transforms: Sequence[Transform] = (),
    privacy: ClientPrivacy | None = None,
    secure: Securely | None = None,
    heaviest: Callable[[ClientInfo], float] = lambda client: math.inf,
    most_norm: float = 0.0,
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Yield the server state and a record after every round, from ``server.round + 1`` to ``rounds``.

    The caller evaluates, saves, prints and stops: there are no callbacks.

    cohort:   (clients, round) -> ids of those who take part, sorted; or a pace, which also knows of clocks, slow
              clients, and rounds of arrivals.
    training: round -> how clients train in it.
    weigh:    what a client weighs, as far as that is known before it trains; strategies that keep a sum over all
              clients, and not only over a cohort, need it.
    heaviest: the most that a client's update may weigh; who says that it weighs more is screened out.
    most_norm: times the cohort's median norm that an update may have, see `fedit.outliers`; 0: any.
    transforms: what the engine's clients send and are sent instead; theirs must be the same.
    privacy:  seals every cohort; rounds end before the one that would spend more than it allows, and whether
              enough clients delivered does not show.
    secure:   how updates are added up so that nobody sees one; None: they are sent as they are.

    Raises:
        RoundError: several rounds in a row had fewer than ``min_clients`` usable updates.
    """
    clients = engine.clients()
    pace = cohort if isinstance(cohort, Pace) else ByRule(cohort)
    strategy = strategy.settled(server.adapter)
    if tensors.can_flatten(server.adapter):
        server = replace(server, adapter=tensors.flatten(server.adapter))
    weights = {client.client_id: weigh(client) for client in clients}
    screen = Screen(heaviest, most_norm)
    empty = 0
    while server.round < rounds and (privacy is None or privacy.affords_a_round()):
        server, record = _one_round(
            server,
            engine,
            strategy,
            clients,
            weights,
            pace,
            training,
            seed,
            min_clients,
            transforms,
            privacy,
            secure,
            screen,
        )
        # Nobody to ask is no failure.
        empty = 0 if record.aggregated else empty + bool(record.cohort)
        yield server, record
        if empty == MOST_EMPTY_ROUNDS and record.cohort:
            first = next(iter([*record.failures, *record.dropped]), None)
            cause = f" First of them: {first.client_id}: {first.reason}." if first else ""
            if record.reason and (record.delivered >= min_clients or secure is not None):
                raise RoundError(f"round {record.round}, as the {empty - 1} before: {record.reason}.{cause}")
            raise RoundError(
                f"round {record.round}: fewer than min_clients={min_clients} of {len(record.cohort)} clients "
                f"delivered, as in the {empty - 1} rounds before.{cause}"
            )


def _one_round(
    server: ServerState,
    engine: Engine,
    strategy: Strategy,
    clients: Sequence[ClientInfo],
    weights: dict[str, float],
    pace: Pace,
    training: Training,
    seed: int,
    min_clients: int,
    transforms: Sequence[Transform],
    privacy: ClientPrivacy | None,
    secure: Securely | None,
    screen: Screen,
) -> tuple[ServerState, RoundRecord]:
    number = server.round + 1
    started = time.perf_counter()
    plan = _with_always(
        pace.plan(server, clients, training, partial(_traffic, strategy)), strategy, server, clients, training
    )
    broadcasts = {one.client_id: strategy.broadcast(one.start, one.client) for one in plan.asked}
    refuse_larger_ranks(strategy, server, [one.client for one in plan.asked], list(broadcasts.values()))
    down, up = Downlink(transforms), _Uplink(transforms)
    tasks = [_task(one, down.sent(broadcasts[one.client_id]), seed) for one in plan.asked]
    in_vain = [strategy.broadcast(one.start, one.client) for one, _ in plan.dropped]
    bytes_down = sum(broadcast_bytes(task.broadcast) for task in tasks)
    bytes_down += sum(broadcast_bytes(down.sent(broadcast)) for broadcast in in_vain)
    tally, drift = _Tally(), Drift(server.adapter)
    bias = AggregationBias(server.adapter, seeds.derive(seed, "bias", number))
    starts = _starts(server, plan.asked, {client_id: down.start(b) for client_id, b in broadcasts.items()})
    # Where it holds, what the bias adds up is all that the aggregation error needs: no second look at each client.
    alike = not starts and _all_alike(strategy, server, broadcasts.values())
    error = None if alike else _aggregation_error(strategy, server, seeds.derive(seed, "bias", number))
    ledgers = {client_id: broadcast.ledger for client_id, broadcast in broadcasts.items()}

    def observe(update: ClientUpdate, norm: float) -> None:
        tally.observe(update)
        drift.observe(update, norm)
        bias.observe(update)
        if error is not None:
            # Not asked of what observes: a circle of the two would keep a round's updates for many rounds more.
            start = starts.get(update.client_id, server.adapter)
            trained = strategy.factors(tensors.add(start, update.delta))
            error.observe(trained, ledgers[update.client_id], update.scale, update.weight)

    private, hidden = None, None
    if privacy is not None or secure is not None:
        held = _sent(strategy, server, clients[0], training(number))
        private = None if privacy is None else privacy.seal(server, *held)
        if secure is not None:
            infos = [one.client for one in plan.asked]
            hidden = secure.seal(engine.run, tasks, infos, *held, weights, max(min_clients, 2), private)
    updates = Updates(
        () if hidden else _arrivals(up.received(engine.run(tasks)), plan.asked, number, strategy),
        server.adapter,
        observe,
        starts=starts,
        uploads=partial(strategy.uploads, round=number),
        weights=weights,
        announced={one.client_id: one.client.num_examples for one in plan.asked},
        seal=hidden or private,
        heaviest={one.client_id: screen.heaviest(one.client) for one in plan.asked if one.weight is None},
        scales=_told_scales(plan.asked, broadcasts),
        most_norm=screen.most_norm,
    )
    reason = None
    try:
        after = strategy.aggregate(server, updates)
    except NoUpdates as nobody:
        after, reason = server, str(nobody)
    used = tally.used(updates)
    delivered = len(used) if hidden is None else len(hidden.clients)
    aggregated = reason is None and delivered >= min_clients
    state = after if aggregated else server
    mean = updates.deltas.value() if updates.alike else {}
    diagnostics = {**drift.report(mean), **bias.report(mean)}
    if aggregated:
        diagnostics |= strategy.metrics(after)
        if alike and hidden is None:
            diagnostics |= bias.error(mean, after.adapter, (server.ledger, after.ledger), server.scale)
        elif error is not None:
            diagnostics |= error.report(strategy.factors(after.adapter), after.ledger, after.scale)
    record = RoundRecord(
        round=number,
        cohort=plan.cohort,
        clients=[{**client, "update_norm": drift.norms[str(client["client"])]} for client in used],
        failures=updates.failures,
        dropped=[ClientFailure(one.client_id, number, why) for one, why in plan.dropped],
        aggregated=aggregated,
        loss=_mean_loss(used),
        tokens=tally.tokens,
        bytes_up=up.bytes,
        bytes_down=bytes_down,
        raw_bytes_up=up.raw_bytes,
        raw_bytes_down=sum(map(broadcast_bytes, [*broadcasts.values(), *in_vain])),
        seconds=time.perf_counter() - started,
        diagnostics=diagnostics,
        reason=reason,
        simulated_seconds=plan.seconds,
        flushed=plan.flushed,
    )
    if hidden is not None:
        record = summed(record, hidden)
    if privacy is not None and private is not None:
        record = withheld(
            record, privacy, private, _traffic(strategy, server, clients[0]), strategy.metrics(after)
        )
        schedule = pace.after(server, clients, plan, ())
        return replace(after, round=number, schedule=schedule, privacy=private.after()), record
    return replace(state, round=number, schedule=pace.after(server, clients, plan, tally.clients)), record


def _sent(
    strategy: Strategy, server: ServerState, client: ClientInfo, training: LocalTraining
) -> tuple[Tensors, Tensors]:
    """Return names and shapes of what clients will send, of the adapter and beside it, before anybody has."""
    number = server.round + 1
    delta = {name: tensor for name, tensor in server.adapter.items() if strategy.uploads(name, number)}
    return delta, extras(strategy, server, client, training)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Clients that the end of the rounds left under way, and the bytes that they were sent in vain."""

    clients: list[str]
    bytes_down: int
    raw_bytes_down: int


def left_under_way(
    server: ServerState,
    engine: Engine,
    strategy: Strategy,
    cohort: CohortRule | Pace,
    transforms: Sequence[Transform] = (),
) -> UnderWay:
    """Return who had started when the last round ended; rounds count what they sent when somebody arrives."""
    pace = cohort if isinstance(cohort, Pace) else ByRule(cohort)
    strategy = strategy.settled(server.adapter)
    found = pace.under_way(server, engine.clients())
    broadcasts = [strategy.broadcast(start, client) for client, start in found]
    down = Downlink(transforms)
    return UnderWay(
        [client.client_id for client, _ in found],
        sum(broadcast_bytes(down.sent(broadcast)) for broadcast in broadcasts),
        sum(map(broadcast_bytes, broadcasts)),
    )


def _with_always(
    plan: Plan, strategy: Strategy, server: ServerState, clients: Sequence[ClientInfo], training: Training
) -> Plan:
    """Return the plan with the clients that take part in every round, who are waited for however slow."""
    missing = strategy.always() - {one.client_id for one in plan.asked}
    if not missing:
        return plan
    number = server.round + 1
    more = [Asked(client, number, server, training(number)) for client in clients if client.client_id in missing]
    return replace(
        plan,
        asked=sorted([*plan.asked, *more], key=lambda one: one.client_id),
        dropped=[(one, why) for one, why in plan.dropped if one.client_id not in missing],
    )


def _task(asked: Asked, sent: Broadcast, seed: int) -> ClientTask:
    """Return the work that a client was asked for, with what it is sent."""
    return ClientTask(
        asked.round,
        asked.client_id,
        sent,
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
    adapter = lora.completed(sent.adapter, start.adapter)
    uploads = {n: t for n, t in adapter.items() if strategy.uploads(n, start.round + 1)}
    return broadcast_bytes(sent), tensors.num_bytes(uploads)


def _told_scales(asked: Sequence[Asked], broadcasts: Mapping[str, Broadcast]) -> dict[str, float]:
    """Return what clients were told to multiply B A by, as far as they were told."""
    told = {one.client_id: broadcasts[one.client_id].scale for one in asked}
    return {client_id: scale for client_id, scale in told.items() if scale is not None}


def _mean_loss(clients: Sequence[Mapping[str, float | str]]) -> float | None:
    """Return the clients' training loss by their weights, of those that tell theirs."""
    clients = [client for client in clients if "loss" in client]
    weights = [float(client["weight"]) for client in clients]
    losses = [float(client["loss"]) for client in clients]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights) if weights else None


def broadcast_bytes(broadcast: Broadcast) -> int:
    """Return the bytes of the tensors of a broadcast."""
    return sum(map(tensors.num_bytes, (broadcast.adapter, broadcast.ledger, broadcast.extra)))


def _update_bytes(update: ClientUpdate) -> int:
    return tensors.num_bytes(update.delta) + tensors.num_bytes(update.extra)


def _starts(server: ServerState, asked: Sequence[Asked], received: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """Return by client id what those start from that do not start from the server's adapter as it is.

    received: adapter by client id; clients that share one share their start.
    """
    own: dict[str, Tensors] = {}
    whole: dict[tuple[int, int], Tensors] = {}
    for one in asked:
        adapter, state = received[one.client_id], one.start.adapter
        if adapter is server.adapter:
            continue
        if (key := (id(adapter), id(state))) not in whole:
            whole[key] = lora.completed(adapter, state)
        own[one.client_id] = whole[key]
    return own


def _all_alike(strategy: Strategy, server: ServerState, broadcasts: Iterable[Broadcast]) -> bool:
    """Whether all start from the server's model as it is now, and send the changes of both factors."""
    return (
        strategy.buffer is None
        and not strategy.composes
        and all(strategy.uploads(name, server.round + 1) for name in server.adapter)
        and all(b.ledger is server.ledger and b.scale == server.scale for b in broadcasts)
    )


def _aggregation_error(strategy: Strategy, server: ServerState, seed: int) -> AggregationError | None:
    """Return what measures the round's aggregate; None where clients keep what they train or started earlier."""
    if strategy.buffer is not None:
        return None
    kept = (name for name in server.adapter if not strategy.shares(name))
    if any(strategy.trains(name, number) for name in kept for number in range(1, server.round + 2)):
        return None
    return AggregationError(strategy.factors(server.adapter), server.ledger, server.scale, seed)
