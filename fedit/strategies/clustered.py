"""Clustered federated learning: one adapter a group of alike clients (Sattler et al., 2021, arXiv:1910.01991).

All clients begin at the root of a tree. A leaf of it is a cluster with an adapter, which its clients train as in
FedIT. Where they pull in different directions the leaf is split in two by the cosines of their updates. Whoever
turns up at a node that has been split trains from what it was at that moment, and the likeness of the update to
those of either side tells where the client belongs; so clients that come late find their cluster too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit import tensors
from fedit.errors import ConfigError, NoUpdates
from fedit.strategies.base import Strategy
from fedit.types import (
    Broadcast,
    ClientInfo,
    ClientState,
    ClientUpdate,
    LocalTraining,
    Running,
    ServerState,
    Tensors,
)
from fedit.updates import Updates

PARENTS = "parents"
"""The tree: int64 (nodes,), each one's parent, -1 for the root."""
LONGEST = "longest"
"""Length of the first round's longest update, float64 ()."""


@dataclass(frozen=True)
class Clustered(Strategy):
    """Split clients whose updates disagree into clusters with an adapter each; the global one is their mean.

    max_clusters:  so many at most.
    warmup_rounds: rounds before the first split.
    coherence:     a cluster may be split when its mean update is shorter than this share of its longest one,
    movement:      when that one is at least this share as long as the longest of the first round,
    separation:    and when updates on the same side are alike by this much more cosine than those across.
    """

    max_clusters: int = 4
    warmup_rounds: int = 1
    # Deviation: the paper compares both norms with constants, which depend on the model; these ratios do not.
    coherence: float = 0.8
    movement: float = 0.2
    # Deviation: in place of the paper's bound, which needs the noise of the clients' gradients.
    separation: float = 0.2

    def init(self, adapter: Tensors) -> ServerState:
        memory = {PARENTS: torch.tensor([-1]), **_named("node/0", adapter)}
        return ServerState(0, adapter, memory=memory)

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        node = _place(server.memory, client.client_id)
        return Broadcast(_read(server.memory, f"node/{node}"), server.ledger, scale=server.scale)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        memory = dict(server.memory)
        arrived: dict[int, list[ClientUpdate]] = {}
        for update in updates:
            node = _place(server.memory, update.client_id)
            arrived.setdefault(node, []).append(update)
        if not arrived:
            raise NoUpdates("no client of the cohort delivered a usable update")
        if LONGEST not in memory:
            longest = max(tensors.norm(update.delta) for cohort in arrived.values() for update in cohort)
            memory[LONGEST] = torch.tensor(longest, dtype=torch.float64)
        for node, cohort in sorted(arrived.items()):
            sides = _children(memory, node)
            if sides:
                for update in cohort:
                    # The update itself is of an adapter that is no longer trained: it only shows the way.
                    _settle(memory, update, max(sides, key=lambda side: _likeness(memory, update, side)))
            else:
                self._train(memory, node, cohort, server.round + 1)
        memory = dict(sorted(memory.items()))  # in one order, so that a resumed run writes the same bytes
        return replace(server, adapter=_mean_below(memory, 0), memory=memory)

    def personal(self, server: ServerState, client: ClientInfo, state: ClientState) -> Running:
        # Who has not found its cluster yet runs the mean of those that it may belong to.
        node = _place(server.memory, client.client_id)
        return Running(_mean_below(server.memory, node), server.ledger, server.scale)

    def check(self, training: LocalTraining) -> None:
        for name, low, high in (("coherence", 0.0, 1.0), ("movement", 0.0, 1.0), ("separation", 0.0, 2.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"option '{name}' of strategy 'clustered' is {value}; expected {low:g} to {high:g}."
                )
        for name, least in (("max_clusters", 1), ("warmup_rounds", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"option '{name}' of strategy 'clustered' is {getattr(self, name)}; expected {least} or more."
                )

    def _train(self, memory: Tensors, node: int, cohort: Sequence[ClientUpdate], round: int) -> None:
        """Move a leaf by its clients' mean update, or split it and move either side by its own."""
        sides = [cohort]
        parents = memory[PARENTS]
        leaves = len(parents) - len(set(parents.tolist()) - {-1})
        if round > self.warmup_rounds and leaves < self.max_clusters:
            least = self.movement * float(memory[LONGEST])
            sides = split(cohort, self.coherence, self.separation, least)
        start = _read(memory, f"node/{node}")
        for members in sides:
            own = node
            if len(sides) > 1:
                own = len(memory[PARENTS])
                memory[PARENTS] = torch.cat([memory[PARENTS], torch.tensor([node])])
                memory |= _named(f"side/{own}", tensors.mean((_unit(m.delta), 1.0) for m in members))
            mean = tensors.mean((update.delta, update.weight) for update in members)
            memory |= _named(f"node/{own}", tensors.add(start, mean))
            for update in members:
                _settle(memory, update, own)


def split(
    cohort: Sequence[ClientUpdate], coherence: float, separation: float, least: float
) -> list[Sequence[ClientUpdate]]:
    """Return the two sides of a cohort whose updates disagree, the first client's first; else the cohort alone.

    The sides are those for which the largest cosine across them is as small as it can be.

    least: how long the longest update has to be; `Clustered` says what the others are.
    """
    if len(cohort) < 3:  # no pair on either side to compare those across with
        return [cohort]
    norms = [tensors.norm(update.delta) for update in cohort]
    mean = tensors.norm(tensors.mean((update.delta, update.weight) for update in cohort))
    if min(norms) == 0 or max(norms) < least or mean >= coherence * max(norms):
        return [cohort]
    cosines = torch.tensor(
        [
            [tensors.dot(a.delta, b.delta) / (x * y) for b, y in zip(cohort, norms, strict=True)]
            for a, x in zip(cohort, norms, strict=True)
        ],
        dtype=torch.float64,
    )
    first = bipartition(cosines)
    across = first.unsqueeze(0) != first.unsqueeze(1)
    within = ~across & ~torch.eye(len(cohort), dtype=torch.bool)
    if float(cosines[within].mean() - cosines[across].mean()) < separation:
        return [cohort]
    return [[u for u, one in zip(cohort, first.tolist(), strict=True) if one == side] for side in (True, False)]


def bipartition(cosines: Tensor) -> Tensor:
    """Return which of n things are on the side of the first, bool (n,), from their cosines (n, n).

    Things are joined in the order of their likeness until two groups are left: no other cut in two has a smaller
    largest cosine across it (algorithm 1 of the paper).
    """
    count = len(cosines)
    group = list(range(count))
    pairs = sorted((-float(cosines[i, j]), i, j) for i in range(count) for j in range(i))
    for _, i, j in pairs:
        if len(set(group)) == 2:
            break
        group = [group[j] if own == group[i] else own for own in group]
    return torch.tensor([own == group[0] for own in group])


def _place(memory: Tensors, client_id: str) -> int:
    """Return the node that a client is at: the root for one that never took part."""
    held = memory.get(f"client/{client_id}")
    return 0 if held is None else int(held[0])


def _settle(memory: Tensors, update: ClientUpdate, node: int) -> None:
    """Note that a client is at a node, and how many rows it has."""
    memory[f"client/{update.client_id}"] = torch.tensor([node, max(update.num_examples, 1)])


def _children(memory: Tensors, node: int) -> list[int]:
    return [child for child, parent in enumerate(memory[PARENTS].tolist()) if parent == node]


def _likeness(memory: Tensors, update: ClientUpdate, side: int) -> float:
    direction = _read(memory, f"side/{side}")
    return tensors.dot(update.delta, direction) / max(tensors.norm(direction), 1e-30)


def _mean_below(memory: Tensors, node: int) -> Tensors:
    """Return the mean adapter of the leaves at and below a node, weighted by the rows of the clients there."""
    rows: dict[int, int] = {}
    for name, held in memory.items():
        if name.startswith("client/"):
            at, count = (int(number) for number in held)
            rows[at] = rows.get(at, 0) + count
    leaves = _leaves(memory, node)
    if len(leaves) == 1:
        return _read(memory, f"node/{leaves[0]}")
    return tensors.mean((_read(memory, f"node/{leaf}"), float(rows[leaf])) for leaf in leaves)


def _leaves(memory: Tensors, node: int) -> list[int]:
    children = _children(memory, node)
    return [leaf for child in children for leaf in _leaves(memory, child)] if children else [node]


def _unit(delta: Tensors) -> Tensors:
    norm = tensors.norm(delta)
    return {name: tensor / norm for name, tensor in delta.items()}


def _named(prefix: str, held: Tensors) -> Tensors:
    return {f"{prefix}/{name}": tensor for name, tensor in held.items()}


def _read(memory: Tensors, prefix: str) -> Tensors:
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in memory.items() if name.startswith(start)}
