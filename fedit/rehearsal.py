"""A strategy's rounds without a model: what would be sent, what is refused, how exact the aggregate is.

Clients are played: their tensors move by seeded noise in place of training. All else is the strategy's own code,
so what comes out is a fact about it and not a list kept beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedit import lora, seeds, tensors
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import (
    LEDGER,
    Broadcast,
    ClientInfo,
    ClientState,
    ClientTask,
    ClientUpdate,
    LocalResult,
    LocalTraining,
    ServerState,
    Tensors,
)
from fedit.updates import Seal, Updates

SHAPES = {"layers.0.q": (24, 24), "layers.0.k": (24, 12), "layers.1.down": (40, 20)}
"""Module -> (in, out): square, narrow and wide."""
RANK = 6
COHORT = 8
"""Clients: enough for every rule that must outvote one."""
MOVE = 0.05
"""Standard deviation of a played step, beside factors of about 0.2."""
_METRICS = {"loss": 1.0, "steps": 1.0, "tokens": 100.0, "supervised_tokens": 50.0, "rows": 8.0}
TRAINING = LocalTraining(learning_rate=0.1, num_rounds=4, steps=2, optimizer="sgd")


@dataclass(frozen=True, slots=True)
class Played:
    """One rehearsed round. Tensors are those of the first client.

    start: all that it starts from, kept tensors too; trained: the names of those that it trains.
    ranks: of the adapters that clients were sent; error: distance of the new model from the mean of the clients'
    models over how far that mean moved.
    """

    sent: Broadcast
    start: Tensors
    trained: frozenset[str]
    update: ClientUpdate
    ranks: tuple[int, ...]
    error: float


@dataclass
class Player:
    """A client that is played: what the server knows of it, and what it keeps between its rounds."""

    info: ClientInfo
    state: ClientState = field(default_factory=ClientState)


def rehearse(
    strategy: Strategy,
    *,
    rounds: int,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    rank: int = RANK,
    scale: float = 2.0,
    ranks: Sequence[int | None] = (None,) * COHORT,
    sealed: bool = False,
    seal: Callable[[ServerState, Tensors, Tensors], Seal] | None = None,
    training: LocalTraining = TRAINING,
    seed: int = 0,
) -> list[Played]:
    """Play ``rounds`` rounds in which all clients take part.

    ranks: of the clients, None for the server's; a client of another rank has the server's alpha / rank.
    seal: (server, what a client sends of the adapter, what it sends beside it) -> what updates go into.

    Raises:
        FeditError: as the strategy would refuse in a run.
    """
    initial = fresh(shapes, rank, seed)
    server = replace(strategy.init(initial), scale=scale)
    names = [*sorted(strategy.always()), *(f"c{k}" for k in range(len(ranks)))]
    clients = [
        Player(ClientInfo(name, 10 + k, own, None if own is None else scale * rank / own))
        for k, (name, own) in enumerate(zip(names, ranks, strict=False))
    ]
    played = []
    for number in range(1, rounds + 1):
        sent = [strategy.broadcast(server, client.info) for client in clients]
        refuse_larger_ranks(strategy, server, [client.info for client in clients], sent)
        start = strategy.init(initial).adapter
        starts = [
            lora.completed({**one.adapter, **client.state.private}, start)
            for client, one in zip(clients, sent, strict=True)
        ]
        ends, updates = [], []
        for client, one, own in zip(clients, sent, starts, strict=True):
            trained, update = play(strategy, client, one, own, number, training, seed)
            ends.append(trained)
            updates.append(update)
        cohort = Updates(
            updates,
            server.adapter,
            starts={client.info.client_id: own for client, own in zip(clients, starts, strict=True)},
            uploads=lambda name, number=number: strategy.uploads(name, number),  # type: ignore[misc]
            sealed=sealed,
            seal=None if seal is None else seal(server, updates[0].delta, updates[0].extra),
        )
        after = replace(strategy.aggregate(server, cohort), round=number)
        error = _error(strategy, server, after, ends, updates, sent)
        trains = frozenset(name for name in starts[0] if strategy.trains(name, number))
        played.append(Played(sent[0], starts[0], trains, updates[0], tuple(_ranks(one) for one in sent), error))
        server = after
    return played


def refuse_larger_ranks(
    strategy: Strategy, server: ServerState, clients: Sequence[ClientInfo], sent: Sequence[Broadcast]
) -> None:
    """Raise ``ConfigError`` where a client of a rank of its own was sent an adapter of a larger one.

    Whoever is sent no factors has them from the run's initial adapter, at the server's rank.
    """
    own = lora.rank_of(strategy.factors(server.adapter))
    for client, broadcast in zip(clients, sent, strict=True):
        rank = _ranks(broadcast) or own
        if client.rank is not None and rank > client.rank:
            raise ConfigError(
                f"strategy '{type(strategy).__name__}' has one rank for all: it sends client '{client.client_id}' "
                f"of rank {client.rank} an adapter of rank {rank}. Take a strategy for mixed ranks "
                "(see fedit list strategies) or give all clients one rank."
            )


def extras(strategy: Strategy, server: ServerState, client: ClientInfo, training: LocalTraining) -> Tensors:
    """Return what ``client`` would send beside its change in the next round, had it learnt nothing."""
    number = server.round + 1
    sent = strategy.broadcast(server, client)
    still = tensors.scaled(lora.completed(sent.adapter, server.adapter), 0.0)
    task = ClientTask(number, client.client_id, sent, training, 0)
    steps = training.steps or 1
    return strategy.finish(task, LocalResult(still, steps, _METRICS, (training.learning_rate,) * steps), {})[0]


def fresh(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> Tensors:
    """Return an adapter as a model draws it: A uniform in ±1/sqrt(in), B zero."""
    adapter: Tensors = {}
    for module, (width, out) in shapes.items():
        generator = torch.Generator().manual_seed(seeds.derive(seed, "init", module))
        bound = width**-0.5
        adapter[f"{module}.A"] = torch.empty(rank, width).uniform_(-bound, bound, generator=generator)
        adapter[f"{module}.B"] = torch.zeros(out, rank)
    return tensors.flatten(adapter)


def effective(model: Mapping[str, Tensor], scale: float) -> Tensors:
    """Return every module's correction of the base, scale B A + ledger, dense (out, in) float64."""
    found: Tensors = {}
    for module in lora.modules({name: tensor for name, tensor in model.items() if not name.startswith(LEDGER)}):
        found[module] = scale * (model[f"{module}.B"].double() @ model[f"{module}.A"].double())
        if f"{LEDGER}{module}.A" in model:
            found[module] += model[f"{LEDGER}{module}.B"].double() @ model[f"{LEDGER}{module}.A"].double()
    return found


def _ranks(broadcast: Broadcast) -> int:
    """Return the rank of what was sent; 0 where it holds no factors."""
    factors = [
        t.shape[0 if n.endswith(".A") else 1] for n, t in broadcast.adapter.items() if n[-2:] in (".A", ".B")
    ]
    return max(factors, default=0)


def play(
    strategy: Strategy,
    client: Player,
    sent: Broadcast,
    start: Tensors,
    number: int,
    training: LocalTraining,
    seed: int,
) -> tuple[Tensors, ClientUpdate]:
    """Return what a client ends with and what it sends, after a round in which its tensors moved by noise.

    client: whose state goes on; start: all that it starts from, kept tensors too; number: of the round.
    """
    generator = torch.Generator().manual_seed(seeds.derive(seed, "move", number, client.info.client_id))
    delta = {
        name: MOVE * torch.randn(tensor.shape, generator=generator) * strategy.trains(name, number)
        for name, tensor in start.items()
    }
    steps = training.steps or 1
    metrics = {**_METRICS, "steps": float(steps)}
    task = ClientTask(number, client.info.client_id, sent, training, seed)
    trained = strategy.align(start, tensors.add(start, delta), number)
    delta = tensors.sub(trained, start)
    result = LocalResult(delta, steps, metrics, (training.learning_rate,) * steps)
    extra, memory = strategy.finish(task, result, client.state.memory)
    private = {name: tensor for name, tensor in trained.items() if not strategy.shares(name)}
    client.state = ClientState(steps, private, memory)
    shared = {name: change for name, change in delta.items() if strategy.uploads(name, number)}
    own = client.info
    scale = 1.0 if sent.scale is None else sent.scale
    update = ClientUpdate(own.client_id, number, own.num_examples, own.num_examples, shared, extra, metrics, scale)
    return trained, update


def _error(
    strategy: Strategy,
    before: ServerState,
    after: ServerState,
    ends: Sequence[Tensors],
    updates: Sequence[ClientUpdate],
    sent: Sequence[Broadcast],
) -> float:
    """Return |model after - mean of the clients' models| / |that mean - model before|, Frobenius."""
    total = sum(update.weight for update in updates)
    old, new = (effective(strategy.model(state), state.scale) for state in (before, after))
    mean = {module: torch.zeros_like(matrix) for module, matrix in old.items()}
    for trained, update, broadcast in zip(ends, updates, sent, strict=True):
        trained = dict(strategy.factors(trained))
        own = effective({**trained, **{f"{LEDGER}{n}": t for n, t in broadcast.ledger.items()}}, update.scale)
        for module, matrix in own.items():
            mean[module] += update.weight / total * matrix
    lost = sum(float((new[module] - mean[module]).square().sum()) for module in mean)
    moved = sum(float((mean[module] - old[module]).square().sum()) for module in mean)
    return (lost / moved) ** 0.5 if moved else 0.0
