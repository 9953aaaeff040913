"""One round of a strategy on random adapters, beside the mean of the clients' models as dense float64 matrices."""

from dataclasses import dataclass

import torch

from fedit import lora
from fedit.types import ClientInfo, ClientUpdate, ServerState
from fedit.updates import Updates

# A square layer, a narrow key projection, a wide and a tall MLP, and a fused projection three times as wide as it
# is tall, as GPT-2's Conv1D layers are.
SHAPES = {"x.q": (12, 12), "x.k": (4, 12), "x.up": (20, 12), "x.down": (12, 20), "y.c_attn": (36, 12)}
"""Module -> (out, in)."""


def adapter(seed, rank=4, size=1.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module, (out, width) in shapes.items():
        made[f"{module}.A"] = size * torch.randn(rank, width, generator=generator)
        made[f"{module}.B"] = size * torch.randn(out, rank, generator=generator)
    return made


def products(factors, scale=1.0):
    """Return module -> dense float64 product."""
    return {
        module: scale * factors[f"{module}.B"].double() @ factors[f"{module}.A"].double()
        for module in lora.modules(factors)
    }


def weights(server):
    """Return module -> what the server's model adds to its base, dense float64."""
    total = products(server.adapter, server.scale)
    for module, product in products(server.ledger).items():
        total[module] = total[module] + product
    return total


def start(strategy, seed=0, rank=4, scale=2.0, ledger=None, shapes=SHAPES):
    """Return a server in the middle of a run: nothing of it is zero."""
    first = strategy.init(adapter(seed, rank, shapes=shapes))
    return ServerState(3, first.adapter, ledger or {}, first.memory, scale)


@dataclass
class Round:
    """What a round came to; ``mean`` is the mean of the clients' models."""

    before: dict
    mean: dict
    after: dict
    server: ServerState
    trained: list


def play(strategy, server, clients, *, seed=1, size=0.3, sealed=False):
    """Let every client move away from what it is sent by ``size`` times a standard normal, and aggregate."""
    updates, starts, trained, shares = [], {}, [], []
    for index, client in enumerate(clients):
        sent = strategy.broadcast(server, client)
        generator = torch.Generator().manual_seed(1000 * seed + index)
        delta = {
            name: size * torch.randn(tensor.shape, generator=generator)
            for name, tensor in sorted(sent.adapter.items())
            if strategy.uploads(name, server.round + 1)
        }
        weight = float(client.num_examples)
        updates.append(
            ClientUpdate(client.client_id, server.round + 1, client.num_examples, weight, delta, scale=sent.scale)
        )
        starts[client.client_id] = lora.completed(sent.adapter, server.adapter)
        ended = {n: t + delta[n] if n in delta else t for n, t in starts[client.client_id].items()}
        trained.append(products(ended, sent.scale))
        shares.append(weight)
    cohort = Updates(
        updates,
        server.adapter,
        starts=starts,
        uploads=lambda name: strategy.uploads(name, server.round + 1),
        sealed=sealed,
    )
    after = strategy.aggregate(server, cohort)
    ledger = products(server.ledger)
    mean = {
        module: sum(w * t[module] for w, t in zip(shares, trained, strict=True)) / sum(shares)
        + ledger.get(module, 0.0)
        for module in trained[0]
    }
    return Round(weights(server), mean, weights(after), after, trained)


def clients(*sizes, ranks=None, scales=None):
    """Return clients of so many examples."""
    return [
        ClientInfo(f"c{i}", n, ranks[i] if ranks else None, scales[i] if scales else None)
        for i, n in enumerate(sizes)
    ]


def distance(one, two):
    """Return how far two models are apart, as a share of the first one's norm."""
    gap = sum(float((one[module] - two[module]).square().sum()) for module in one)
    return (gap / sum(float(product.square().sum()) for product in one.values())) ** 0.5


def gradients(factors, seed=0):
    """Return module -> for every direction the norm of A's and B's gradient together, of a random linear loss."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module in lora.modules(factors):
        a, b = factors[f"{module}.A"], factors[f"{module}.B"]
        pull = torch.randn(len(b), a.shape[1], generator=generator)
        found[module] = (b.T @ pull).norm(dim=1) + (pull @ a.T).norm(dim=0)
    return found
