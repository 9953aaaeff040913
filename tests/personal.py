"""Three tiny clients, and federations of them a few rounds long, for tests of what clients keep for themselves."""

from dataclasses import replace

import torch
from tiny import make_rows

from fedit.seeds import derive
from fedit.store import ClientStore
from fedit.types import ClientInfo, ClientTask, LocalTraining
from fedit.updates import Updates
from fedit.worker import Worker

CLIENTS = {name: make_rows([10 + k, 15, 8, 20, 12][: 3 + k], seed=k) for k, name in enumerate("abc")}
HOW = LocalTraining(learning_rate=0.05, num_rounds=4, steps=2, batch_size=2)
PLAIN = replace(HOW, optimizer="sgd", learning_rate=0.1, max_grad_norm=0)


def info(client):
    return ClientInfo(client, len(CLIENTS[client]))


def worker(model, strategy, store=None, clients=CLIENTS):
    return Worker(model, clients, strategy, seed=0, store=store or ClientStore())


def begin(model, strategy):
    return replace(strategy.init(model.initial(0)), scale=model.scale_at(model.rank))


def federate(model, strategy, rounds=3, how=HOW, cohort="abc", store=None, server=None, together=False, first=1):
    """Run rounds first..rounds; return the server's last state, the clients' states and what each sent."""
    strategy = strategy.settled(model.shapes)
    store = store or ClientStore()
    there = worker(model, strategy, store)
    server = server or begin(model, strategy)
    sent = {}
    for number in range(first, rounds + 1):
        asked = cohort(number) if callable(cohort) else cohort
        tasks = [
            ClientTask(number, c, strategy.broadcast(server, info(c)), how, derive(0, "train", number, c))
            for c in asked
        ]
        results = there.train_together(tasks) if together else [there.train(task) for task in tasks]
        sent |= {(number, result.client_id): result for result in results}
        starts = {t.client_id: {**server.adapter, **t.broadcast.adapter} for t in tasks}
        ordered = sorted(results, key=lambda result: result.client_id)
        updates = Updates(
            ordered, server.adapter, starts=starts, uploads=lambda n, r=number: strategy.uploads(n, r)
        )
        server = replace(strategy.aggregate(server, updates), round=number)
        assert not updates.failures
    return server, {client: store.read(client, rounds + 1) for client in CLIENTS}, sent


def weights(running):
    """Return what a running adapter adds to the weight of every module, in float64."""
    added = {}
    for module in sorted({name[:-2] for name in running.adapter}):
        a, b = (running.adapter[f"{module}.{f}"].double() for f in "AB")
        added[module] = running.scale * b @ a
        if f"{module}.A" in running.ledger:
            added[module] = (
                added[module] + (running.ledger[f"{module}.B"] @ running.ledger[f"{module}.A"]).double()
            )
    return added


def logits(model, running, rows):
    """Return the log-probabilities of the rows' targets under what is run."""
    model.load(running.adapter, running.ledger, scale=running.scale)
    with torch.no_grad():
        return model.log_probabilities(model.collate(rows)).clone()


def assert_same(one, two, tolerance=0.0):
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def differ(one, two):
    return any(not torch.equal(one[name], two[name]) for name in one)
