"""Clients whose objectives are quadratics, trained in plain PyTorch with the client's half of a strategy."""

from dataclasses import replace

import torch

from fedit.rounds import run_rounds
from fedit.store import ClientStore
from fedit.types import ClientInfo, ClientUpdate, LocalResult, LocalTraining

SHAPES = {"x.q.A": (2, 3), "x.q.B": (4, 2), "y.v.A": (2, 2), "y.v.B": (3, 2)}
SIZE = sum(rows * columns for rows, columns in SHAPES.values())


def named(vector):
    """Cut a vector into tensors of `SHAPES`."""
    pieces = vector.split([rows * columns for rows, columns in SHAPES.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)}


def joined(tensors):
    return torch.cat([tensors[name].reshape(-1) for name in SHAPES])


def random_tensors(seed, size=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return named((size * torch.randn(SIZE, generator=generator, dtype=torch.float64)).to(dtype))


class Quadratics:
    """An engine of clients that minimise (y - b)' H (y - b) / 2, each with an H and a b of its own.

    steps: how many each client takes; as many as its task says where None.
    """

    def __init__(self, strategy, sizes=(10, 10, 10, 10), *, steps=None, store=None, seed=0, alike=False):
        generator = torch.Generator().manual_seed(seed)
        self.strategy = strategy
        self.sizes = dict(zip("abcdefgh", sizes, strict=False))
        self.steps = steps
        self.store = store or ClientStore()
        self.order = None
        self.curvatures, self.centres = {}, {}
        for client in self.sizes:
            factor = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
            own = 0.3 * torch.eye(SIZE, dtype=torch.float64) + factor @ factor.T / 2
            self.curvatures[client] = torch.eye(SIZE, dtype=torch.float64) if alike else own
            self.centres[client] = torch.randn(SIZE, generator=generator, dtype=torch.float64)

    def clients(self):
        return [ClientInfo(client, size) for client, size in self.sizes.items()]

    def optimum(self):
        """Where the weighted sum of all clients' gradients is zero."""
        total = sum(size * self.curvatures[c] for c, size in self.sizes.items())
        return torch.linalg.solve(
            total, sum(size * self.curvatures[c] @ self.centres[c] for c, size in self.sizes.items())
        )

    def run(self, tasks):
        for task in tasks:
            yield self.train(task)

    def train(self, task):
        client, how = task.client_id, task.training
        state = self.store.read(client, task.round)
        start = task.broadcast.adapter
        params = {name: start[name].clone().requires_grad_() for name in SHAPES}
        if how.optimizer == "sgd":
            optimizer = torch.optim.SGD(params.values(), lr=how.learning_rate, momentum=how.momentum)
        else:
            optimizer = torch.optim.AdamW(params.values(), lr=how.learning_rate, weight_decay=0.0)
        steps = how.steps if self.steps is None else self.steps[client]
        for _ in range(steps):
            with torch.no_grad():
                grads = named(self.curvatures[client] @ (joined(params) - self.centres[client]))
                self.strategy.correct_gradients(task, params, grads, state.memory)
                for name, param in params.items():
                    param.grad = grads[name].clone()
                if how.max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(params.values(), how.max_grad_norm)
                optimizer.step()
                self.strategy.correct_parameters(task, params, how.learning_rate, state.memory)
        delta = {name: params[name].detach() - start[name] for name in SHAPES}
        result = LocalResult(delta, steps, {}, (how.learning_rate,) * steps)
        extra, memory = self.strategy.finish(task, result, state.memory)
        self.store.write(client, task.round, replace(state, memory=memory))
        size = self.sizes[client]
        return ClientUpdate(client, task.round, size, float(size), delta, extra)


def federate(engine, rounds, *, per_round=None, start=None, **training):
    """Run a federation from a server state, or from a random adapter; return the state after each round."""
    how = LocalTraining(
        **{
            "learning_rate": 0.05,
            "num_rounds": rounds,
            "steps": 10,
            "optimizer": "sgd",
            "max_grad_norm": 0.0,
            **training,
        }
    )

    def cohort(clients, round):
        ids = [client.client_id for client in clients]
        if per_round is None:
            return ids
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(round)).tolist()
        return sorted(ids[i] for i in order[:per_round])

    server = start or engine.strategy.init(random_tensors(99))
    return [
        state
        for state, _ in run_rounds(
            server, engine, engine.strategy, rounds=rounds, cohort=cohort, training=lambda round: how, seed=0
        )
    ]


def distance(engine, state):
    """Return how far an adapter is from the federation's optimum."""
    return float((joined(state.adapter) - engine.optimum()).norm())
