"""What tests of strategies that treat A and B apart share: random updates, exact products, small federations."""

from dataclasses import replace

import torch

from fedit.engines.inprocess import InProcess
from fedit.rounds import run_rounds
from fedit.seeds import derive
from fedit.store import ClientStore
from fedit.types import ClientInfo, ClientTask, ClientUpdate, LocalTraining
from fedit.updates import Updates
from fedit.worker import Worker

SHAPES = {"x.q.A": (4, 7), "x.q.B": (5, 4), "y.v.A": (4, 6), "y.v.B": (6, 4)}
"""A layer that is wider than high, and a square one."""
MODULES = ("x.q", "y.v")
HOW = LocalTraining(learning_rate=0.02, num_rounds=4, steps=2, batch_size=2)


def tensors(seed, size=1.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def fresh(seed):
    """Return an adapter as a run begins with it: B is zero."""
    return {name: tensor * name.endswith(".A") for name, tensor in tensors(seed).items()}


def product(factors, scale=1.0):
    """Return what is added to every layer's weight, float64."""
    return {m: scale * factors[f"{m}.B"].double() @ factors[f"{m}.A"].double() for m in MODULES}


def update(client, delta, weight=1.0, scale=1.0, **extra):
    return ClientUpdate(client, 1, int(weight), float(weight), delta, extra, scale=scale)


def random_updates(strategy, server, weights, round, seed=0, size=0.3):
    """Return updates of every tensor that a client of this round sends, and the models that sent them."""
    updates, trained = [], []
    for k, weight in enumerate(weights):
        start = {**server.adapter, **strategy.broadcast(server, ClientInfo(str(k), 1)).adapter}
        changes = tensors(seed + 100 + k, size, {name: tensor.shape for name, tensor in start.items()})
        delta = {name: tensor for name, tensor in changes.items() if strategy.uploads(name, round)}
        updates.append(update(str(k), delta, weight))
        trained.append({name: tensor + delta[name] if name in delta else tensor for name, tensor in start.items()})
    return updates, trained


def aggregate(strategy, server, updates, *, round=1, starts=None, sealed=False):
    cohort = Updates(
        updates,
        server.adapter,
        starts=starts,
        uploads=lambda name: strategy.uploads(name, round),
        sealed=sealed,
    )
    return replace(strategy.aggregate(server, cohort), round=round)


def mean_product(strategy, trained, weights):
    """Return the weighted mean of the clients' products, float64."""
    found = [product(strategy.factors(own)) for own in trained]
    return {m: sum(w * own[m] for w, own in zip(weights, found, strict=True)) / sum(weights) for m in MODULES}


def assert_close(one, two, tolerance=1e-6):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name].double(), two[name].double(), rtol=0, atol=tolerance)


def assert_same(one, two):
    assert set(one) == set(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def federate(
    model, strategy, data, *, rounds=4, how=HOW, store=None, width=1, server=None, per_round=None, clients=None
):
    """Run rounds from the run's seed, or from ``server`` on; return the states and records.

    per_round: round -> who takes part; clients: their ranks and scales, where they have their own.
    """
    store = store or ClientStore()
    engine = InProcess(Worker(model, data, strategy, seed=0, store=store), width=width)
    if clients is not None:
        engine.clients = lambda: clients
    start = server or replace(strategy.init(model.initial(0)), scale=model.scale)
    return list(
        run_rounds(
            start,
            engine,
            strategy,
            rounds=rounds,
            cohort=lambda clients, round: sorted(per_round(round) if per_round else data),
            training=lambda round: how,
            seed=0,
        )
    )


def task(strategy, server, client, round, how=HOW):
    return ClientTask(
        round, client, strategy.broadcast(server, ClientInfo(client, 1)), how, derive(0, "train", round, client)
    )
